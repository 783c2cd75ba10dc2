"""Trajectories of a batch of stacks on any device, with the arithmetic of `pipeline.stacks`, which defines them."""

from __future__ import annotations

import torch


def along_path(fields: torch.Tensor) -> torch.Tensor:
    """Sample fields (N, L, 2, H, W) float32, in the order of the path, along the path of each point -> (N, 2L, H, W).

    Source: paper, equation 2; interpolation and borders as in `stacks.trajectory_stack`.
    """
    height, width = fields.shape[3:]
    points = fields.flatten(3)
    stack = torch.empty_like(points)
    numbers = torch.arange(height * width, device=fields.device).expand(len(fields), -1)
    x, y = (numbers % width).double(), (numbers // width).double()
    for k, field in enumerate(points.unbind(1)):
        motion = field if k == 0 else _bilinear(field, x, y, height, width)
        stack[:, k] = motion
        x += motion[:, 0]
        y += motion[:, 1]
    return stack.reshape(len(fields), -1, height, width)


def _bilinear(field: torch.Tensor, x: torch.Tensor, y: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Both components, (N, 2, P) float64, of fields (N, 2, P) at P points (N, P), clamped to the image."""
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.long().clamp_(0, width - 1), y.long().clamp_(0, height - 1)  # again: there may be NaNs
    right, below = (left + 1).clamp_(max=width - 1), (top + 1).clamp_(max=height - 1)
    right_share, down_share = ((inside - whole)[:, None] for inside, whole in ((x, left), (y, top)))
    upper, lower = (
        _between(_at(field, row * width + left), _at(field, row * width + right), right_share) for row in (top, below)
    )
    return _between(upper, lower, down_share)


def _at(field: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return field.gather(2, points[:, None].expand(-1, 2, -1)).double()


def _between(first: torch.Tensor, second: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    return first + (second - first) * share  # not torch.lerp, which rounds differently
