"""Pyramids, warping and filtering of images and flow, as batches of torch tensors.

Everything here acts on each image of a batch separately, by elementwise arithmetic on shifted views (no convolution
library, no reduction over the batch), so an image gives the same bits alone and in any batch. Results have the type of
the arguments, float32 or float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.flow.filters import (
    BETTER,
    DERIVATIVE,
    MEDIAN_FACTORS,
    MEDIAN_FLOOR,
    MEDIAN_GRAY,
    MEDIAN_SPREAD,
    MISMATCHED,
    TRUST_FLOOR,
    gaussian_taps,
    median_offsets,
    shrinking_sigmas_px,
)


def pyramid(images: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """The images at every size, each level blurred and resized from the previous one.

    Args:
        images: (N, C, H, W) float.
        sizes: (height, width) of the levels, finest first, as from `pyramid_sizes`.

    Returns:
        One (N, C, height, width) tensor per level, finest first.
    """
    levels = [images]
    for size, sigma_px in zip(sizes[1:], shrinking_sigmas_px(sizes), strict=True):
        levels.append(resize(blur(levels[-1], sigma_px=sigma_px), size))
    return levels


def blur(images: Tensor, *, sigma_px: float) -> Tensor:
    """Gaussian blur of (N, C, H, W) images, cut off at three sigma, borders repeated; sigma 0 changes nothing."""
    if sigma_px <= 0:
        return images
    taps = gaussian_taps(sigma_px)
    return _filter(_filter(images, taps, dim=-1), taps, dim=-2)


def gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives along x and y of (N, C, H, W) images by the five-point stencil, per pixel, borders repeated."""
    return _filter(images, DERIVATIVE, dim=-1), _filter(images, DERIVATIVE, dim=-2)


def warp(images: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Sample each image at the points that the flow leads to, by bicubic interpolation.

    A zero flow returns the image exactly. Points outside take the value of the nearest border point.

    Args:
        images: (N, C, H, W) float.
        flow: (N, 2, H, W) float, pixels; channel 0 is x (right positive), 1 is y (down positive).

    Returns:
        The warped images, (N, C, H, W), and a mask, (N, 1, H, W), which is 1 where the point lies inside the image and
        falls to 0 over one pixel outside.
        warped[n, c, y, x] is images[n, c] at (x + flow[n, 0, y, x], y + flow[n, 1, y, x]).

    Source: R. Keys, Cubic convolution interpolation for digital image processing, IEEE ASSP 29(6), 1981, a = -1/2.
    """
    count, channels, height, width = images.shape
    left, across, out_x = _landing(flow[:, 0], torch.arange(width, device=flow.device, dtype=flow.dtype))
    top, down, out_y = _landing(flow[:, 1], torch.arange(height, device=flow.device, dtype=flow.dtype).unsqueeze(1))
    inside = (1 - out_x - out_y).clamp_(min=0)
    along_x, along_y = _cubic_taps(across), _cubic_taps(down)

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


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, H, W) images bilinearly, with the grids aligned at the outer edges of their pixels."""
    return functional.interpolate(images, size, mode="bilinear", align_corners=False)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a flow field and rescale its vectors with the grid, so they stay correct in pixels.

    Args:
        flow: (N, 2, H, W) float, pixels of its own grid.
        size: (height, width) of the new grid.

    Returns:
        (N, 2, height, width), pixels of the new grid.
    """
    height, width = size
    resized = resize(flow, size)
    resized[:, 0] *= width / flow.shape[-1]
    resized[:, 1] *= height / flow.shape[-2]
    return resized


def median3(images: Tensor) -> Tensor:
    """Median of the 3 x 3 neighborhood of each pixel of (N, C, H, W) images, borders repeated.

    Sorts every column of three, then takes the median of (largest low, median of the middles, smallest high): 18
    minima and maxima.
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


def weighted_median(flow: Tensor, image: Tensor, trust: Tensor, *, scale: float) -> Tensor:
    """Weighted median of the flow around each pixel; neighbors of similar gray value and high trust weigh more.

    Motion edges are where image edges are. At an edge, this takes the flow of the side that has the pixel's gray value;
    where a pixel is occluded in the second image, it takes the flow of neighbors that are not. The neighbors are
    `median_offsets(scale)`, borders repeated. The weight of a neighbor is its factor (MEDIAN_FACTORS) times its trust
    times floor + (1 - floor) / (1 + (difference of gray values / MEDIAN_GRAY)^4), where floor is MEDIAN_FLOOR. The
    result is the mean of all quantiles closer than MEDIAN_SPREAD to one half, so it depends continuously on its input,
    whereas the median itself jumps when weights pass one half. No rounding error in the flow is amplified: the result
    never changes by more than the flow does.

    Args:
        flow: (N, 2, H, W) float, pixels.
        image: (N, 1, H, W) float, gray values 0 to 255.
        trust: (N, 1, H, W) float, above 0: confidence in the flow at each pixel.
        scale: size of this pyramid level, 1 at full size.

    Returns:
        (N, 2, H, W) of the same type.

    Source: Sun, Roth, Black, Secrets of optical flow estimation and their principles, CVPR 2010 (there in a dense
    window of 15 x 15, with occlusion in place of trust; the sparse rings are ours: as wide, at a tenth of the cost).
    """
    values, weights = _neighbors(flow, image, trust, scale)
    below = [torch.zeros_like(flow) for _ in values]
    for later in range(len(values)):
        for earlier in range(later):  # of equal values, the earlier counts as below
            less = values[earlier] <= values[later]
            below[later] += weights[earlier] * less
            below[earlier] += weights[later] * ~less
    total = sum(weights)
    low, high = total * (0.5 - MEDIAN_SPREAD), total * (0.5 + MEDIAN_SPREAD)
    mean = torch.zeros_like(flow)
    for value, weight, under in zip(values, weights, below, strict=True):
        mean += value * (torch.minimum(under + weight, high) - torch.maximum(under, low)).clamp_(min=0)
    return mean / (high - low)


def trust(cost: Tensor, *, doubt: float) -> Tensor:
    """Confidence in a flow in the weighted median, in (0, 1], from the remaining cost of its data term.

    It is about one half where the cost is `doubt`, and never below `TRUST_FLOOR`.
    """
    return TRUST_FLOOR + (1 - TRUST_FLOOR) / (1 + (cost / doubt).square())


def mismatch(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """How badly the flow explains the second image, (N,) in [0, 1]: the mean over all pixels.

    It is a pixel's difference of gradients as a share of their sizes, which a change of light changes little, and one
    half where the flow leads out of the image: large pans must not count as bad, nor flow that leads nowhere as good.

    Args:
        first, second: (N, 1, H, W) float, gray values 0 to 255.
        flow: (N, 2, H, W) float, pixels.
    """
    moved, inside = warp(second, flow)
    pairs = list(zip(gradient(first), gradient(moved), strict=True))
    apart = sum((still - there).abs() for still, there in pairs)
    steep = sum(still.abs() + there.abs() for still, there in pairs)
    each = 0.5 + inside * (apart / (steep + 1) - 0.5)
    whole = (each.double() * 2**32).round().long()  # the sum of integers has the same bits in any order and batch
    return whole.sum((1, 2, 3)).double() / (2**32 * each[0].numel())


def is_better_afresh(first: Tensor, second: Tensor, flow: Tensor, afresh: Tensor) -> Tensor:
    """For which pairs the flow computed afresh replaces the other, (N, 1, 1, 1) bool; see `filters.restart_level`."""
    found, other = (mismatch(first, second, of) for of in (flow, afresh))
    return ((found > MISMATCHED) & (other < BETTER * found)).view(-1, 1, 1, 1)


def _neighbors(flow: Tensor, image: Tensor, trust: Tensor, scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """Flow and weight of each neighbor in the weighted median."""
    height, width = flow.shape[-2:]
    offsets = median_offsets(scale)
    reach = max(abs(along) for offset in offsets for along in offset)
    around, gray, trusted = (functional.pad(field, (reach,) * 4, mode="replicate") for field in (flow, image, trust))
    values, weights = [], []
    for (dx, dy), factor in zip(offsets, MEDIAN_FACTORS, strict=True):
        there = (..., slice(reach + dy, reach + dy + height), slice(reach + dx, reach + dx + width))
        likeness = 1 / (1 + ((gray[there] - image) / MEDIAN_GRAY).square().square())
        values.append(around[there])
        weights.append(factor * trusted[there] * (MEDIAN_FLOOR + (1 - MEDIAN_FLOOR) * likeness))
    return values, weights


def _median_of_three(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def _landing(motion: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where points land along one axis: the pixel before, the fraction beyond it in [0, 1], the distance outside.

    Args:
        motion: (N, H, W) float, pixels.
        start: the pixels 0 ... size - 1, in a shape that broadcasts.

    The fraction is taken from the motion alone. The fraction of start + motion would lose as many bits as `start` has:
    at pixel 500, float32 rounds to 3e-5 px, which an ambiguous match amplifies a thousandfold.
    """
    last, whole = start.numel() - 1, motion.floor()
    fraction, before = motion - whole, start + whole
    outside = (-before - fraction).clamp_(min=0) + (before - last + fraction).clamp_(min=0)
    fraction.masked_fill_((before < 0) | (before >= last), 0)
    return before.clamp_(0, last), fraction, outside


def _cubic_taps(t: Tensor) -> list[Tensor]:
    """Weights of the neighbors at -1, 0, 1, 2 of a point at t in [0, 1); exactly 0, 1, 0, 0 for t = 0."""
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
