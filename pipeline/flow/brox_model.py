"""The constants of Brox flow that are not settings, shared by its implementations."""

from __future__ import annotations

from pipeline.flow.filters import SMALL_PX

MIN_SIDE_PX = 10  # of the coarsest pyramid level; lower loses repeating textures, higher loses large pans
PRESMOOTH_PX = 0.7
DATA_EPSILON_PX = 0.2  # residuals well below it are penalized quadratically, well above it linearly
SMOOTH_EPSILON = 0.001  # the same for differences of neighboring vectors
EDGE = 0.015  # smoothness between pixels whose gray values differ by d has weight exp(-EDGE d)
STEEP = 1.5  # slope, gray values per pixel, well above which a residual is measured as a distance in pixels
FAR_PX = 3.0  # a residual of this many pixels has half weight: one so large is a change of light or an occlusion
DOUBT = 3.0  # violation of the constraints at which a pixel's flow has half weight in the weighted median
RELAXATION = 1.9  # over-relaxation of the linear solver; anything below 2 converges
SINGULAR = 1e-12  # least determinant to divide by; only a pixel with neither data nor neighbors has a smaller one
PRECISE_SHARE = 0.7  # levels with less than this share of the image's pixels are computed in double precision


def is_precise(size: tuple[int, int], full: tuple[int, int]) -> bool:
    """Whether the pyramid level of `size` (height, width) is computed in double precision; `full` is the image's size.

    Where matches are ambiguous, errors grow from level to level: in single precision throughout, results on real frames
    were up to 8 px off; with exact coarse levels, at most 0.005 px on those. Where matches stay ambiguous, as across
    hard cuts, even the last bits of double precision may move the flow by pixels (docs/experiments.md). It costs a
    tenth more.
    """
    return size[0] * size[1] < max(PRECISE_SHARE * full[0] * full[1], SMALL_PX)
