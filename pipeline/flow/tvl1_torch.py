"""TV-L1 in plain torch, batched over pairs: the definition, also used where no faster implementation works.

It works on any device and in any precision. In float64 it is the reference for the other two implementations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.flow import warp
from pipeline.flow.filters import pyramid_sizes, restart_level
from pipeline.flow.tvl1_model import (
    DOUBT,
    FAR_PX,
    FLAT,
    MIN_SIDE_PX,
    PRESMOOTH_PX,
    SATURATION,
    UPDATE_PX,
    box_of,
    is_coarse,
    medians,
)
from pipeline.specs import FlowSpec


@torch.inference_mode()
def flow_between(first: Tensor, second: Tensor, spec: FlowSpec) -> Tensor:
    """Flow of each pair, coarse to fine.

    Args:
        first, second: (N, H, W), gray values 0 to 255; with float64, all levels are computed in double precision.
        spec: the `tvl1_*` settings.

    Returns:
        (N, 2, H, W), pixels; float64 if the images are, else float32.
    """
    wanted = torch.float64 if first.dtype == torch.float64 else torch.float32
    first, second = (warp.blur(of.unsqueeze(1).double(), sigma_px=PRESMOOTH_PX) for of in (first, second))
    sizes = pyramid_sizes(*first.shape[-2:], step=spec.tvl1_scale_step, min_side=MIN_SIDE_PX)
    levels = list(zip(warp.pyramid(first, sizes), warp.pyramid(second, sizes), strict=True))
    state = _State.zero(first.new_zeros(len(first), 2, *sizes[-1]), len(box_of(spec)))
    for number, size in reversed(list(enumerate(sizes))):
        coarse = is_coarse(size, sizes[0])
        precision = torch.float64 if coarse else wanted
        state = state.resized(size).to(precision)
        images, how = [level.to(precision) for level in levels[number]], {"scale": spec.tvl1_scale_step**number}
        _improve(state, *images, spec, **how, coarse=coarse)
        if number == restart_level(sizes):
            afresh = _State.zero(torch.zeros_like(state.flow), len(box_of(spec)))
            _improve(afresh, *images, spec, **how, coarse=coarse)
            state = state.replaced(afresh, warp.is_better_afresh(*images, state.flow, afresh.flow))
    return state.flow.to(wanted)


class _State:
    """State that passes from level to level: the flow (N, 2, H, W), and the duals of smoothness and of the data term.

    `dual_x` and `dual_y` (N, 2, H, W) belong to the forward differences of both flow components. They are zero in the
    last column and row, which have no such difference. `dual_data` is (N, C, H, W).
    """

    def __init__(self, flow: Tensor, dual_x: Tensor, dual_y: Tensor, dual_data: Tensor):
        self.flow, self.dual_x, self.dual_y, self.dual_data = flow, dual_x, dual_y, dual_data

    @classmethod
    def zero(cls, flow: Tensor, channels: int) -> _State:
        data = flow.new_zeros(len(flow), channels, *flow.shape[-2:])
        return cls(flow, torch.zeros_like(flow), torch.zeros_like(flow), data)

    def resized(self, size: tuple[int, int]) -> _State:
        """The state on a finer grid; the coarse duals are a better start than zero."""
        if self.flow.shape[-2:] == size:
            return self
        dual_x, dual_y, data = (warp.resize(dual, size) for dual in (self.dual_x, self.dual_y, self.dual_data))
        dual_x[..., -1], dual_y[..., -1, :] = 0, 0
        return _State(warp.resize_flow(self.flow, size), dual_x, dual_y, data)

    def to(self, precision: torch.dtype) -> _State:
        """The state in this precision."""
        return _State(*(field.to(precision) for field in self._fields()))

    def replaced(self, other: _State, where: Tensor) -> _State:
        """The other state for the pairs named by `where`, (N, 1, 1, 1) bool."""
        return _State(*(torch.where(where, b, a) for a, b in zip(self._fields(), other._fields(), strict=True)))

    def _fields(self) -> tuple[Tensor, ...]:
        return self.flow, self.dual_x, self.dual_y, self.dual_data


def _improve(state: _State, first: Tensor, second: Tensor, spec: FlowSpec, *, scale: float, coarse: bool) -> None:
    """Improve the flow at one size, `scale` times the full size: warp, solve, filter, several times."""
    still, moving = _channels(first, spec), _channels(second, spec)
    still_x, still_y = warp.gradient(still)
    for weighted in medians(spec, coarse=coarse):
        warped, inside = warp.warp(moving, state.flow)
        slope_x, slope_y = warp.gradient(warped)
        slope_x = slope_x.add_(still_x).mul_(0.5).mul_(inside)
        slope_y = slope_y.add_(still_y).mul_(0.5).mul_(inside)
        share = 1 / (1 + (slope_x.square() + slope_y.square()) / SATURATION**2).sqrt()
        share /= 1 + ((warped - still) * share / (SATURATION * FAR_PX)).square()
        slope_x, slope_y = slope_x.mul_(share), slope_y.mul_(share)
        constant = (warped - still) * share - slope_x * state.flow[:, :1] - slope_y * state.flow[:, 1:]
        _solve(state, slope_x, slope_y, constant, spec)
        if weighted:
            trust = _trust(state.flow, slope_x, slope_y, constant, spec)
            state.flow = warp.weighted_median(state.flow, first, trust, scale=scale)
        else:
            state.flow = warp.median3(state.flow)


def _channels(images: Tensor, spec: FlowSpec) -> Tensor:
    """Channels that stay constant along the motion, (N, C, H, W): the gradient, the gray value, or both."""
    parts = list(warp.gradient(images)) if spec.tvl1_gradient_weight else []
    return torch.cat([*parts, images] if spec.tvl1_brightness_weight else parts, 1)


def _solve(state: _State, slope_x: Tensor, slope_y: Tensor, constant: Tensor, spec: FlowSpec) -> None:
    """Primal-dual iterations on the convex problem of one warping (Chambolle and Pock 2011, algorithm 1)."""
    box = _box(constant, spec)
    steep_x, steep_y = slope_x.abs(), slope_y.abs()
    step_data = 1 / (steep_x + steep_y + FLAT)
    step = torch.cat([1 / (4 + steep.sum(1, keepdim=True)) for steep in (steep_x, steep_y)], 1)
    flow, ahead = state.flow, state.flow
    along_x, along_y = torch.zeros_like(flow), torch.zeros_like(flow)
    for _ in range(spec.tvl1_iterations):
        torch.sub(ahead[..., 1:], ahead[..., :-1], out=along_x[..., :-1])
        torch.sub(ahead[..., 1:, :], ahead[..., :-1, :], out=along_y[..., :-1, :])
        state.dual_x.add_(along_x, alpha=0.5)
        state.dual_y.add_(along_y, alpha=0.5)
        length = (state.dual_x.square() + state.dual_y.square()).sum(1, keepdim=True).sqrt_()
        shrink = 1 / length.clamp_(min=1)
        state.dual_x.mul_(shrink)
        state.dual_y.mul_(shrink)

        residual = constant + slope_x * ahead[:, :1] + slope_y * ahead[:, 1:]
        data = state.dual_data.addcmul_(step_data, residual)
        torch.minimum(torch.maximum(data, -box, out=data), box, out=data)

        descent = state.dual_x + state.dual_y
        descent[..., 1:] -= state.dual_x[..., :-1]
        descent[..., 1:, :] -= state.dual_y[..., :-1, :]
        for component, slope in enumerate((slope_x, slope_y)):
            for channel in range(data.shape[1]):
                descent[:, component] -= data[:, channel] * slope[:, channel]
        before, flow = flow, flow + step * descent
        ahead = 2 * flow - before
    state.flow = state.flow + (flow - state.flow).clamp_(-UPDATE_PX, UPDATE_PX)


def _trust(flow: Tensor, slope_x: Tensor, slope_y: Tensor, constant: Tensor, spec: FlowSpec) -> Tensor:
    """Confidence in the flow, (N, 1, H, W) in (0, 1]: low where a residual remains, as at occluded points.

    Where the flow leads out of the image, the slopes are 0 but the constant is not, so confidence is low there too.
    """
    residual = constant + slope_x * flow[:, :1] + slope_y * flow[:, 1:]
    cost = (residual.abs() * _box(constant, spec)).sum(1, keepdim=True)
    return warp.trust(cost, doubt=DOUBT)


def _box(like: Tensor, spec: FlowSpec) -> Tensor:
    return like.new_tensor(box_of(spec)).view(1, -1, 1, 1)
