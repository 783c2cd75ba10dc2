"""TV-L1 optical flow of many image pairs at once, on the CPU and on CUDA."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.flow import warp
from pipeline.specs import FlowSpec

DUAL_STEP = 0.25  # the largest for which the dual iteration converges
MIN_SIDE_PX = 12  # of the coarsest pyramid level
PRESMOOTH_PX = 0.5
FLAT = 1e-3  # squared gradient, (gray values per pixel)^2, far below which a pixel says nothing about motion
PIXELS_AT_ONCE = {"cpu": 320 * 240, "cuda": 128 * 320 * 240}


def between(
    first: np.ndarray | Tensor, second: np.ndarray | Tensor, spec: FlowSpec, *, device: str
) -> np.ndarray | Tensor:
    """Flow from each first image to its second image.

    Args:
        first, second: (N, H, W) uint8, gray; numpy arrays, or tensors on the device.
        spec: weights and numbers of iterations (`tvl1_*`), and `batch_pairs`, which does not change the result.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        (N, 2, H, W) float32, pixels; channel 0 is x (right positive), 1 is y (down positive). On CUDA it is a tensor,
        on the CPU a numpy array. Equal images give exactly 0, and a pair gives the same bits alone as in a batch.

    Source: Zach, Pock, Bischof, A duality based approach for realtime TV-L1 optical flow, DAGM 2007. We differ in
    that the image is warped several times a level, with the flow median filtered after each (Wedel et al. 2009), the
    image gradient is the mean of the first and the warped second image's, and a fixed number of iterations is done,
    so that no pair waits for, or is cut short by, another.
    """
    count, height, width = first.shape
    flow = torch.empty((count, 2, height, width), device=device)
    pairs = spec.batch_pairs or max(1, PIXELS_AT_ONCE[torch.device(device).type] // (height * width))
    for start in range(0, count, pairs):
        part = slice(start, start + pairs)
        flow[part] = _coarse_to_fine(_images(first[part], device), _images(second[part], device), spec)
    return flow if flow.is_cuda else flow.numpy()


def _images(gray: np.ndarray | Tensor, device: str) -> Tensor:
    gray = gray if isinstance(gray, Tensor) else torch.from_numpy(np.ascontiguousarray(gray))
    return warp.blur(gray.to(device).float().unsqueeze(1), sigma_px=PRESMOOTH_PX)


@torch.inference_mode()
def _coarse_to_fine(first: Tensor, second: Tensor, spec: FlowSpec) -> Tensor:
    sizes = warp.pyramid_sizes(*first.shape[-2:], step=spec.tvl1_scale_step, min_side=MIN_SIDE_PX)
    levels = list(zip(warp.pyramid(first, sizes), warp.pyramid(second, sizes), strict=True))
    flow = first.new_zeros(len(first), 2, *sizes[-1])
    for level_first, level_second in reversed(levels):
        flow = warp.resize_flow(flow, level_first.shape[-2:])
        flow = _one_level(level_first, level_second, flow, spec)
    return flow


def _one_level(first: Tensor, second: Tensor, flow: Tensor, spec: FlowSpec) -> Tensor:
    """Improve the flow at one size: warp, solve, filter, several times."""
    still = torch.cat(warp.gradient(first), 1)
    solver = _Solver(flow, spec)
    for _ in range(spec.tvl1_warps):
        warped, inside = warp.warp(second, flow)
        slope = torch.cat(warp.gradient(warped), 1).add_(still).mul_(0.5).mul_(inside)
        constant = (warped - first).sub_((slope * flow).sum(1, keepdim=True))
        flow = warp.median3(solver.solve(flow, slope, constant))
    return flow


class _Solver:
    """Alternates the data term's threshold and the dual step of total variation, in buffers made once a level.

    The dual field p is kept scaled by theta, with a column (row) of zeros before the first pixel, so that its
    divergence is a difference of two views everywhere, borders included.
    """

    def __init__(self, flow: Tensor, spec: FlowSpec):
        count, channels, height, width = flow.shape
        self.reach = spec.tvl1_data_weight * spec.tvl1_theta
        self.theta, self.iterations = spec.tvl1_theta, spec.tvl1_iterations
        self.dual_x = flow.new_zeros(count, channels, height, width + 1)
        self.dual_y = flow.new_zeros(count, channels, height + 1, width)
        self.slope_x, self.slope_y, self.length = (torch.zeros_like(flow) for _ in range(3))

    def solve(self, flow: Tensor, slope: Tensor, constant: Tensor) -> Tensor:
        """Flow (N, 2, H, W) that balances the residual `constant + slope . flow` with total variation."""
        flow = flow.clone()
        square = slope.square().sum(1, keepdim=True).add_(FLAT)
        inverse, offset = slope / square, constant / square
        residual = torch.empty_like(constant)
        for _ in range(self.iterations):
            torch.addcmul(offset, inverse[:, :1], flow[:, :1], out=residual)
            residual.addcmul_(inverse[:, 1:], flow[:, 1:]).clamp_(-self.reach, self.reach)
            flow.addcmul_(residual, slope, value=-1)
            self._add_divergence(flow)
            self._update_dual(flow)
        return flow

    def _add_divergence(self, flow: Tensor) -> None:
        flow.add_(self.dual_x[..., 1:]).sub_(self.dual_x[..., :-1])
        flow.add_(self.dual_y[..., 1:, :]).sub_(self.dual_y[..., :-1, :])

    def _update_dual(self, flow: Tensor) -> None:
        torch.sub(flow[..., 1:], flow[..., :-1], out=self.slope_x[..., :-1])
        torch.sub(flow[..., 1:, :], flow[..., :-1, :], out=self.slope_y[..., :-1, :])
        torch.mul(self.slope_x, self.slope_x, out=self.length).addcmul_(self.slope_y, self.slope_y).sqrt_()
        self.length.mul_(DUAL_STEP / self.theta).add_(1)
        self.dual_x[..., 1:].add_(self.slope_x, alpha=DUAL_STEP).div_(self.length)
        self.dual_y[..., 1:, :].add_(self.slope_y, alpha=DUAL_STEP).div_(self.length)
