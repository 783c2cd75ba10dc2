"""Flow methods compared on real videos, whose true motion is unknown, by interpolating frames.

    python benchmarks/interpolation.py                                   # videos of UCF-101
    python benchmarks/interpolation.py --videos FOLDER --gaps 2 8 --methods tvl1 dis_medium

Flow is computed between two frames that lie `gap` frames apart. Moving each of them by half of it gives a picture for
the time in the middle, which is compared with the real frame: *error* is the mean absolute difference in gray values,
over all pixels, colors and triples of frames. It never becomes 0: videos have noise and compression artifacts, things
change speed, and what is covered in one frame has no halfway position. So the difference from the first method is given
with its standard error over the triples, which are the same for all methods. *No motion* is the mean of the two frames.
The idea is from Baker et al., A database and evaluation methodology for optical flow, IJCV 2011 (interpolation error).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import flow_speed
import numpy as np
from common import ROOT, machine, table, write
from flow_speed import Lane

from pipeline import flow
from pipeline.catalog.layouts import VIDEO_SUFFIXES
from pipeline.specs import FLOW_METHODS, RAFT_WEIGHTS
from pipeline.video import Video

STILL = 1.5  # gray values; pairs whose mean difference is smaller say nothing about motion
Method = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, default=ROOT.parent / "shared/data/ucf101_sample", help="and below it")
    parser.add_argument("--methods", nargs="+", choices=FLOW_METHODS, metavar="METHOD", help=", ".join(FLOW_METHODS))
    parser.add_argument("--gaps", nargs="+", type=int, default=[2, 8], help="even numbers of frames; 2 8")
    parser.add_argument("--triples", type=int, default=4, help="of each video; 4")
    given = parser.parse_args()
    if any(gap < 2 or gap % 2 for gap in given.gaps):
        parser.error("--gaps must be even and at least 2, since the frame in the middle is the truth")
    cv2.setNumThreads(1)
    lanes, record = methods(given.methods), {}
    for gap in given.gaps:
        errors = measure(lanes, given.videos, gap, given.triples)
        record[f"{gap} frames apart"] = {name: of.tolist() for name, of in errors.items()}
        show(gap, errors)
    write("interpolation", {"videos": given.videos.name, "error": record})


def methods(names: list[str] | None) -> dict[str, Method]:
    """Name -> a function of two RGB frames (2, H, W, 3) uint8 that gives (2, H, W) motion in pixels."""
    there = [name for name, state in flow.methods().items() if state == "available" and name not in RAFT_WEIGHTS]
    found = {name: Lane(name, "auto").flow for name in names or there}
    if flow_speed.has_opencv_tvl1():
        found[flow_speed.BASELINE] = lambda frames: flow_speed.opencv_tvl1(flow.to_gray(frames))
    return found


def triples(folder: Path, gap: int, count: int) -> Iterator[np.ndarray]:
    """(3, H, W, 3) uint8: a frame, the one in the middle, and the one `gap` frames after the first."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES):
        frames = np.stack([image for image, _ in Video(path)])
        for first in np.unique(np.linspace(0, max(0, len(frames) - 1 - gap), count).astype(int)):
            found = frames[first : first + gap + 1 : gap // 2]
            if len(found) == 3 and np.abs(found[0].astype(int) - found[2]).mean() >= STILL:
                yield found


def measure(lanes: dict[str, Method], folder: Path, gap: int, count: int) -> dict[str, np.ndarray]:
    """Name -> error of each triple, including "no motion"."""
    errors: dict[str, list[float]] = {name: [] for name in ("no motion", *lanes)}
    for frames in triples(folder, gap, count):
        motions = {name: method(frames[::2]) for name, method in lanes.items()}
        for name, motion in {"no motion": np.zeros((2, *frames.shape[1:3]), np.float32), **motions}.items():
            errors[name].append(float(np.abs(between(*frames[::2], motion) - frames[1]).mean()))
    if not errors["no motion"]:
        raise SystemExit(f"no video below {folder} has {gap + 1} frames in which something moves")
    return {name: np.array(of) for name, of in errors.items()}


def between(first: np.ndarray, last: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """The picture halfway between, (H, W, 3): the mean of both frames, each moved by half of the motion (2, H, W)."""
    y, x = np.mgrid[: motion.shape[1], : motion.shape[2]].astype(np.float32)
    half = motion / 2
    moved = [
        cv2.remap(frame, x + sign * half[0], y + sign * half[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        for frame, sign in ((first, -1), (last, 1))
    ]
    return (moved[0].astype(float) + moved[1]) / 2


def show(gap: int, errors: dict[str, np.ndarray]) -> None:
    """Print the table of one gap, as Markdown."""
    names = [name for name in errors if name != "no motion"] + ["no motion"]
    rows, count = [], len(errors["no motion"])
    for name in names:
        more = errors[name] - errors[names[0]]
        against = f"{more.mean():+.3f} ± {more.std(ddof=1) / count**0.5:.3f}" if name != names[0] and count > 1 else ""
        rows.append([name, f"{errors[name].mean():.3f}", against])
    print(f"\n{count} triples, {gap} frames apart, on {machine()}\n")
    print(table(["method", "error, gray values", f"more than {names[0]}"], rows), flush=True)


if __name__ == "__main__":
    main()
