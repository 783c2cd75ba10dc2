"""Train and test views of each stream, side by side: from a cached frame or a flow stack to the network's input.

A *picture* is a stream's input at one moment, before augmentation: a frame (H, W, 3) uint8 RGB, or the `Planes` of a
flow stack. A *view* is a crop of a picture, perhaps resized, mirrored or jittered, otherwise with its values as stored.
All that remains from bytes to normalized floats is a factor and an offset per channel, which `dataset/inputs.py`
applies on the network's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.specs import StackSpec, StreamSpec
from pipeline.stacks.stored import EncodedStack, Planes
from pipeline.video import resized

# mean and standard deviation of RGB in 0..1 that torchvision's weights were trained with; `imagenet` rejects others
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
_GRAY = np.array([0.299, 0.587, 0.114], np.float32)
CORNER_SCALES = (1.0, 0.875, 0.75, 0.66)  # sides of TSN's crops of RGB, as shares of the picture's short side


class View(NamedTuple):
    """One view, or several: the network's input is `values * scale + offset`, channel by channel."""

    values: np.ndarray
    """(..., C, crop_px, crop_px) uint8; float32 for a flow stack that was resized or is a trajectory."""
    scale: np.ndarray
    """(..., C) float32."""
    offset: np.ndarray
    """(..., C) float32."""

    def inputs(self) -> np.ndarray:
        """The network's input, (..., C, crop_px, crop_px) float32."""
        scaled = self.values * self.scale[..., None, None]
        scaled += self.offset[..., None, None]
        return scaled


class Box(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


class EncodedView(NamedTuple):
    """One view of a flow stack whose planes are still JPEG, and what remains to be done once they are decoded.

    Fields become a stack as `spec` says. Its planes are cropped to `box`, resized to `side` and mirrored if `mirrored`;
    the network's input is their values in pixels times `factor`.
    """

    stack: EncodedStack
    spec: StackSpec
    box: Box
    side: int
    mirrored: bool
    factor: np.ndarray
    """(2L,) float64: the unit, the sign of x, and what resizing does to motion."""


class TrainView:
    """One random view of a picture: resized, cropped, mirrored or not, its colors jittered."""

    DRAWS = 6  # random numbers per view, whatever the settings, so no setting changes what another draws

    def __init__(self, spec: StreamSpec):
        self.spec = spec

    def __call__(self, picture: np.ndarray | Planes, drawn: Sequence[float]) -> View:
        """Make the view.

        Args:
            picture: a frame or a stack.
            drawn: six numbers in [0, 1): vertical and horizontal position of the crop (`cropping = corners`: its size
                and position), whether it is mirrored, and brightness, contrast and saturation.

        Returns:
            One view, (C, crop_px, crop_px).
        """
        picture = resize(picture, self.spec)
        box, mirrored = self._chosen(*size_px(picture), drawn)
        view = _rescaled(crop(picture, box), self.spec.crop_px, self.spec.crop_px)
        if self.spec.stream == "temporal":
            return _stack_view(view, self.spec, mirrored=mirrored)
        return _frame_view(view, self.spec, mirrored=mirrored, color=drawn[3:])

    def encoded(self, stack: EncodedStack, drawn: Sequence[float]) -> EncodedView | None:
        """The same view of a stack that is still JPEG; None if its planes would be resized before cropping."""
        if _resized_px(stack.height, stack.width, self.spec) != (stack.height, stack.width):
            return None
        (box, mirrored), side = self._chosen(stack.height, stack.width, drawn), self.spec.crop_px
        factor = _stack_factors(self.spec.channels, self.spec, mirrored=mirrored)
        factor *= np.array([side / box.width, side / box.height] * self.spec.stack.length)
        return EncodedView(stack, self.spec.stack, box, side, mirrored, factor)

    def _chosen(self, height: int, width: int, drawn: Sequence[float]) -> tuple[Box, bool]:
        """The crop of a picture of this size, and whether it is mirrored."""
        (first, second, mirror), side = drawn[:3], self.spec.crop_px
        if self.spec.cropping == "corners":
            sizes = corner_sizes(min(height, width), side)[int(first * 10)]
            box = corner_crops(height, width, *sizes)[int(second * 13)]
        else:
            box = Box(int(first * (height - side + 1)), int(second * (width - side + 1)), side, side)
        return box, self.spec.flip and mirror < 0.5


class EvalViews:
    """The fixed views of a picture whose scores are averaged (paper, section 5)."""

    def __init__(self, spec: StreamSpec, *, crops: int):
        """`crops` is 1: the center; 2: also its mirror image; 5: corners and center; 10: also their mirror images."""
        if crops not in (1, 2, 5, 10):
            raise ValueError(f"crops is {crops}; allowed: 1, 2, 5, 10")
        self.spec, self.crops = spec, crops

    def __call__(self, picture: np.ndarray | Planes) -> View:
        """Make the views, (crops, C, crop_px, crop_px), the mirrored ones last."""
        picture = resize(picture, self.spec)
        side, (height, width) = self.spec.crop_px, size_px(picture)
        down, right = height - side, width - side
        corners = [(0, 0), (0, right), (down, 0), (down, right)] if self.crops >= 5 else []
        parts = [crop(picture, Box(*place, side, side)) for place in [*corners, (down // 2, right // 2)]]
        make = _stack_view if self.spec.stream == "temporal" else _frame_view
        mirrors = (False, True) if self.crops in (2, 10) else (False,)
        views = [make(part, self.spec, mirrored=mirrored) for mirrored in mirrors for part in parts]
        return View(*(np.stack(parts) for parts in zip(*views, strict=True)))


def size_px(picture: np.ndarray | Planes) -> tuple[int, int]:
    """Height and width of a frame (channels last) or a stack (channels first)."""
    return picture.planes[0].shape if isinstance(picture, Planes) else picture.shape[:2]


def resize(picture: np.ndarray | Planes, spec: StreamSpec) -> np.ndarray | Planes:
    """Bring the short side to `resize_px` (0: unchanged), but at least `crop_px`, keeping the aspect ratio.

    Shrinking averages areas, enlarging is bilinear. Flow values are scaled with the grid, x by the width's factor and y
    by the height's: they stay in pixels of their picture, as if flow had been computed at that size.
    """
    return _rescaled(picture, *_resized_px(*size_px(picture), spec))


def _resized_px(height: int, width: int, spec: StreamSpec) -> tuple[int, int]:
    """The size that `resize` gives a picture of this height and width."""
    short = max(spec.resize_px or min(height, width), spec.crop_px)
    factor = short / min(height, width)
    return max(short, round(height * factor)), max(short, round(width * factor))


def _rescaled(picture: np.ndarray | Planes, to_height: int, to_width: int) -> np.ndarray | Planes:
    """Resize a picture unless it has that size. Planes become float32, because bytes would be rounded again."""
    height, width = size_px(picture)
    if (height, width) == (to_height, to_width):
        return picture
    if not isinstance(picture, Planes):
        return resized(picture, (to_height, to_width))
    planes = [resized(plane.astype(np.float32), (to_height, to_width)) for plane in picture.planes]
    factors = np.array([to_width / width, to_height / height] * (len(planes) // 2))
    return Planes(planes, picture.scale * factors, picture.offset * factors)


def crop(picture: np.ndarray | Planes, box: Box) -> np.ndarray | Planes:
    """The part of the picture inside a box."""
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    if isinstance(picture, Planes):
        return picture._replace(planes=[plane[rows, columns] for plane in picture.planes])
    return picture[rows, columns]


def corner_sizes(short: int, side: int) -> list[tuple[int, int]]:
    """The ten sizes (height, width) of multi-scale crops of a picture whose short side is `short`.

    Height and width are taken from {1, .875, .75, .66} x short, at most one step apart; a size within 2 px of `side`
    becomes `side`, which saves resizing. Example, 256 and 224: 256, 224, 192 and 168. Both streams here use all four
    scales; TSN's flow stream does not use the smallest.

    Source: Wang et al., Towards Good Practices for Very Deep Two-Stream ConvNets, 2015, section 3, and TSN's code.
    """
    sizes = [int(short * scale) for scale in CORNER_SCALES]
    sizes = [side if abs(size - side) < 3 else size for size in sizes]
    return [(sizes[i], sizes[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1]


def corner_crops(height: int, width: int, crop_height: int, crop_width: int) -> list[Box]:
    """The thirteen positions of a crop, on a grid of quarters of its free range: corners, center, edges, inner four.

    Source: as for `corner_sizes`; as there, quarters are rounded down to whole pixels.
    """
    down, right = (height - crop_height) // 4, (width - crop_width) // 4
    corners, center = [(0, 0), (0, 4), (4, 0), (4, 4)], [(2, 2)]
    edges, inner = [(2, 0), (2, 4), (4, 2), (0, 2)], [(1, 1), (1, 3), (3, 1), (3, 3)]
    return [Box(i * down, j * right, crop_height, crop_width) for i, j in corners + center + edges + inner]


def jitter(frame: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Change brightness, contrast and saturation, in this order.

    Args:
        frame: (H, W, 3) uint8 RGB.
        factors: (3,) float; 1 changes nothing. Contrast is relative to the crop's mean gray, saturation to each
            pixel's gray.

    Returns:
        (H, W, 3) uint8 RGB, clipped to 0..255.
    """
    brightness, contrast, saturation = (np.float32(factor) for factor in factors)
    view = frame * brightness
    mean = (view @ _GRAY).mean()
    view = (view - mean) * contrast + mean
    gray = (view @ _GRAY)[..., None]
    return np.rint((view - gray) * saturation + gray).clip(0, 255).astype(np.uint8)


def _frame_view(frame: np.ndarray, spec: StreamSpec, *, mirrored: bool, color: Sequence[float] = ()) -> View:
    """View of a cropped frame; its factors subtract ImageNet's mean and divide by its standard deviation."""
    frame = frame[:, ::-1] if mirrored else frame
    if spec.jitter and len(color):
        frame = jitter(frame, 1 + spec.jitter * (2 * np.array(color) - 1))
    values = np.ascontiguousarray(frame.transpose(2, 0, 1))  # (H, W, C) => (C, H, W)
    return View(values, 1 / (255 * IMAGENET_STD), -IMAGENET_MEAN / IMAGENET_STD)


def _stack_factors(planes: int, spec: StreamSpec, *, mirrored: bool) -> np.ndarray:
    """Factors of the planes that divide by `flow_unit_px` and, if the view is mirrored, negate x; float64."""
    factor = np.full(planes, 1 / spec.flow_unit_px)
    if mirrored:
        factor[0::2] *= -1
    return factor


def _stack_view(stack: Planes, spec: StreamSpec, *, mirrored: bool) -> View:
    """View of a cropped stack."""
    first, count = stack.planes[0], len(stack.planes)
    values, factor = np.empty((count, *first.shape), first.dtype), _stack_factors(count, spec, mirrored=mirrored)
    for plane, kept in zip(stack.planes, values, strict=True):
        if mirrored:
            cv2.flip(plane, 1, dst=kept)
        else:
            kept[:] = plane
    return View(values, (stack.scale * factor).astype(np.float32), (stack.offset * factor).astype(np.float32))
