"""Constants and sizes shared by all implementations of pyramids, derivatives and medians; no images here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

COARSE_BLUR = 1.25  # see `shrinking_sigmas_px`
DERIVATIVE = (1 / 12, -8 / 12, 0.0, 8 / 12, -1 / 12)
# images (and pyramid levels) of fewer pixels are computed in double precision: in narrow ones rounding may change the
# flow. TV-L1 also warps them more often (`tvl1_model.is_coarse`). (Brox on images one pixel wide is ill-conditioned in
# either precision.)
SMALL_PX = 2048
NARROW = 2.5  # aspect ratio above which a frame is a narrow strip; see `pyramid_sizes`
MEDIAN_GRAY = 16.0  # gray value difference at which a neighbor has half weight in the weighted median
MEDIAN_FLOOR = 0.1  # least factor of a neighbor of another gray value; keeps the median well conditioned
MEDIAN_SPREAD = 0.04  # the weighted median is the mean of the quantiles from 1/2 - this to 1/2 + this
RESTART_SIDE_PX = 48  # see `restart_level`; with 32 px some flashes still mislead, with 64 no fewer
MISMATCHED = 0.2  # mismatch from which a pair may start afresh; in pairs without a change of light it is mostly less
BETTER = 0.98  # it does so if its mismatch is below this share: where both starts lead to the same flow, they tie
TRUST_FLOOR = 0.05  # least confidence in a neighbor in the weighted median
MEDIAN_SPACING_PX = 3.0  # distance between the rings of neighbors at full size
MEDIAN_RINGS = ((1, 6, 0.0), (2, 8, 0.5), (3, 8, 0.0))  # radius in spacings, points, turn as a share of their distance
# weight factors of the pixel itself, which comes first, and the neighbors on each ring
MEDIAN_FACTORS = (1.0, *(math.exp(-0.5 * (ring / 3) ** 2) for ring, points, _ in MEDIAN_RINGS for _ in range(points)))


def median_offsets(scale: float) -> list[tuple[int, int]]:
    """Offsets (x, y) of the neighbors of the weighted median, the pixel itself first; see `warp.weighted_median`.

    They lie on three rings, so a few points cover a wide area. On a smaller pyramid level, `scale` times the full size,
    the spacing shrinks only by sqrt(scale). A coarse level finds motion that is too large for the next finer one; a
    wide median would remove small objects before that.
    """
    spacing_px = max(1.0, MEDIAN_SPACING_PX * math.sqrt(scale))
    offsets = [(0, 0)]
    for ring, points, turn in MEDIAN_RINGS:
        for k in range(points):
            angle = 2 * math.pi * (k + turn) / points
            radius = ring * spacing_px
            offsets.append((_whole(radius * math.cos(angle)), _whole(radius * math.sin(angle))))
    return offsets


def restart_level(sizes: Sequence[tuple[int, int]]) -> int | None:
    """Number of the level at which the flow is also computed afresh, from zero; None if there is none.

    Where light changes much (a flash, a fade), its own edge is the strongest structure on the coarsest levels, and
    their flow is so wrong that finer levels cannot repair it. So what they found is compared, for each pair, with what
    this level finds without them, by `warp.mismatch`. It is the coarsest level whose shorter side has RESTART_SIDE_PX.
    """
    large = [number for number, size in enumerate(sizes[:-1]) if min(size) >= RESTART_SIDE_PX]
    return large[-1] if large else None


def _whole(value: float) -> int:
    """Round to an integer, halves away from zero, so mirrored points stay mirrored despite rounding errors."""
    return int(math.copysign(math.floor(abs(value) + 0.5 + 1e-9), value))


def pyramid_sizes(height: int, width: int, *, step: float, min_side: int) -> list[tuple[int, int]]:
    """Sizes of the levels, finest first: each `step` times the one before, none with a side below `min_side`.

    The finest level is always included, however small: (240, 320) with step 0.5 and min_side 12 gives
    [(240, 320), (120, 160), (60, 80), (30, 40), (15, 20)], and (16, 1) gives [(16, 1)]. In a narrow strip, the long
    side goes on shrinking when the short one has reached `min_side`, because motion may be large along it: (24, 320)
    gives [(24, 320), (12, 160), (12, 80), (12, 40)].
    """
    sizes, least = [(height, width)], (min(height, min_side), min(width, min_side))
    while True:
        scale = step ** len(sizes)
        size = round(height * scale), round(width * scale)
        if min(size) < min_side and max(size) < NARROW * min_side:
            return sizes
        sizes.append(tuple(map(max, size, least)))


def shrinking_sigmas_px(sizes: Sequence[tuple[int, int]]) -> list[float]:
    """Sigma, in pixels, of the antialiasing Gaussian before each step from one pyramid size to the next.

    Below half the full size it is COARSE_BLUR times as large: what aliasing leaves of a texture too fine for a level
    moves differently there, and a flow that starts from that does not recover.
    """
    sigmas = []
    for finer, coarser in pairwise(sizes):
        ratio = min(small / large for small, large in zip(coarser, finer, strict=True))
        more = COARSE_BLUR if max(finer) < max(sizes[0]) / 2 else 1.0
        sigmas.append(more * 0.6 * math.sqrt(1 / ratio**2 - 1))
    return sigmas


def gaussian_taps(sigma_px: float) -> list[float]:
    """Weights of a Gaussian cut off at three sigma: an odd number, summing to 1; sigma 0 gives [1]."""
    if sigma_px <= 0:
        return [1.0]
    radius = max(1, math.ceil(3 * sigma_px))
    taps = [math.exp(-0.5 * (k / sigma_px) ** 2) for k in range(-radius, radius + 1)]
    return [tap / sum(taps) for tap in taps]
