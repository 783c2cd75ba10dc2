"""Views in batches: stacked on the CPU, as bytes if they can be, and turned into inputs on the network's device.

A temporal input of 224 x 224 x 20 is 1 MB in bytes and 4 MB in floats. Loading processes hand over the bytes; what is
left to do, a factor and an offset a channel, is done for a whole batch where the network is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from pipeline.transforms import View


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """Views of N items (or of N items times K snippets), on any device; `to_inputs` makes inputs of them."""

    values: torch.Tensor
    """(N, C, H, W) or (N, K, C, H, W), uint8, or float32 where any view of the batch had to be resized."""
    scale: torch.Tensor
    """(N, C) or (N, K, C) float32."""
    offset: torch.Tensor
    """The same."""

    def __len__(self) -> int:
        return len(self.values)

    def chunk(self, parts: int) -> tuple[ViewBatch, ...]:
        """The batch in parts of equal size, as torch cuts a tensor."""
        cut = (tensor.chunk(parts) for tensor in (self.values, self.scale, self.offset))
        return tuple(ViewBatch(*part) for part in zip(*cut, strict=True))

    @property
    def shape(self) -> torch.Size:
        """Of the inputs."""
        return self.values.shape

    def pin_memory(self) -> ViewBatch:
        """The same in page-locked memory; torch's loader asks for it."""
        return ViewBatch(self.values.pin_memory(), self.scale.pin_memory(), self.offset.pin_memory())

    def to(self, device: torch.device, *, non_blocking: bool = False) -> ViewBatch:
        """The same on a device, as torch sends a tensor there."""
        parts = (self.values, self.scale, self.offset)
        return ViewBatch(*(part.to(device, non_blocking=non_blocking) for part in parts))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory for work on this stream of CUDA, as torch keeps a tensor's."""
        for part in (self.values, self.scale, self.offset):
            part.record_stream(stream)


def stack_views(views: Sequence[View]) -> ViewBatch:
    """Views of equal shape -> one batch of them."""
    # numpy's stack: torch's would start a second set of OpenMP threads beside that of the training
    values, scale, offset = (torch.from_numpy(np.stack(parts)) for parts in zip(*views, strict=True))
    return ViewBatch(values, scale, offset)


def join_views(views: Sequence[View]) -> ViewBatch:
    """Views that are each of several crops -> one batch of all crops."""
    values, scale, offset = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*views, strict=True))
    return ViewBatch(values, scale, offset)


def to_inputs(views: ViewBatch | torch.Tensor, device: torch.device) -> torch.Tensor:
    """What the network takes: `values * scale + offset`, channel by channel.

    Args:
        views: a batch; or inputs that are ready, which are only moved.
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
    images = bytes_or_floats.contiguous(memory_format=torch.channels_last)  # of bytes a quarter of the traffic
    return images.to(torch.float32, copy=True).mul_(factor).add_(shift).unflatten(0, views.shape[:-3])


def _inputs_on_cpu(views: ViewBatch) -> torch.Tensor:
    """The same bits from bytes on a CPU, an image at a time: each stays in the processor's cache until it is done."""
    count, (channels, height, width) = views.values[..., 0, 0, 0].numel(), views.values.shape[-3:]
    values = views.values.reshape(count, channels, height, width).numpy()
    scale, offset = (np.tile(part.reshape(count, channels).numpy(), width) for part in (views.scale, views.offset))
    inputs = np.empty((count, height, width * channels), np.float32)  # channels last: a row is x y x y ...
    for image, planes, factor, shift in zip(inputs, values, scale, offset, strict=True):
        np.multiply(cv2.merge(list(planes)).reshape(image.shape), factor, out=image)
        image += shift
    images = torch.from_numpy(inputs.reshape(count, height, width, channels)).permute(0, 3, 1, 2)
    return images.unflatten(0, views.values.shape[:-3])
