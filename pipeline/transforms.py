"""Train and test views of each stream, side by side: from a cached frame or a flow stack to the network's input.

A *picture* is what a stream sees at one moment: a frame (H, W, 3) uint8 RGB, or a stack (2L, H, W) float32 in pixels.
An *input* is what its network takes: (C, crop_px, crop_px) float32, normalised.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline import quantize
from pipeline.specs import StreamSpec

# of RGB in 0..1, the normalisation of all of torchvision's published weights
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
_GRAY = np.array([0.299, 0.587, 0.114], np.float32)


class TrainView:
    """One random view of a picture: resized, cropped anywhere, mirrored or not, its colours jittered, normalised."""

    def __init__(self, spec: StreamSpec):
        self.spec = spec

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Make the view.

        Args:
            picture: a frame or a stack.
            rng: six numbers are drawn, whatever the settings, so that a setting never changes another one's draw.

        Returns:
            (C, crop_px, crop_px) float32.
        """
        spec, (down, right, mirror, *colour) = self.spec, rng.random(6)
        picture = resize(picture, spec)
        height, width = size_px(picture)
        top, left = int(down * (height - spec.crop_px + 1)), int(right * (width - spec.crop_px + 1))
        view = crop(picture, top, left, spec.crop_px)
        if spec.flip and mirror < 0.5:
            view = flip(view)
        if spec.stream == "spatial" and spec.jitter:
            view = jitter(view, 1 + spec.jitter * (2 * np.array(colour) - 1))
        return normalise(view, spec)


class TestViews:
    """The fixed views of a picture whose scores are averaged (paper, section 5)."""

    __test__ = False  # not a test of pytest's

    def __init__(self, spec: StreamSpec, *, crops: int):
        """`crops`: 1 the centre; 2 and its mirror; 5 the corners and the centre; 10 and their mirrors."""
        if crops not in (1, 2, 5, 10):
            raise ValueError(f"crops is {crops}; allowed: 1, 2, 5, 10")
        self.spec, self.crops = spec, crops

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Make the views: (crops, C, crop_px, crop_px) float32, the mirrored ones last."""
        picture = resize(picture, self.spec)
        side, (height, width) = self.spec.crop_px, size_px(picture)
        down, right = height - side, width - side
        corners = [(0, 0), (0, right), (down, 0), (down, right)] if self.crops >= 5 else []
        views = [crop(picture, *place, side) for place in [*corners, (down // 2, right // 2)]]
        if self.crops in (2, 10):
            views += [flip(view) for view in views]
        return np.stack([normalise(view, self.spec) for view in views])


def size_px(picture: np.ndarray) -> tuple[int, int]:
    """Height and width of a frame (uint8, channels last) or a stack (channels first)."""
    return picture.shape[:2] if picture.dtype == np.uint8 else picture.shape[1:]


def resize(picture: np.ndarray, spec: StreamSpec) -> np.ndarray:
    """Bring the short side to `resize_px` (0: as it is), and to no less than `crop_px`, keeping the aspect ratio.

    Shrinking averages areas, enlarging is bilinear. Flow values are scaled with the grid, x by the width's factor and y
    by the height's: they stay in pixels of the picture they belong to, as if flow had been computed at that size.
    """
    height, width = size_px(picture)
    short = max(spec.resize_px or min(height, width), spec.crop_px)
    if short == min(height, width):
        return picture
    factor = short / min(height, width)
    to_height, to_width = (max(short, round(side * factor)) for side in (height, width))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    if picture.dtype == np.uint8:
        return cv2.resize(picture, dsize=(to_width, to_height), interpolation=how)
    planes = [cv2.resize(plane, dsize=(to_width, to_height), interpolation=how) for plane in picture]
    scale = np.array([to_width / width, to_height / height] * (len(planes) // 2), np.float32)
    return np.stack(planes) * scale[:, None, None]


def crop(picture: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """The square of `side` pixels whose upper left corner is at (top, left)."""
    rows, columns = slice(top, top + side), slice(left, left + side)
    return picture[rows, columns] if picture.dtype == np.uint8 else picture[:, rows, columns]


def flip(picture: np.ndarray) -> np.ndarray:
    """Mirror left to right; in a stack the x components change their sign."""
    return picture[:, ::-1] if picture.dtype == np.uint8 else quantize.flip(picture)


def jitter(frame: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Change brightness, contrast and saturation, in this order.

    Args:
        frame: (H, W, 3) uint8 RGB.
        factors: (3,) float; 1 leaves as is. Contrast is around the mean grey of the frame, saturation around the grey
            of each pixel.

    Returns:
        (H, W, 3) uint8 RGB, clipped to 0..255.
    """
    brightness, contrast, saturation = (np.float32(factor) for factor in factors)
    view = frame * brightness
    view = (view - (view @ _GRAY).mean()) * contrast + (view @ _GRAY).mean()
    gray = (view @ _GRAY)[..., None]
    return np.rint((view - gray) * saturation + gray).clip(0, 255).astype(np.uint8)


def normalise(view: np.ndarray, spec: StreamSpec) -> np.ndarray:
    """A cropped picture as the network takes it.

    A frame loses ImageNet's mean and is divided by its standard deviation; a stack is divided by `flow_unit_px`.

    Returns:
        (C, H, W) float32.
    """
    if spec.stream == "temporal":
        return view * np.float32(1 / spec.flow_unit_px)
    scaled = view * (1 / (255 * IMAGENET_STD)) - IMAGENET_MEAN / IMAGENET_STD
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32)  # (H, W, C) => (C, H, W)
