"""Variational flow from brightness and gradient constancy, for many image pairs at once, on the CPU and on CUDA."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.flow import sor, tvl1, warp
from pipeline.flow.device import as_tensor, has_numba
from pipeline.flow.filters import pyramid_sizes
from pipeline.specs import FlowSpec

MIN_SIDE_PX = 10  # of the coarsest pyramid level; lower loses repeating textures, higher loses large pans
PRESMOOTH_PX = 0.7
DATA_EPSILON_PX = 0.2  # residuals well below it are penalized quadratically, well above it linearly
SMOOTH_EPSILON = 0.001  # the same for differences of neighboring vectors
EDGE = 0.015  # smoothness between pixels whose gray values differ by d has weight exp(-EDGE d)
STEEP = 1.5  # slope, gray values per pixel, well above which a residual is measured as a distance in pixels
FAR_PX = 3.0  # a residual of this many pixels has half weight: one so large is a change of light or an occlusion
DOUBT = 3.0  # violation of the constraints at which a pixel's flow has half weight in the weighted median
PRECISE_SHARE = 0.45  # levels with less than this share of the image's pixels are computed in double precision
PIXELS_AT_ONCE = {"cpu": 320 * 240, "cuda": 128 * 320 * 240}


class _Constraints(NamedTuple):
    """Linear constraints a u + b v + c = 0 at every pixel, (N, 3, H, W): gray value, its x and its y derivative."""

    a: Tensor
    b: Tensor
    c: Tensor


def between(
    first: np.ndarray | Tensor, second: np.ndarray | Tensor, spec: FlowSpec, *, device: str
) -> np.ndarray | Tensor:
    """Flow from each first image to its second image.

    Args:
        first, second: (N, H, W) uint8, gray; numpy arrays, or tensors on the device.
        spec: weights and iteration counts (`brox_*`), and `batch_pairs`, which does not change the result.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        (N, 2, H, W) float32, pixels, a numpy array from the CPU and a tensor on the device from CUDA; channel 0 is x
        (right positive), 1 is y (down positive). Equal images give exactly 0, and a pair gives the same bits alone as
        in a batch.

    Source: Brox, Bruhn, Papenberg, Weickert, High accuracy optical flow estimation based on a theory for warping,
    ECCV 2004: the energy, the warping and the two nested fixed point iterations. We differ in that
    - gray value and gradient are penalized separately (Bruhn, Weickert, Towards ultimate motion estimation, ICCV 2005),
    - every linearized constraint is divided by its slope, so a steep edge weighs no more than its distance in pixels
      (Zimmer, Bruhn, Weickert, Optic flow in harmony, IJCV 93(3), 2011), and its weight falls as that distance grows,
    - smoothness has less weight across edges of the first image (Werlberger et al., Anisotropic Huber-L1 optical
      flow, BMVC 2009; here regardless of the direction of the edge),
    - slopes are averaged over the first and the warped second image (Wedel et al., An improved algorithm for TV-L1
      optical flow, 2009),
    - the flow is median filtered after each warp (Wedel; Sun, Roth, Black, Secrets of optical flow estimation and their
      principles, CVPR 2010): here twice by 3 x 3, or, after the last warp of a level, by `warp.weighted_median`, where
      pixels that violate the constraints have little weight,
    - iteration counts are fixed, and the unknowns are relaxed in red-black order.
    """
    count, height, width = first.shape
    flow = torch.empty(count, 2, height, width, dtype=torch.float32, device=device)
    pairs = spec.batch_pairs or max(1, PIXELS_AT_ONCE[torch.device(device).type] // (height * width))
    for start in range(0, count, pairs):
        part = slice(start, start + pairs)
        flow[part] = _coarse_to_fine(_images(first[part], device), _images(second[part], device), spec)
    return flow if flow.is_cuda else flow.numpy()


def _images(gray: np.ndarray | Tensor, device: str) -> Tensor:
    images = as_tensor(gray, device).double().unsqueeze(1)
    return warp.blur(images, sigma_px=PRESMOOTH_PX)


@torch.inference_mode()
def _coarse_to_fine(first: Tensor, second: Tensor, spec: FlowSpec) -> Tensor:
    """Flow of images (N, 1, H, W) float64, coarse to fine.

    Where matches are ambiguous, errors grow from level to level: in single precision throughout, results on real frames
    were up to 8 px off; with exact coarse levels, at most 0.005 px (docs/results.md).
    """
    sizes = pyramid_sizes(*first.shape[-2:], step=spec.brox_scale_step, min_side=MIN_SIDE_PX)
    levels = list(zip(warp.pyramid(first, sizes), warp.pyramid(second, sizes), strict=True))
    flow = first.new_zeros(len(first), 2, *sizes[-1])
    for number, (level_first, level_second) in reversed(list(enumerate(levels))):
        precise = level_first[0].numel() < PRECISE_SHARE * first[0].numel()
        precision = torch.float64 if precise else torch.float32
        flow = warp.resize_flow(flow, level_first.shape[-2:]).to(precision)
        level_first, level_second = level_first.to(precision), level_second.to(precision)
        smoothness = _smoothness(level_first, spec.brox_smoothness)
        for turn in range(spec.brox_warps):
            constraints = _constraints(level_first, level_second, flow)
            for _ in range(spec.brox_iterations):
                flow = _step(flow, constraints, smoothness, spec)
            if turn < spec.brox_warps - 1:
                flow = warp.median3(warp.median3(flow))
            else:
                trust = _trust(flow, constraints, spec)
                flow = _weighted_median(flow, level_first, trust, scale=spec.brox_scale_step**number)
    return flow


def _weighted_median(flow: Tensor, image: Tensor, trust: Tensor, *, scale: float) -> Tensor:
    if tvl1.triton_works(str(flow.device)):
        from pipeline.flow import tvl1_triton

        return tvl1_triton.weighted_median(flow, image, trust, scale=scale)
    if flow.device.type != "cpu" or not has_numba():
        return warp.weighted_median(flow, image, trust, scale=scale)
    from pipeline.flow import median_numba

    pairs = zip(flow.numpy(), image[:, 0].numpy(), trust[:, 0].numpy(), strict=True)
    return torch.from_numpy(np.stack([median_numba.weighted_median(*pair, scale=scale) for pair in pairs]))


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
