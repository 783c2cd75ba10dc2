"""The numbers of TV-L1 that are no settings, shared by its implementations."""

from __future__ import annotations

from pipeline.specs import FlowSpec

MIN_SIDE_PX = 12  # of the coarsest pyramid level
PRESMOOTH_PX = 0.75  # sigma of the Gaussian before everything else
STEEPNESS = 0.05  # smoothness counts half where the gray value changes by 1 / STEEPNESS per pixel
BALANCE = 0.5  # dual over primal step; scaling both by it keeps their product, and so convergence
FLAT = 1e-3  # gray values per pixel; keeps the step of the data term finite where the image is flat
UPDATE_PX = 1.0  # a warping changes no component by more: farther away its linear model means nothing


def box_of(spec: FlowSpec) -> list[float]:
    """Bound of the data term's dual variable in each channel, which is the weight of that channel's residual."""
    gradient, brightness = spec.tvl1_gradient_weight, spec.tvl1_brightness_weight
    return [gradient] * 2 * (gradient > 0) + [brightness] * (brightness > 0)
