"""The constants of TV-L1 that are not settings, shared by its implementations."""

from __future__ import annotations

from pipeline.flow.filters import SMALL_PX
from pipeline.specs import FlowSpec

# of the coarsest pyramid level: with 12, a pan of 30 px is mostly lost in frames of 180 x 144; with 8, it never was;
# with 6, textures with a single range of sizes are lost more often
MIN_SIDE_PX = 8
PRESMOOTH_PX = 0.9  # sigma of the Gaussian before everything else
SATURATION = 3.0  # slope, gray values per pixel, well above which a residual is measured as a distance in pixels
FAR_PX = 4.0  # a residual of this many pixels has half weight: one so large is a change of light or an occlusion
FLAT = 1e-3  # keeps the step of the data term finite where the image is flat
UPDATE_PX = 1.0  # a warping changes no component by more, because its linear model does not hold beyond that
DOUBT = 0.6  # remaining cost of the data term at which a pixel's flow has half weight in the weighted median
COARSE_SHARE = 0.06  # levels with less than this share of the image's pixels are coarse; so are very small ones


def box_of(spec: FlowSpec) -> list[float]:
    """Bound of the data term's dual variable in each channel: the weight of that channel's residual."""
    gradient, brightness = spec.tvl1_gradient_weight, spec.tvl1_brightness_weight
    return [weight for weight in (gradient, gradient, brightness) if weight > 0]


def is_coarse(size: tuple[int, int], full: tuple[int, int]) -> bool:
    """Whether the pyramid level of `size` (height, width) is computed with more care; `full` is the image's size.

    A coarse level has more warpings, each with a weighted median, and double precision. What it gets wrong, such as
    large motion of small objects, finer levels cannot repair; and a difference of rounding may grow from level to
    level, a hundred- or thousandfold where matches are ambiguous. With the coarse levels exact, single precision on the
    finer ones led to errors of about a hundredth of a pixel at most in all images tried, except pure noise.
    """
    return size[0] * size[1] < max(COARSE_SHARE * full[0] * full[1], SMALL_PX)


def medians(spec: FlowSpec, *, coarse: bool) -> list[bool]:
    """For each warping of a pyramid level: whether the weighted median follows, or else that of 3 x 3 pixels."""
    return [True] * spec.tvl1_coarse_warps if coarse else [False] * (spec.tvl1_warps - 1) + [True]
