"""Image pairs with known motion: drawn here from formulas, or read from Middlebury's or MPI-Sintel's folders."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

UNKNOWN_PX = 1e9  # .flo files hold larger values where the motion is unknown
FLO_MAGIC = b"PIEH"
WAVES = 48  # number of sines that make up a texture
WAVELENGTHS_PX = (5.0, 90.0)
FOREGROUND = 4  # layers that move over the background
NOISE = 1.0  # standard deviation of camera-like noise, in gray values; independent in both frames


class Pair(NamedTuple):
    """Two frames and the motion from the first to the second."""

    group: str  # the mean is printed per group
    name: str
    frames: np.ndarray  # (2, H, W, 3) uint8 RGB
    truth: np.ndarray  # (2, H, W) float32, pixels; x right, y down
    known: np.ndarray  # (H, W) bool: the motion is known
    visible: np.ndarray  # (H, W) bool: known, in the second frame, not occluded; `known` itself if not known


class _Layer(NamedTuple):
    """A textured ellipse with a wavy outline, or the whole plane if the radius is 0; its points move affinely."""

    center: np.ndarray  # (2,) x, y
    radius: float
    linear: np.ndarray  # (2, 2); a point p moves by linear @ (p - center) + shift
    shift: np.ndarray  # (2,)
    waves: np.ndarray  # (WAVES, 3): frequency in x, in y (radians a pixel), phase
    color: np.ndarray  # (WAVES, 3): amplitude of each wave in R, G, B
    level: np.ndarray  # (3,)

    def motion(self, points: np.ndarray) -> np.ndarray:
        return (points - self.center) @ self.linear.T + self.shift

    def before(self, points: np.ndarray) -> np.ndarray:
        """Where the points of the second frame were in the first."""
        inverse = np.linalg.inv(np.eye(2) + self.linear)
        return (points - self.center - self.shift) @ inverse.T + self.center

    def cover(self, points: np.ndarray) -> np.ndarray:
        """Coverage of points of the first frame: 0 outside, 1 inside, in between on an edge about one pixel wide."""
        if not self.radius:
            return np.ones(points.shape[:-1])
        x, y = np.moveaxis(points - self.center, -1, 0)
        edge = self.radius * (1 + 0.2 * np.sin(3 * np.arctan2(y, x) + self.level[0]))
        return np.clip(edge - np.hypot(x, 1.3 * y) + 0.5, 0, 1)

    def paint(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) gray values of points of the first frame, exact at any real coordinates."""
        angle = points.astype(np.float32) @ self.waves[:, :2].T.astype(np.float32) + self.waves[:, 2].astype(np.float32)
        return np.sin(angle, out=angle) @ self.color.astype(np.float32) + self.level


def layered(seed: int, *, reach_px: float, size: tuple[int, int], noise: float = NOISE) -> Pair:
    """Textured layers that cover and uncover each other; none moves more than `reach_px`, the topmost almost that far.

    Args:
        seed: draws shapes, textures and motions.
        reach_px: bound of the motion, in pixels.
        size: (height, width).
        noise: standard deviation, in gray values.
    """
    rng, (height, width) = np.random.default_rng(seed), size
    diagonal = np.hypot(height, width) / 2
    middle = np.array([width - 1, height - 1]) / 2
    layers = [_layer(rng, middle, 0.0, reach=diagonal, speed=0.3 * reach_px)]
    for k in range(FOREGROUND):
        center = rng.uniform(0.15, 0.85, 2) * (width, height)
        radius = rng.uniform(0.12, 0.25) * height
        share = 0.98 if k == FOREGROUND - 1 else rng.uniform(0.3, 0.98)
        layers.append(_layer(rng, center, radius, reach=1.2 * radius, speed=share * reach_px))
    return _rendered(f"layers, up to {reach_px:g} px", f"seed {seed}", layers, size, rng, noise)


def pure(name: str, seed: int, *, size: tuple[int, int], noise: float = NOISE) -> Pair:
    """One texture over the whole frame: "translation", "rotation" or "zoom".

    Arguments as for `layered`; the motion is (5.3, -3.6) pixels, 0.05 radians, or 5 percent about the middle.
    """
    rng, (height, width) = np.random.default_rng(seed), size
    layer = _layer(rng, np.array([width - 1, height - 1]) / 2, 0.0, reach=1.0, speed=0.0)
    turn = np.array([[np.cos(0.05), -np.sin(0.05)], [np.sin(0.05), np.cos(0.05)]]) - np.eye(2)
    linear = {"translation": np.zeros((2, 2)), "rotation": turn, "zoom": 0.05 * np.eye(2)}[name]
    shift = np.array([5.3, -3.6]) if name == "translation" else np.zeros(2)
    return _rendered(name, f"seed {seed}", [layer._replace(linear=linear, shift=shift)], size, rng, noise)


def synthetic(*, size: tuple[int, int], each: int) -> list[Pair]:
    """`each` pairs of layers at either reach and of every pure motion."""
    layers = [layered(seed, reach_px=reach, size=size) for reach in (6.0, 25.0) for seed in range(each)]
    return layers + [
        pure(name, seed, size=size) for name in ("translation", "rotation", "zoom") for seed in range(each)
    ]


def _layer(rng: np.random.Generator, center: np.ndarray, radius: float, *, reach: float, speed: float) -> _Layer:
    """A layer that shifts, turns and grows; points within `reach` of its center move by at most `speed` pixels."""
    length = np.exp(rng.uniform(*np.log(WAVELENGTHS_PX), WAVES))
    angle, phase = rng.uniform(0, 2 * np.pi, (2, WAVES))
    frequency = 2 * np.pi / length
    waves = np.stack([frequency * np.cos(angle), frequency * np.sin(angle), phase], 1)
    strength = length**0.5 * rng.uniform(0.5, 1, WAVES)  # long waves are stronger, as in nature
    strength *= 28 * np.sqrt(2 / np.sum(strength**2))  # standard deviation 28 gray values
    color = strength[:, None] * rng.uniform(0.6, 1.0, (WAVES, 3))
    way, bend = rng.uniform(0, 2 * np.pi, 2)
    grow, turn = 0.2 * speed / reach * np.array([np.cos(bend), np.sin(bend)])
    shift = 0.8 * speed * np.array([np.cos(way), np.sin(way)])
    linear = np.array([[grow, -turn], [turn, grow]])
    return _Layer(center, radius, linear, shift, waves, color, rng.uniform(90, 165, 3))


def _rendered(
    group: str, name: str, layers: list[_Layer], size: tuple[int, int], rng: np.random.Generator, noise: float
) -> Pair:
    points = np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), -1).astype(float)
    frames = np.empty((2, *size, 3), np.uint8)
    for k, second in enumerate((False, True)):
        image = np.zeros((*size, 3))
        for layer in layers:
            at = layer.before(points) if second else points
            cover = layer.cover(at)
            inside = cover > 0
            image[inside] += cover[inside, None] * (layer.paint(at[inside]) - image[inside])
        frames[k] = np.rint(image + rng.normal(0, noise, (*size, 1))).clip(0, 255)
    owner = _owner(layers, [points] * len(layers))
    truth = np.choose(owner[..., None], [layer.motion(points) for layer in layers])
    to = points + truth
    inside = ((to >= 0) & (to <= np.array(size[::-1]) - 1)).all(-1)
    visible = inside & (owner == _owner(layers, [layer.before(to) for layer in layers]))
    known = np.ones(size, bool)
    return Pair(group, name, frames, np.moveaxis(truth, -1, 0).astype(np.float32), known, visible)


def _owner(layers: list[_Layer], points: list[np.ndarray]) -> np.ndarray:
    """Index of the topmost layer at each point; `points` are, for each layer, the points in the first frame."""
    covered = [layer.cover(at) > 0.5 for layer, at in zip(layers, points, strict=True)]
    return len(layers) - 1 - np.argmax(np.stack(covered[::-1]), axis=0)


# --- folders


def middlebury(folder: Path) -> list[Pair]:
    """`<folder>/<name>/frame10.png`, `frame11.png`, `flow10.flo`; no pairs if there is no such folder."""
    return [
        _pair("Middlebury", flo.parent.name, flo, flo.parent / "frame10.png", flo.parent / "frame11.png")
        for flo in sorted(folder.glob("*/flow10.flo"))
    ]


def darkened(pair: Pair, light: float) -> Pair:
    """The pair with the brightness of its second frame times `light`, as in a fade or when a lamp goes out."""
    second = np.rint(pair.frames[1] * light).astype(np.uint8)
    return pair._replace(group=f"{pair.group}, darker", frames=np.stack([pair.frames[0], second]))


def flashed(pair: Pair, gray_values: float, reach: float = 1 / 6) -> Pair:
    """The pair with light added to the second frame, most in its center, as from a camera's flash.

    It falls off as a Gaussian whose standard deviation is `reach` of the width.
    """
    height, width = pair.frames.shape[1:3]
    y, x = np.mgrid[:height, :width]
    light = np.exp(-((x - width / 2) ** 2 + (y - height / 2) ** 2) / (2 * (reach * width) ** 2))
    second = np.clip(np.rint(pair.frames[1] + gray_values * light[..., None]), 0, 255).astype(np.uint8)
    return pair._replace(group=f"{pair.group}, flash", frames=np.stack([pair.frames[0], second]))


def sintel(folder: Path, pairs: int) -> list[Pair]:
    """`pairs` pairs of each render pass, spread evenly over `<folder>/training`; occluded points are not marked.

    Raises:
        SystemExit: there is no flow in the folder.
    """
    flows = sorted((folder / "training/flow").glob("*/frame_*.flo"))
    if not flows:
        raise SystemExit(f"{folder} holds no training/flow/<scene>/frame_*.flo; --sintel is MPI-Sintel's own folder")
    chosen = [flows[k] for k in np.unique(np.linspace(0, len(flows) - 1, pairs).round().astype(int))]
    found = []
    for render in ("clean", "final"):
        for flo in chosen:
            images = folder / "training" / render / flo.parent.name
            after = f"frame_{int(flo.stem.removeprefix('frame_')) + 1:04}.png"
            name = f"{flo.parent.name} {flo.stem.removeprefix('frame_')}"
            found.append(_pair(f"Sintel {render}", name, flo, images / f"{flo.stem}.png", images / after))
    return found


def _pair(group: str, name: str, flo: Path, first: Path, second: Path) -> Pair:
    truth = read_flo(flo)
    known = (np.abs(truth) < UNKNOWN_PX).all(0)
    frames = np.stack([read_image(path) for path in (first, second)])
    if frames.shape[1:3] != known.shape:
        raise SystemExit(f"{flo} is {known.shape}, but its images are {frames.shape[1:3]}: (height, width)")
    return Pair(group, name, frames, truth, known, known)


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB.

    Raises:
        SystemExit: there is no such image.
    """
    image = cv2.imread(str(path))
    if image is None:
        raise SystemExit(f"{path} is missing, or no image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_flo(path: Path) -> np.ndarray:
    """(2, H, W) float32 of a Middlebury .flo file: "PIEH", width, height, then u and v of each pixel, little endian.

    Raises:
        SystemExit: not a .flo file, or a truncated one.
    """
    raw = path.read_bytes()
    width, height = np.frombuffer(raw, "<i4", 2, offset=4) if len(raw) >= 12 else (0, 0)
    if raw[:4] != FLO_MAGIC or len(raw) != 12 + 8 * int(width) * int(height):
        raise SystemExit(f"{path} is no .flo file, or was cut off")
    return np.frombuffer(raw, "<f4", offset=12).reshape(height, width, 2).transpose(2, 0, 1).astype(np.float32)
