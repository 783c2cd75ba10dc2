"""Layers that treat a piece of a batch as part of the whole: dropout, stochastic depth, batch normalization.

If a batch is cut into pieces (`parallel`), these layers compute for each piece what they would have computed for its
rows in the whole batch. So, up to rounding, training results do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torchvision.ops import StochasticDepth

from pipeline.system.errors import UserError


@dataclass
class Piece:
    """The piece of a batch that a network gets: number `place` (from 0) of `count` equal pieces."""

    count: int
    place: int = 0


def draw_for_whole_batch(network: nn.Module, piece: Piece) -> None:
    """Make dropout and stochastic depth draw for the whole batch and keep the piece's rows.

    If batches are not cut (`piece.count` is 1), the network is unchanged. Each piece must start from the same random
    state.
    """
    if piece.count == 1:
        return

    def of_piece(layer: nn.Module) -> nn.Module:
        if type(layer) is nn.Dropout:
            return _DropoutOfPiece(layer.p, piece)
        if type(layer) is StochasticDepth and layer.mode == "row":
            return _DepthOfPiece(layer.p, piece)
        return layer

    _replace(network, of_piece)


def normalize_over_processes(network: nn.Module, device: torch.device) -> None:
    """Make batch normalization use statistics over all processes' pieces, which have equally many items.

    Layers keep their weights, their buffers, and the names of both. On a CPU a single process needs this too, to train
    as several would.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    else:  # torch's own layer over processes refuses tensors on a CPU
        _replace(network, lambda layer: _BatchNormOfAll(layer) if isinstance(layer, nn.BatchNorm2d) else layer)


def _replace(network: nn.Module, new: Callable[[nn.Module], nn.Module]) -> None:
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            setattr(parent, name, new(layer))


class _DropoutOfPiece(nn.Dropout):
    def __init__(self, p: float, piece: Piece):
        super().__init__(p)
        self.piece = piece

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return inputs
        ones = inputs.new_ones(len(inputs) * self.piece.count, *inputs.shape[1:])
        if inputs.ndim == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
            ones = ones.contiguous(memory_format=torch.channels_last)  # random numbers are drawn in memory order
        return inputs * _own_rows(super().forward(ones), self.piece)


class _DepthOfPiece(StochasticDepth):
    def __init__(self, p: float, piece: Piece):
        super().__init__(p, "row")
        self.piece = piece

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return inputs
        ones = inputs.new_ones(len(inputs) * self.piece.count, *[1] * (inputs.ndim - 1))
        return inputs * _own_rows(super().forward(ones), self.piece)


def _own_rows(whole: torch.Tensor, piece: Piece) -> torch.Tensor:
    return whole.chunk(piece.count)[piece.place]


class _BatchNormOfAll(nn.BatchNorm2d):
    """Batch normalization over all processes' pieces on a CPU, where torch's own layer knows only one process.

    That layer also sums channels-last images one value after another: its variances are off by 1e-5, by another amount
    with another number of threads, and training multiplies that.
    """

    def __init__(self, layer: nn.BatchNorm2d):
        super().__init__(layer.num_features, layer.eps, layer.momentum)
        self.weight, self.bias, self.training = layer.weight, layer.bias, layer.training
        for name, buffer in layer.named_buffers():
            setattr(self, name, buffer)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same shape and type.

        Raises:
            UserError: in training, all pieces together have one value for each channel.
        """
        if not self.training:
            return super().forward(inputs)
        values = inputs.numel() // inputs.shape[1] * _processes()
        if values == 1:
            raise UserError("batch normalization of one value for each channel; raise batch, or crop_px")
        wide = inputs.float() if inputs.dtype in (torch.float16, torch.bfloat16) else inputs
        normalized, mean, variance = _Normalize.apply(wide, self.weight, self.bias, self.eps)
        self._note(mean, variance, values)
        return normalized.to(inputs.dtype)

    def _note(self, mean: torch.Tensor, variance: torch.Tensor, values: int) -> None:
        """Update the running statistics as torch does: the running variance is the unbiased one."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * (values / (values - 1))).to(self.running_var.dtype), self.momentum)


class _Normalize(torch.autograd.Function):
    """Batch normalization of a piece by the mean and the variance of all processes' pieces.

    Source: S. Ioffe and C. Szegedy, Batch Normalization, ICML 2015, algorithm 1 and the gradients after it.
    """

    @staticmethod
    def forward(ctx, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float):
        mean = mean_over_processes(_of_channels(inputs)).to(inputs.dtype)
        centered = inputs - _along_channels(mean, inputs)
        variance = mean_over_processes(_of_channels(centered.square())).to(inputs.dtype)
        inverse = (variance + eps).rsqrt()  # of the standard deviation
        ctx.save_for_backward(centered, inverse, weight)
        ctx.mark_non_differentiable(mean, variance)
        bias, scale = _along_channels(bias, inputs), _along_channels(inverse * weight, inputs)
        return torch.addcmul(bias, centered, scale), mean, variance

    @staticmethod
    def backward(ctx, gradient: torch.Tensor, *_):
        centered, inverse, weight = ctx.saved_tensors
        own = torch.stack([_of_channels(gradient), _of_channels(gradient * centered)])
        # each process's loss depends on all pieces through both
        of_mean, of_variance = mean_over_processes(own).to(gradient.dtype)
        slope = _along_channels(-of_variance * inverse.square(), gradient)
        of_inputs = (gradient - _along_channels(of_mean, gradient)).addcmul_(centered, slope)
        of_inputs.mul_(_along_channels(inverse * weight, gradient))
        of_bias, of_weight = (own * (gradient.numel() // gradient.shape[1])).to(gradient.dtype)
        return of_inputs, of_weight * inverse, of_bias, None


def _of_channels(values: torch.Tensor) -> torch.Tensor:
    """(C,) float64: each channel's mean of (N, C, ...), hardly rounded, so that it depends on no order of sums."""
    items = values.flatten(2).mean(2) if values.ndim > 2 else values
    return items.double().mean(0)


def _along_channels(values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (inputs.ndim - 2))


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes."""
    if _processes() == 1:
        return value
    value = value.contiguous().clone()
    distributed.all_reduce(value)
    return value / _processes()
