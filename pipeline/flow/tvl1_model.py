"""The numbers of TV-L1 that are no settings, shared by its implementations."""

from __future__ import annotations

from pipeline.specs import FlowSpec

MIN_SIDE_PX = 12  # of the coarsest pyramid level
PRESMOOTH_PX = 0.9  # sigma of the Gaussian before everything else
SATURATION = 3.0  # slope, gray values per pixel, well above which a residual counts by its distance in pixels
FLAT = 1e-3  # keeps the step of the data term finite where the image is flat
UPDATE_PX = 1.0  # a warping changes no component by more: farther away its linear model means nothing
DOUBT = 0.6  # cost of the data term left at a pixel at which its flow counts half in the weighted median
PRECISE_SHARE = 0.06  # levels of fewer of the image's pixels are computed in double precision


def box_of(spec: FlowSpec) -> list[float]:
    """Bound of the data term's dual variable in each channel, which is the weight of that channel's residual."""
    gradient, brightness = spec.tvl1_gradient_weight, spec.tvl1_brightness_weight
    return [gradient] * 2 * (gradient > 0) + [brightness] * (brightness > 0)


def is_precise(size: tuple[int, int], full: tuple[int, int]) -> bool:
    """Whether a pyramid level (height, width) of an image of full size is computed in double precision.

    An error at a coarse level may grow from level to level, a hundred- or a thousandfold where matches are ambiguous.
    The coarse levels are next to no work, and once they are exact, what single precision does afterwards grew to
    about a hundredth of a pixel at most in all images that were tried but pure noise (docs/results.md).
    """
    return size[0] * size[1] < PRECISE_SHARE * full[0] * full[1]
