"""Batches whose flow stacks are partly still JPEG: the network's device decodes those (nvJPEG).

Decoding takes most of the time in which a loading process makes a temporal input. A GPU with a JPEG engine decodes as
fast as many cores, while its other units compute. So each decodes a part of every batch (`decoding.py` chooses it).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from pipeline import jpeg
from pipeline.errors import ClipError, DamagedFile
from pipeline.inputs import Room, ViewBatch, new_room, stack_views
from pipeline.store import repair_advice
from pipeline.transforms import EncodedView, View, interpolation

_AT_ONCE = 32  # stacks that are decoded in one call: 640 planes of 340 x 256 take 56 MB


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Views of N items (or of N items times K snippets) in host memory, of which some are still JPEG."""

    shape: tuple[int, ...]
    """Shape of the network inputs: (N, C, H, W) or (N, K, C, H, W)."""
    decoded: ViewBatch | None
    """The views of the items that are decoded, in order; None if there are none."""
    views: list[list[EncodedView]]
    """What is left to do for the K views of each item that is not; without their JPEG bytes."""
    places: list[int]
    """Numbers, in the batch, of the items that are not decoded."""
    data: torch.Tensor
    """(bytes,) uint8: the JPEG bytes of all their planes, one after another."""
    sizes: list[int]
    """Number of bytes of each plane."""

    def __len__(self) -> int:
        return self.shape[0]

    def pin_memory(self) -> EncodedBatch:
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        decoded = self.decoded and self.decoded.pin_memory()
        return EncodedBatch(self.shape, decoded, self.views, self.places, self.data.pin_memory(), self.sizes)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> ViewBatch:
        """The whole batch, decoded, on a device.

        It waits for nothing but the decoder; what it begins on a GPU is done on the current CUDA stream.

        Raises:
            DamagedFile: a plane cannot be decoded, or has another size than its clip.
        """
        flat = [view for item in self.views for view in item]
        floats = any(map(_resizes, flat)) or (self.decoded and self.decoded.values.is_floating_point())
        values = torch.empty(self.shape, dtype=torch.float32 if floats else torch.uint8, device=device)
        factors = torch.empty((2, *self.shape[:-2]), dtype=torch.float32, device=device)  # scale and offset
        if self.decoded:
            rest = [place for place in range(len(self)) if place not in set(self.places)]
            rows = torch.tensor(rest, device=device)
            decoded = self.decoded.to(device, non_blocking=non_blocking)
            values.index_copy_(0, rows, decoded.values.to(values.dtype))
            factors.index_copy_(1, rows, torch.stack([decoded.scale, decoded.offset]))
        rows = torch.tensor(self.places, device=device)
        snippets = values.flatten(0, -4)  # (N K, C, H, W), the same memory
        number = len(self.views[0])
        into = [place * number + k for place in self.places for k in range(number)]
        means = self._decode_into(snippets, into, flat, device)
        factors.index_copy_(1, rows, _factors(flat, means).unflatten(1, (-1, *self.shape[1:-3])))
        return ViewBatch(values, *factors)

    def _decode_into(
        self, snippets: torch.Tensor, into: Sequence[int], views: Sequence[EncodedView], device: torch.device
    ) -> torch.Tensor:
        """Decode the views and write them to rows `into` of `snippets`; returns the means of their planes, (R, C)."""
        means, planes, per_view = [], self.data.split(self.sizes), self.shape[-3]
        for first in range(0, len(views), _AT_ONCE):
            some = views[first : first + _AT_ONCE]
            images = decoded_planes(planes[first * per_view : (first + len(some)) * per_view], some, device)
            stacks = [torch.cat(images[k * per_view : (k + 1) * per_view]) for k in range(len(some))]
            for row, view, stack in zip(into[first:], some, stacks, strict=False):
                snippets[row] = _finished(stack, view)
            means += [stack.sum((1, 2), dtype=torch.int64).double() / stack[0].numel() for stack in stacks]
        return torch.stack(means)


def decoded_planes(
    data: Sequence[torch.Tensor], views: Sequence[EncodedView], device: torch.device
) -> list[torch.Tensor]:
    """The planes of some views, each (1, H, W) uint8, on the device.

    Args:
        data: JPEG bytes of every plane of every view, in host memory.
        views: which clip each is of, for messages.
        device: decodes, with nvJPEG on CUDA. What it cannot decode is decoded on the CPU.

    Raises:
        DamagedFile: a plane cannot be decoded, or has another size than its clip.
    """
    try:
        images = decode(data, device)
    except RuntimeError:  # it names no plane; a kind of JPEG that it does not know is no damage
        images = _decoded_here(data, views, device)
    per_view = len(data) // len(views)
    for k, image in enumerate(images):
        view = views[k // per_view]
        if image.shape[1:] != (view.stack.height, view.stack.width):
            raise _damaged(view, "its planes differ in size")
    return images


def _decoded_here(
    data: Sequence[torch.Tensor], views: Sequence[EncodedView], device: torch.device
) -> list[torch.Tensor]:
    images, per_view = [], len(data) // len(views)
    for k, plane in enumerate(data):
        try:
            images.append(torch.from_numpy(jpeg.decode(plane.numpy(), gray=True))[None].to(device))
        except ClipError as error:
            raise _damaged(views[k // per_view], error) from error
    return images


def decode(data: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Gray JPEG images, (n,) uint8 bytes each in host memory -> (1, H, W) uint8 each, on the device.

    Raises:
        RuntimeError: of torchvision.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # takes a second, and loading processes import this module

    if device.type == "cuda":
        # nvJPEG does not wait for the stream: it would write to memory that was freed here and is still being read
        torch.cuda.current_stream(device).synchronize()
    return decode_jpeg(list(data), mode=ImageReadMode.GRAY, device=device)


def _damaged(view: EncodedView, why: object) -> DamagedFile:
    clip, folder = view.stack.source
    return DamagedFile(f"flow of clip {clip!r} of {folder}: {why}; {repair_advice(folder)}")


def _resizes(view: EncodedView) -> bool:
    return (view.box.height, view.box.width) != (view.side, view.side)


def _finished(stack: torch.Tensor, view: EncodedView) -> torch.Tensor:
    """A decoded stack, (C, H, W) uint8, cropped, resized and mirrored: (C, side, side)."""
    top, left, height, width = view.box
    part = stack[:, top : top + height, left : left + width]
    if _resizes(view):
        how = interpolation(height, width, view.side, view.side)
        down, along = (_resizing(length, view.side, how, stack.device) for length in (height, width))
        part = down @ part.float() @ along.T
    return part.flip(-1) if view.mirrored else part


@functools.lru_cache(maxsize=64)
def _resizing(length: int, side: int, how: int, device: torch.device) -> torch.Tensor:
    """The matrix, (side, length) float32, by which OpenCV's resizing maps a column of pixels to another length."""
    rows = cv2.resize(np.eye(length, dtype=np.float32), dsize=(length, side), interpolation=how)
    return torch.from_numpy(rows).to(device)


def _factors(views: Sequence[EncodedView], means: torch.Tensor) -> torch.Tensor:
    """Scale and offset of every plane, (2, R, C) float32, from the views and the means of their planes, (R, C)."""
    scale = torch.from_numpy(np.stack([view.scale for view in views])).to(means.device)
    if views[0].offset is None:
        return torch.stack([scale, -scale * means]).float()
    return torch.stack([scale, torch.from_numpy(np.stack([view.offset for view in views])).to(means.device)]).float()


def stack_partly_encoded(
    items: Sequence[View | list[EncodedView]], *, room: Room = new_room
) -> ViewBatch | EncodedBatch:
    """Views of equal shape, some of which may be still JPEG -> one batch, written to what `room` gives."""
    places = [place for place, item in enumerate(items) if not isinstance(item, View)]
    if not places:
        return stack_views(items, room=room)
    ready = [item for item in items if isinstance(item, View)]
    views = [items[place] for place in places]
    planes = [plane for item in views for view in item for plane in view.stack.planes.planes]
    data = room((sum(map(len, planes)),), np.dtype(np.uint8))
    np.concatenate(planes, out=data.numpy())
    first, snippets = views[0][0], [len(views[0])] if len(views[0]) > 1 else []
    shape = (len(items), *snippets, len(first.scale), first.side, first.side)
    decoded = stack_views(ready, room=room) if ready else None
    without = [[_without_bytes(view) for view in item] for item in views]
    return EncodedBatch(shape, decoded, without, places, data, [len(plane) for plane in planes])


def _without_bytes(view: EncodedView) -> EncodedView:
    return view._replace(stack=view.stack._replace(planes=view.stack.planes._replace(planes=())))
