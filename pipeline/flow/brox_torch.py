"""Brox flow in plain torch, batched over pairs: the definition, for CUDA and wherever numba does not work."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.flow import sor, tvl1, warp
from pipeline.flow.brox_model import (
    DATA_EPSILON_PX,
    DOUBT,
    EDGE,
    FAR_PX,
    MIN_SIDE_PX,
    PRESMOOTH_PX,
    SMOOTH_EPSILON,
    STEEP,
    is_precise,
)
from pipeline.flow.filters import pyramid_sizes, restart_level
from pipeline.specs import FlowSpec


class _Constraints(NamedTuple):
    """Linear constraints a u + b v + c = 0 at every pixel, (N, 3, H, W): gray value, its x and its y derivative."""

    a: Tensor
    b: Tensor
    c: Tensor


@torch.inference_mode()
def flow_between(first: Tensor, second: Tensor, spec: FlowSpec) -> Tensor:
    """Flow of each pair, coarse to fine.

    Args:
        first, second: (N, H, W), gray values 0 to 255; with float64, all levels are computed in double precision.
        spec: the `brox_*` settings.

    Returns:
        (N, 2, H, W), pixels; float64 if the images are, else float32.
    """
    wanted = torch.float64 if first.dtype == torch.float64 else torch.float32
    first, second = (warp.blur(of.unsqueeze(1).double(), sigma_px=PRESMOOTH_PX) for of in (first, second))
    sizes = pyramid_sizes(*first.shape[-2:], step=spec.brox_scale_step, min_side=MIN_SIDE_PX)
    levels = list(zip(warp.pyramid(first, sizes), warp.pyramid(second, sizes), strict=True))
    flow = first.new_zeros(len(first), 2, *sizes[-1])
    for number, size in reversed(list(enumerate(sizes))):
        precision = torch.float64 if is_precise(size, sizes[0]) else wanted
        flow = warp.resize_flow(flow, size).to(precision)
        images, scale = [level.to(precision) for level in levels[number]], spec.brox_scale_step**number
        flow = _improved(flow, *images, spec, scale=scale)
        if number == restart_level(sizes):
            afresh = _improved(torch.zeros_like(flow), *images, spec, scale=scale)
            flow = torch.where(warp.is_better_afresh(*images, flow, afresh), afresh, flow)
    return flow.to(wanted)


def _improved(flow: Tensor, first: Tensor, second: Tensor, spec: FlowSpec, *, scale: float) -> Tensor:
    """The flow after all warps at one size, `scale` times the full size."""
    smoothness = _smoothness(first, spec.brox_smoothness)
    for turn in range(spec.brox_warps):
        constraints = _constraints(first, second, flow)
        for _ in range(spec.brox_iterations):
            flow = _step(flow, constraints, smoothness, spec)
        if turn < spec.brox_warps - 1:
            flow = warp.median3(warp.median3(flow))
    return _weighted_median(flow, first, _trust(flow, constraints, spec), scale=scale)


def _weighted_median(flow: Tensor, image: Tensor, trust: Tensor, *, scale: float) -> Tensor:
    if tvl1.triton_works(str(flow.device)):
        from pipeline.flow import tvl1_triton

        return tvl1_triton.weighted_median(flow, image, trust, scale=scale)
    return warp.weighted_median(flow, image, trust, scale=scale)


def _trust(flow: Tensor, constraints: _Constraints, spec: FlowSpec) -> Tensor:
    """Confidence in the flow, (N, 1, H, W) in (0, 1]: low where it violates the constraints, as at occluded points."""
    a, b, c = constraints
    distance = torch.addcmul(c, a, flow[:, :1]).addcmul_(b, flow[:, 1:]).abs_()
    cost = distance[:, :1] + spec.brox_gradient_weight * (distance[:, 1:2] + distance[:, 2:])
    return warp.trust(cost, doubt=DOUBT)


def _constraints(first: Tensor, second: Tensor, flow: Tensor) -> _Constraints:
    """Constancy of gray value and gradient, linearized about the flow (paper, section 3.2); the unknown is the flow.

    Each constraint is divided by sqrt(a^2 + b^2 + STEEP^2), which makes a residual roughly the distance in pixels from
    the constraint line. Its weight falls as that distance grows; otherwise a fade, or lamplight, would move flat areas
    by hundreds of pixels. Where the flow leads out of the image, there is no constraint.
    """
    warped, inside = warp.warp(second, flow)
    still, moved = torch.cat(warp.gradient(first), 1), torch.cat(warp.gradient(warped), 1)
    slope = (still + moved).mul_(0.5)
    bend_x, bend_y = warp.gradient(slope)  # derivatives of both slopes along x, and along y
    a, b = torch.cat((slope[:, :1], bend_x), 1), torch.cat((slope[:, 1:], bend_y), 1)
    c = torch.cat((warped - first, moved - still), 1)
    scale = a.square().addcmul_(b, b).add_(STEEP**2).rsqrt_().mul_(inside)
    far = (c * scale).square_().div_(FAR_PX**2)
    far[:, 1:] = far[:, 1:2] + far[:, 2:]  # the gradient's two together, as in their penalty
    scale = scale.div_(far.add_(1))
    a, b, c = a.mul_(scale), b.mul_(scale), c.mul_(scale)
    return _Constraints(a, b, c.addcmul_(a, flow[:, :1], value=-1).addcmul_(b, flow[:, 1:], value=-1))


def _step(flow: Tensor, constraints: _Constraints, smoothness: tuple[Tensor, Tensor], spec: FlowSpec) -> Tensor:
    """One inner fixed point iteration: compute the penalties at the current flow, then relax the linear system.

    Source: paper, section 3.2; here the unknown is the flow, not its increment.
    """
    matrix, right = _data_term(flow, constraints, spec)
    across, down = _smoothness_weights(flow, smoothness)
    return sor.solve(flow, across, down, matrix, right, sweeps=spec.brox_sweeps)


def _data_term(flow: Tensor, constraints: _Constraints, spec: FlowSpec) -> tuple[Tensor, Tensor]:
    """Matrix (N, 3, H, W) and right-hand side (N, 2, H, W) of the data term, penalties fixed at the current flow."""
    a, b, c = constraints
    square = torch.addcmul(c, a, flow[:, :1]).addcmul_(b, flow[:, 1:]).square_()
    gray = (square[:, :1] + DATA_EPSILON_PX**2).rsqrt_()
    gradient = (square[:, 1:2] + square[:, 2:] + DATA_EPSILON_PX**2).rsqrt_().mul_(spec.brox_gradient_weight)
    weight = torch.cat((gray, gradient, gradient), 1)
    weighted_a, weighted_b = weight * a, weight * b
    products = weighted_a * a, weighted_a * b, weighted_b * b, -weighted_a * c, -weighted_b * c
    sums = [product[:, :1] + product[:, 1:2] + product[:, 2:] for product in products]
    return torch.cat(sums[:3], 1), torch.cat(sums[3:], 1)


def _smoothness(first: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Weight of smoothness between neighbors along x, (N, 1, H, W - 1), and along y, (N, 1, H - 1, W)."""
    differences = first[..., 1:] - first[..., :-1], first[..., 1:, :] - first[..., :-1, :]
    across, down = (d.abs_().mul_(-EDGE).exp_().mul_(weight) for d in differences)
    return across, down


def _smoothness_weights(flow: Tensor, smoothness: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Diffusivity between neighbors, in the shapes of `smoothness`, penalties fixed at the current flow.

    It is smoothness / sqrt(|grad u|^2 + |grad v|^2 + epsilon^2) halfway between two neighbors. The derivative along
    the line joining them is their difference; the square of the other derivative is the mean of its squares at both.
    """
    across, down = flow[..., 1:] - flow[..., :-1], flow[..., 1:, :] - flow[..., :-1, :]
    return (
        _diffusivity(across, _central(down, dim=-2), smoothness[0], dim=-1),
        _diffusivity(down, _central(across, dim=-1), smoothness[1], dim=-2),
    )


def _diffusivity(along: Tensor, other: Tensor, smoothness: Tensor, *, dim: int) -> Tensor:
    """Weights from the differences `along` dim and the derivative in the `other` direction at every pixel."""
    along, other = _square_length(along), _square_length(other)
    size = along.shape[dim]
    between = (other.narrow(dim, 0, size) + other.narrow(dim, 1, size)).mul_(0.5)
    return between.add_(along).add_(SMOOTH_EPSILON**2).rsqrt_().mul_(smoothness)


def _central(difference: Tensor, *, dim: int) -> Tensor:
    """Central derivative at every pixel, from the differences between neighbors, which are zero across the border."""
    padded = functional.pad(difference, (1, 1) if dim == -1 else (0, 0, 1, 1))
    size = difference.shape[dim] + 1
    return (padded.narrow(dim, 0, size) + padded.narrow(dim, 1, size)).mul_(0.5)


def _square_length(field: Tensor) -> Tensor:
    return field[:, :1].square().addcmul_(field[:, 1:], field[:, 1:])
