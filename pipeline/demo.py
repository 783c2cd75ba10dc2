"""The demo dataset: three textures times two motions, written as real video files in the UCF-101 layout.

A textured disc moves over a noisy background. The videos are built so that one stream alone cannot tell the classes
apart:

- Luminance is the same random pattern for all textures. They differ only in chroma, which optical flow, computed on
  gray, does not see: the temporal stream cannot tell the textures apart.
- Both motions sweep the same box at constant speed from a uniformly drawn start, each along one coordinate, so single
  frames have the same distribution for both: the spatial stream cannot tell the motions apart.

Clips of the same group and number are matched across the six classes: same background, noise, start, speed and length;
only texture and motion differ. So a similar training clip does not show a stream what it cannot see, either.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.catalog import Catalog, Clip
from pipeline.catalog.parts import draw_parts
from pipeline.catalog.rows import ListedClip
from pipeline.specs import DatasetSpec, DemoSpec
from pipeline.specs.base import unknown_name
from pipeline.system.errors import UserError
from pipeline.system.files import read_json
from pipeline.system.progress import Progress

TEXTURES = ("Checks", "Dots", "Stripes")
MOTIONS = ("Lift", "Slide")  # up and down, left and right: mirroring a clip does not change its class
FPS = 25.0
MARKER = "demo.json"
SPLITS = ("1", "2", "3")
GRAY, CHROMA = 118.0, 36.0  # keep all colors within 0..255: clipping would leak chroma into luminance
JPEG_QUALITY = 95
YCC_TO_BGR = np.array([[1, 1.772, 0], [1, -0.344136, -0.714136], [1, 0, 1.402]])
HUE_DEGREES = {"Checks": 0.0, "Dots": 120.0, "Stripes": 240.0}  # in the Cb, Cr plane


@dataclass(frozen=True)
class _Scene:
    """What the six matched clips of one group and number share."""

    background: np.ndarray  # (H, W, 3) float32, Y Cb Cr
    noise: np.ndarray  # (T, H, W) float32, added to the luminance
    luminance: np.ndarray  # (P, P) float32, of the object
    alpha: np.ndarray  # (P, P) float32, 1 inside the disc
    chroma: dict[str, np.ndarray]  # texture -> (P, P, 2) float32, Cb Cr
    centers_px: dict[str, np.ndarray]  # motion -> (T, 2) float64, x y


def check_split(split: str) -> None:
    """Refuse a split that the demo will not have, before it is written.

    Raises:
        UserError: there is no such split; the message names it.
    """
    if split not in SPLITS:
        raise UserError(unknown_name(f"split {split!r} of the demo", split, SPLITS))


def write_demo(folder: Path, spec: DemoSpec) -> bool:
    """Write the demo dataset, unless it already exists.

    Args:
        folder: gets `videos/<Class>/v_<Class>_gNN_cMM.avi`, `ucfTrainTestlist/` with three splits, and `demo.json`.
            Everything is written beside it and renamed at the end, so the folder is never half-written.
        spec: size and seed.

    Returns:
        True if it was written, False if the folder already held exactly this dataset.

    Raises:
        FileExistsError: the folder holds something other than a demo dataset.
        OSError: OpenCV cannot write the videos.
    """
    folder = Path(folder)
    if is_written(folder, spec):
        return False
    if folder.exists() and not (folder / MARKER).is_file() and any(folder.iterdir()):
        raise FileExistsError(
            f"{str(folder)!r} holds files that are no demo dataset; move or delete them, or name another"
        )
    writing = folder.with_name(folder.name + ".writing")
    old = folder.with_name(folder.name + ".old")
    for left in (writing, old):  # left by a killed process
        shutil.rmtree(left, ignore_errors=True)
    try:
        _write_videos(writing / "videos", spec)
        _write_lists(writing / "ucfTrainTestlist", spec)
        (writing / MARKER).write_text(json.dumps(spec.identity(), indent=1))
        if folder.exists():  # rename, then remove: half removed, it would not count as a demo
            folder.rename(old)
        writing.rename(folder)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return True


def is_written(folder: Path, spec: DemoSpec) -> bool:
    """Whether the folder holds exactly this demo dataset, complete.

    Raises:
        UserError: `demo.json` is damaged, so that nobody knows whose the folder is.
    """
    marker = folder / MARKER
    try:
        return marker.is_file() and read_json(marker) == spec.identity()
    except UserError:
        raise UserError(
            f"{marker} is damaged; delete the folder {folder}, if it is the demo's, and run the same command again"
        ) from None


def class_names() -> list[str]:
    """The six classes, sorted, as `classInd.txt` has them."""
    return sorted(texture + motion for texture in TEXTURES for motion in MOTIONS)


def _clips(spec: DemoSpec) -> Iterator[tuple[str, int, int]]:
    """Class, group and number of every clip, in the order of the lists."""
    return itertools.product(class_names(), range(1, spec.groups + 1), range(1, spec.clips + 1))


def outline(spec: DemoSpec, dataset: DatasetSpec, split: str) -> Catalog:
    """The clips of the demo before it is written: names, classes, groups and parts, but no sizes or contents.

    Args:
        spec: what the demo looks like.
        dataset: how the validation part is drawn from the training part.
        split: one of SPLITS.
    """
    names, rows = class_names(), []
    for name, group, number in _clips(spec):
        path = _relative_path(name, group, number)
        rows.append(ListedClip(Path(path).stem, path, name, f"{name}_g{group:02d}", _part(group, int(split))))
    clips = (Clip.of(row, names.index(row.class_name)) for row in draw_parts(dataset, rows, split))
    return Catalog(tuple(clips), tuple(names), split, ())


def render(spec: DemoSpec, texture: str, motion: str, *, group: int, number: int) -> np.ndarray:
    """Draw one clip.

    Args:
        spec: size and seed.
        texture: one of TEXTURES.
        motion: one of MOTIONS.
        group: from 1; clips of one group share the background.
        number: number of the clip in its group, from 1.

    Returns:
        (T, H, W, 3) uint8 RGB.
    """
    scene = _scene(spec, group, number)
    return np.stack(list(_frames(scene, texture, motion)))[..., ::-1]


def _scene(spec: DemoSpec, group: int, number: int) -> _Scene:
    height, width = spec.height_px, spec.width_px
    of_group = np.random.default_rng([spec.seed, group])
    background = np.empty((height, width, 3), np.float32)
    background[..., 0] = GRAY + 16 * _smooth_noise(of_group, (height, width), sigma_px=2.5)
    for channel in (1, 2):
        background[..., channel] = 5 * _smooth_noise(of_group, (height, width), sigma_px=6) + of_group.uniform(-5, 5)
    draw = np.random.default_rng([spec.seed, group, number])
    frames = round(spec.frames * draw.uniform(0.9, 1.1))
    radius_px = min(height, width) * draw.uniform(0.19, 0.23)
    side = 2 * int(np.ceil(radius_px)) + 3
    across = np.arange(side) - side // 2
    distance = np.hypot(across, across[:, None])
    return _Scene(
        background=background,
        noise=draw.normal(0, 3, (frames, height, width)).astype(np.float32),
        luminance=(GRAY + 24 * _smooth_noise(draw, (side, side), sigma_px=1.5)).astype(np.float32),
        alpha=np.clip(radius_px - distance + 0.5, 0, 1).astype(np.float32),
        chroma=_chroma(draw, across, period_px=radius_px * draw.uniform(0.7, 0.85)),
        centers_px=_centers_px(draw, frames, margin_px=radius_px + 1, size_px=(width, height)),
    )


def _smooth_noise(draw: np.random.Generator, shape: tuple[int, int], *, sigma_px: float) -> np.ndarray:
    """Smoothed noise with standard deviation 1, clipped at +-2."""
    noise = cv2.GaussianBlur(draw.normal(size=shape).astype(np.float32), (0, 0), sigma_px)
    return np.clip((noise - noise.mean()) / noise.std(), -2, 2)


def _chroma(draw: np.random.Generator, across: np.ndarray, *, period_px: float) -> dict[str, np.ndarray]:
    """The three textures as colors: each a pattern between a hue and its opposite."""
    shift_px, turn_degrees = draw.uniform(0, period_px, 2), draw.uniform(-15, 15)
    wave_x, wave_y = (np.sin(2 * np.pi * (across + shift) / period_px) for shift in shift_px)
    patterns = {
        "Checks": np.sign(wave_x * wave_y[:, None]),
        "Dots": np.where(wave_x + wave_y[:, None] > 0.7, 1.0, -1.0),
        "Stripes": np.sign(np.broadcast_to(wave_y[:, None] + 1e-9, (len(across), len(across)))),
    }
    chroma = {}
    for texture, pattern in patterns.items():
        hue = np.deg2rad(HUE_DEGREES[texture] + turn_degrees)
        chroma[texture] = (CHROMA * pattern[..., None] * [np.cos(hue), np.sin(hue)]).astype(np.float32)
    return chroma


def _centers_px(draw: np.random.Generator, frames: int, *, margin_px: float, size_px: tuple) -> dict[str, np.ndarray]:
    """Path of the disc's center: one coordinate moves back and forth across the box, the other stays fixed.

    Both motions begin at the same point. A phase of 0..1 is the way there, 1..2 the way back; since its start is
    uniform, so is the position in every frame.
    """
    box_px = np.array(size_px) - 1 - 2 * margin_px
    start, speed_px = draw.uniform(0, 2, 2), draw.uniform(1.5, 4.0)
    centers = {}
    for motion, moving in (("Lift", [0.0, 1.0]), ("Slide", [1.0, 0.0])):
        phase = start + np.arange(frames)[:, None] * np.array(moving) * speed_px / box_px
        centers[motion] = margin_px + box_px * (1 - np.abs(phase % 2 - 1))
    return centers


def _frames(scene: _Scene, texture: str, motion: str) -> Iterator[np.ndarray]:
    """Frames of one clip, (H, W, 3) uint8 BGR."""
    planes = np.dstack([scene.luminance, scene.chroma[texture], np.ones_like(scene.alpha)]) * scene.alpha[..., None]
    height, width = scene.background.shape[:2]
    for noise, center in zip(scene.noise, scene.centers_px[motion], strict=True):
        corner = center - len(scene.alpha) // 2
        shift = np.array([[1, 0, corner[0]], [0, 1, corner[1]]])
        moved = cv2.warpAffine(planes, shift, (width, height))
        ycc = scene.background * (1 - moved[..., 3:]) + moved[..., :3]
        ycc[..., 0] += noise
        yield _to_bgr(ycc)


def _to_bgr(ycc: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 Y Cb Cr, chroma around 0 -> (H, W, 3) uint8 BGR; Y is exactly .299 R + .587 G + .114 B."""
    return cv2.transform(ycc, YCC_TO_BGR).round().clip(0, 255).astype(np.uint8)


def _write_videos(folder: Path, spec: DemoSpec) -> None:
    for name in class_names():
        (folder / name).mkdir(parents=True)
    total = len(class_names()) * spec.groups * spec.clips
    with Progress("demo: writing", total, "videos") as progress:
        for group, number in itertools.product(range(1, spec.groups + 1), range(1, spec.clips + 1)):
            scene = _scene(spec, group, number)
            for texture, motion in itertools.product(TEXTURES, MOTIONS):
                _write_video(folder / _relative_path(texture + motion, group, number), scene, texture, motion)
                progress.advance()


def _write_video(file: Path, scene: _Scene, texture: str, motion: str) -> None:
    """Write Motion JPEG: each frame is coded independently, so a single frame holds no trace of the motion."""
    height, width = scene.background.shape[:2]
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(file), cv2.CAP_OPENCV_MJPEG, codec, FPS, (width, height))
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write {file}; it needs the MJPG writer of opencv-contrib-python, and disk space")
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, JPEG_QUALITY)
    for frame in _frames(scene, texture, motion):
        writer.write(frame)
    writer.release()


def _relative_path(class_name: str, group: int, number: int) -> str:
    return f"{class_name}/v_{class_name}_g{group:02d}_c{number:02d}.avi"


def _part(group: int, split: int) -> str:
    """Each split tests a different third of the groups."""
    return "test" if (group - split) % 3 == 0 else "train"


def _write_lists(folder: Path, spec: DemoSpec) -> None:
    """Write lists like UCF-101's: 3 splits, each testing another third of the groups; labels only in train lists."""
    folder.mkdir(parents=True)
    names = class_names()
    (folder / "classInd.txt").write_text("".join(f"{label} {name}\n" for label, name in enumerate(names, start=1)))
    for split in map(int, SPLITS):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for name, group, number in _clips(spec):
            part, path = _part(group, split), _relative_path(name, group, number)
            lines[part].append(path if part == "test" else f"{path} {names.index(name) + 1}")
        for part, listed in lines.items():
            (folder / f"{part}list{split:02d}.txt").write_text("\n".join(listed) + "\n")
