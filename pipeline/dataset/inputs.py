"""Batches of views: stacked on the CPU, as bytes if possible, and turned into inputs on the network's device.

A temporal input of 224 x 224 x 20 takes 1 MB as bytes and 4 MB as floats, so loading processes hand over bytes. The
remaining arithmetic, a factor and an offset per channel, is done for a whole batch on the network's device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from pipeline.transforms import View


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Views of N items (or of N items times K snippets), on any device; `to_inputs` turns them into network inputs."""

    values: torch.Tensor
    """(N, C, H, W) or (N, K, C, H, W), uint8, or float32 if any view of the batch is float32."""
    scale: torch.Tensor
    """(N, C) or (N, K, C) float32."""
    offset: torch.Tensor
    """(N, C) or (N, K, C) float32, as `scale`."""

    def __len__(self) -> int:
        return len(self.values)

    def chunk(self, parts: int) -> tuple[ViewBatch, ...]:
        """Divide the batch into parts of equal size, as `torch.chunk` divides a tensor."""
        cut = (tensor.chunk(parts) for tensor in (self.values, self.scale, self.offset))
        return tuple(ViewBatch(*part) for part in zip(*cut, strict=True))

    @property
    def shape(self) -> torch.Size:
        """Shape of the network inputs: (N, C, H, W) or (N, K, C, H, W)."""
        return self.values.shape

    def pin_memory(self) -> ViewBatch:
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        return ViewBatch(self.values.pin_memory(), self.scale.pin_memory(), self.offset.pin_memory())

    def to(self, device: torch.device, *, non_blocking: bool = False) -> ViewBatch:
        """The same batch on a device, as `torch.Tensor.to` does for a tensor."""
        parts = (self.values, self.scale, self.offset)
        return ViewBatch(*(part.to(device, non_blocking=non_blocking) for part in parts))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory for work on this CUDA stream, as `torch.Tensor.record_stream` does for a tensor."""
        for part in (self.values, self.scale, self.offset):
            part.record_stream(stream)


Room = Callable[[tuple[int, ...], np.dtype], torch.Tensor]
"""Returns a tensor of this shape and type to write to."""


def new_room(shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
    """A new tensor."""
    return torch.from_numpy(np.empty(shape, dtype))


def stack_views(views: Sequence[View], *, room: Room = new_room) -> ViewBatch:
    """Views of equal shape -> one batch, its values written to the tensor that `room` returns."""
    return join_views([View(*(part[None] for part in view)) for view in views], room=room)


def join_views(views: Sequence[View], *, room: Room = new_room) -> ViewBatch:
    """Views of several crops each, (crops, C, H, W) -> one batch of all crops; `room` as for `stack_views`."""
    # numpy's functions, because torch's would start a second set of OpenMP threads beside the training's
    values, scale, offset = zip(*views, strict=True)
    there = room((sum(map(len, values)), *values[0].shape[1:]), np.result_type(*(part.dtype for part in values)))
    np.concatenate(values, out=there.numpy())
    return ViewBatch(there, *(torch.from_numpy(np.concatenate(parts)) for parts in (scale, offset)))


def to_inputs(views: ViewBatch | torch.Tensor, device: torch.device) -> torch.Tensor:
    """The network's inputs: `values * scale + offset`, channel by channel.

    Args:
        views: a batch, or finished inputs, which are only moved to the device.
        device: where the arithmetic is done.

    Returns:
        (N, C, H, W) or (N, K, C, H, W) float32 on the device, channels last in memory.
    """
    if isinstance(views, torch.Tensor):
        images = views.flatten(0, -4).to(device, non_blocking=True, memory_format=torch.channels_last)
        return images.unflatten(0, views.shape[:-3])
    if device.type == "cpu" and views.values.dtype == torch.uint8:
        return _inputs_on_cpu(views)
    views = views.to(device, non_blocking=True)
    factor, shift = (part.flatten(0, -2)[..., None, None] for part in (views.scale, views.offset))
    bytes_or_floats = views.values.flatten(0, -4)
    images = bytes_or_floats.contiguous(memory_format=torch.channels_last)  # as bytes, a quarter of the traffic
    return (images * factor).add_(shift).unflatten(0, views.shape[:-3])  # bytes become floats as they are multiplied


def _inputs_on_cpu(views: ViewBatch) -> torch.Tensor:
    """The same inputs, bit for bit, from bytes on a CPU; image by image, so each stays in the CPU's cache."""
    count, (channels, height, width) = views.values[..., 0, 0, 0].numel(), views.values.shape[-3:]
    values = views.values.reshape(count, channels, height, width).numpy()
    scale, offset = (np.tile(part.reshape(count, channels).numpy(), width) for part in (views.scale, views.offset))
    inputs = np.empty((count, height, width * channels), np.float32)  # channels last: a row is x y x y ...
    for image, planes, factor, shift in zip(inputs, values, scale, offset, strict=True):
        np.multiply(cv2.merge(list(planes)).reshape(image.shape), factor, out=image)
        image += shift
    images = torch.from_numpy(inputs.reshape(count, height, width, channels)).permute(0, 3, 1, 2)
    return images.unflatten(0, views.values.shape[:-3])
