"""Numbers that every implementation of a pyramid, a derivative or a median shares; nothing here touches an image."""

from __future__ import annotations

import math

DERIVATIVE = (1 / 12, -8 / 12, 0.0, 8 / 12, -1 / 12)
MEDIAN_GRAY = 12.0  # difference of gray values at which a neighbour counts half in the weighted median
MEDIAN_FLOOR = 0.1  # what a neighbour of another gray value counts still; keeps the median well conditioned
MEDIAN_SPREAD = 0.04  # the weighted median is the mean of the quantiles from 1/2 - this to 1/2 + this
_EVERY_THIRD = range(-6, 7, 3)
MEDIAN_TAPS = tuple(  # x offset, y offset and factor of the neighbours of the weighted median: 5 x 5 without corners
    (dx, dy, math.exp(-0.5 * (dx**2 + dy**2) / 6.0**2))
    for dy in _EVERY_THIRD
    for dx in _EVERY_THIRD
    if abs(dx) + abs(dy) < 12
)


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


def shrinking_sigma_px(finer: tuple[int, int], coarser: tuple[int, int]) -> float:
    """Sigma of the Gaussian that keeps the step from one pyramid size to the next free of aliasing."""
    ratio = min(small / large for small, large in zip(coarser, finer, strict=True))
    return 0.6 * math.sqrt(1 / ratio**2 - 1)


def gaussian_taps(sigma_px: float) -> list[float]:
    """Weights of a Gaussian cut off at three sigma, odd in number, with sum 1; sigma 0 gives [1]."""
    if sigma_px <= 0:
        return [1.0]
    radius = max(1, math.ceil(3 * sigma_px))
    taps = [math.exp(-0.5 * (k / sigma_px) ** 2) for k in range(-radius, radius + 1)]
    return [tap / sum(taps) for tap in taps]
