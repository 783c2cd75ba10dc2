"""Costs that do not depend on pixels: the whole chain on about as many clips as UCF-101 has, each tiny.

    python benchmarks/scale.py                      # 13,332 clips, 101 classes, 25 groups; ten minutes on 2 cores
    python benchmarks/scale.py --clips-a-group 1    # a quarter of that

Clips are 64 x 48 pixels and last less than a second, so opening files, tables, fusion and report take a large share of
the time, and anything that grows faster than the number of clips would show. The networks are `small`, trained for a
few hundred steps: their accuracy means nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from common import ROOT, show, spread

from pipeline import store
from pipeline.dataset import TrainingSet
from pipeline.specs import StackSpec, StreamSpec

CLASSES, GROUPS, SIZE_PX, BOUND_PX = 101, 25, (48, 64), 8
EXTRA_GROUPS = 7  # groups of each class with one extra clip, which gives UCF-101's number of clips plus a dozen
STREAM = {"network": "small", "crop-px": "48", "resize-px": "0", "batch": "64", "steps": "600", "schedule": "cosine"}
STREAM |= {"dropout": "0.5", "validate-every": "300"}
ITEMS = 2000  # training items read for each figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips-a-group", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        videos, artifacts = Path(scratch) / "videos", Path(scratch) / "artifacts"
        clips = write_videos(videos, arguments.clips_a_group)
        stages, seconds = chain(videos, artifacts)
        again = [chain(videos, artifacts)[1] for _ in range(3)]
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        flow = next(artifacts.glob("*/flow/*"))
        checked = timed("-m", "pipeline", "verify", str(flow))
        status = timed("-m", "pipeline", "status", "--artifacts", str(artifacts))
        first, later = reader(flow, next(artifacts.glob("*/catalog/*/catalog.h5")))
        files = sum(1 for path in artifacts.rglob("*.h5"))
    rows = [("clips, HDF5 files", f"{clips}, {files}")]
    rows += [(f"{name}, s", f"{took:.1f}") for name, took in stages]
    rows += [("whole chain, s", f"{seconds:.0f}"), ("rerun with nothing to do, s", spread(again, 1))]
    rows += [("verify of the flow, s", f"{checked:.1f}"), ("status, s", f"{status:.1f}")]
    rows += [("largest process, MiB", f"{peak:.0f}")]
    rows += [("a training item of 10 planes, first use of a clip / later, ms", f"{first:.2f} / {later:.2f}")]
    show("scale", rows, {"clips": clips, "stages": stages, "seconds": seconds, "again": again})


def write_videos(folder: Path, clips_a_group: int) -> int:
    """Write `<class>/g<group>_c<clip>.avi`; a class is a direction of motion and a tint. Returns their number."""
    rng, count = np.random.default_rng(0), 0
    texture = cv2.GaussianBlur(rng.random((128, 160, 3)).astype(np.float32), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    for k in range(CLASSES):
        (folder / f"class{k:03}").mkdir(parents=True)
        angle = 2 * np.pi * k / CLASSES
        tint = 0.6 + 0.4 * np.sin([angle, angle + 2, 3 * angle])
        for group in range(GROUPS):
            for clip in range(clips_a_group + (group < EXTRA_GROUPS)):
                path = folder / f"class{k:03}" / f"g{group:02}_c{clip:02}.avi"
                _write(path, texture, angle, tint, rng.uniform(40, 56, 2), int(rng.integers(12, 24)))
                count += 1
    return count


def _write(path: Path, texture: np.ndarray, angle: float, tint: np.ndarray, begin: np.ndarray, frames: int) -> None:
    height, width = SIZE_PX
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (width, height))
    for t in range(frames):
        x, y = begin + 2.0 * t * np.array([np.cos(angle), np.sin(angle)])
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = np.array([[1, 0, x], [0, 1, y]], np.float32)
        image = cv2.warpAffine(texture, moved, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT)
        video.write((image * tint).clip(0, 255).astype(np.uint8))
    video.release()


def chain(videos: Path, artifacts: Path) -> tuple[list[tuple[str, float]], float]:
    """Run FullPipeline; returns the seconds of each stage, as it prints them, and of the whole command."""
    command = [str(Path(sys.executable).with_name("luigi")), "--module", "tasks", "FullPipeline", "--dataset", "folder"]
    command += ["--data-videos", str(videos), "--data-group-pattern", r"/(?P<group>g\d+)_"]
    command += ["--artifacts", str(artifacts)]
    command += ["--device", "cpu", "--frames-short-side-px", "0", "--flow-method", "dis_ultrafast"]
    command += ["--flow-bound-px", str(BOUND_PX), "--stack-length", "5", "--score-frames", "5", "--score-crops", "2"]
    command += [part for s in ("spatial", "temporal") for n, text in STREAM.items() for part in (f"--{s}-{n}", text)]
    begun = time.perf_counter()
    said = subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.PIPE, text=True).stderr
    seconds = time.perf_counter() - begun
    return [(name, float(took)) for name, took in re.findall(r"^(\w+ \S+): done in ([\d.]+) s$", said, re.M)], seconds


def timed(*arguments: str) -> float:
    """Seconds that a Python command takes."""
    begun = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - begun


def reader(flow: Path, catalog: Path) -> tuple[float, float]:
    """Milliseconds per training item: when a process first uses its clip, and later."""
    stack = StackSpec(length=5)
    spec = StreamSpec(stream="temporal", network="small", stack=stack, crop_px=48, resize_px=0, batch=64, steps=1000)
    items = TrainingSet(spec, flow, store.read_catalog(catalog).part("train"))
    chosen = [items.choose(number) for number in range(ITEMS)]
    new = [chosen.index(place) for place in set(chosen)]
    took = {number: _seconds(items, number) for number in range(ITEMS)}
    again = [_seconds(items, number) for number in range(ITEMS)]
    return 1e3 * statistics.median(took[number] for number in new), 1e3 * statistics.median(again)


def _seconds(items: TrainingSet, number: int) -> float:
    begun = time.perf_counter()
    items[number]
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
