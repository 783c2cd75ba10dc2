"""Pyramids, warping and filtering of images and flow, as batches of torch tensors.

Everything here acts on each image of a batch by itself, from shifted views and elementwise arithmetic (no convolution
library, no reduction over the batch), so that an image gives the same bits alone and in any batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

DERIVATIVE = (1 / 12, -8 / 12, 0.0, 8 / 12, -1 / 12)


def pyramid_sizes(height: int, width: int, *, step: float, min_side: int) -> list[tuple[int, int]]:
    """Sizes of the levels, finest first: each `step` times the one before, none with a side below `min_side`.

    The finest level is always there, however small: (240, 320) with step 0.5 and min_side 12 gives
    [(240, 320), (120, 160), (60, 80), (30, 40), (15, 20)], and (16, 1) gives [(16, 1)].
    """
    sizes = [(height, width)]
    while True:
        scale = step ** len(sizes)
        size = round(height * scale), round(width * scale)
        if min(size) < min_side:
            return sizes
        sizes.append(size)


def pyramid(images: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """The images at every size, each level blurred and resized from the one before.

    Args:
        images: (N, C, H, W) float32.
        sizes: (height, width) of the levels, finest first, as from `pyramid_sizes`.

    Returns:
        One (N, C, height, width) float32 tensor a level, finest first.
    """
    levels = [images]
    for height, width in sizes[1:]:
        finer = levels[-1]
        ratio = min(height / finer.shape[-2], width / finer.shape[-1])
        smooth = blur(finer, sigma_px=0.6 * math.sqrt(1 / ratio**2 - 1))
        levels.append(functional.interpolate(smooth, (height, width), mode="bilinear", align_corners=False))
    return levels


def blur(images: Tensor, *, sigma_px: float) -> Tensor:
    """Gaussian blur of (N, C, H, W) images, cut off at three sigma, borders repeated; sigma 0 changes nothing."""
    if sigma_px <= 0:
        return images
    radius = max(1, math.ceil(3 * sigma_px))
    taps = [math.exp(-0.5 * (k / sigma_px) ** 2) for k in range(-radius, radius + 1)]
    taps = [tap / sum(taps) for tap in taps]
    return _filter(_filter(images, taps, dim=-1), taps, dim=-2)


def gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives along x and y of (N, C, H, W) images by the five-point rule, per pixel, borders repeated."""
    return _filter(images, DERIVATIVE, dim=-1), _filter(images, DERIVATIVE, dim=-2)


def warp(images: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Look up each image at the points that the flow leads to, by bicubic interpolation.

    A zero flow gives the image back exactly. Points outside take the value of the nearest border point.

    Args:
        images: (N, C, H, W) float32.
        flow: (N, 2, H, W) float32, pixels; channel 0 is x (right positive), 1 is y (down positive).

    Returns:
        The warped images, (N, C, H, W) float32, and (N, 1, H, W) bool, true where the point lies inside the image.
        warped[n, c, y, x] is images[n, c] at (x + flow[n, 0, y, x], y + flow[n, 1, y, x]).

    Source: R. Keys, Cubic convolution interpolation for digital image processing, IEEE ASSP 29(6), 1981, a = -1/2.
    """
    count, channels, height, width = images.shape
    x = flow[:, 0] + torch.arange(width, device=flow.device, dtype=flow.dtype)
    y = flow[:, 1] + torch.arange(height, device=flow.device, dtype=flow.dtype).unsqueeze(1)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = x.clamp_(0, width - 1), y.clamp_(0, height - 1)
    left, top = x.floor(), y.floor()
    along_x, along_y = _cubic_taps(x.sub_(left)), _cubic_taps(y.sub_(top))

    padded = functional.pad(images, (1, 2, 1, 2), mode="replicate").flatten(2)
    stride, last = width + 3, (width + 3) * 3 + 3
    corner = (top.long() * stride).add_(left.long()).flatten(1).unsqueeze(1).expand(-1, channels, -1)
    warped = torch.zeros_like(images)
    for row in range(4):
        line = torch.zeros_like(images)
        for column in range(4):  # one index for all 16 taps: the padded image is shifted instead
            shift = row * stride + column
            tap = padded[..., shift : padded.shape[-1] - last + shift].gather(2, corner)
            line.addcmul_(tap.view_as(images), along_x[column].unsqueeze(1))
        warped.addcmul_(line, along_y[row].unsqueeze(1))
    return warped, inside.unsqueeze(1)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a flow field and rescale its vectors with the grid, so that they stay right in pixels.

    Args:
        flow: (N, 2, H, W) float32, pixels of its own grid.
        size: (height, width) of the new grid.

    Returns:
        (N, 2, height, width) float32, pixels of the new grid.
    """
    height, width = size
    resized = functional.interpolate(flow, size, mode="bilinear", align_corners=False)
    resized[:, 0] *= width / flow.shape[-1]
    resized[:, 1] *= height / flow.shape[-2]
    return resized


def median3(images: Tensor) -> Tensor:
    """Median of the 3 x 3 neighbourhood of each pixel of (N, C, H, W) images, borders repeated.

    Sorts every column of three, then takes the median of (largest low, middle middle, smallest high): 18 comparisons.
    """
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    above, here, below = padded[..., :-2, :], padded[..., 1:-1, :], padded[..., 2:, :]
    less, more = torch.minimum(above, here), torch.maximum(above, here)
    low, rest = torch.minimum(less, below), torch.maximum(less, below)
    middle, high = torch.minimum(more, rest), torch.maximum(more, rest)
    largest_low = torch.maximum(torch.maximum(low[..., :-2], low[..., 1:-1]), low[..., 2:])
    smallest_high = torch.minimum(torch.minimum(high[..., :-2], high[..., 1:-1]), high[..., 2:])
    middle = _median_of_three(middle[..., :-2], middle[..., 1:-1], middle[..., 2:])
    return _median_of_three(largest_low, middle, smallest_high)


def _median_of_three(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def _cubic_taps(t: Tensor) -> list[Tensor]:
    """Weights of the neighbours at -1, 0, 1, 2 of a point at t in [0, 1); exactly 0, 1, 0, 0 for t = 0."""
    return [
        t * (t * (1 - 0.5 * t) - 0.5),
        t * t * (1.5 * t - 2.5) + 1,
        t * (t * (2 - 1.5 * t) + 0.5),
        t * t * (0.5 * t - 0.5),
    ]


def _filter(images: Tensor, taps, *, dim: int) -> Tensor:
    """Correlate along one dimension with an odd number of taps, borders repeated."""
    radius, size = len(taps) // 2, images.shape[dim]
    padding = (radius, radius, 0, 0) if dim == -1 else (0, 0, radius, radius)
    padded = functional.pad(images, padding, mode="replicate")
    result = torch.zeros_like(images)
    for k, tap in enumerate(taps):
        if tap:
            result.add_(padded.narrow(dim, k, size), alpha=tap)
    return result
