"""Batches in which some flow stacks are still JPEG: the network's device decodes those (nvJPEG).

Decoding takes most of a loading process's time for a temporal input. A GPU with a JPEG engine can decode while its
other units compute. So both decode a part of every batch; `training/feeding.py` chooses the GPU's.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from pipeline.dataset.inputs import Room, ViewBatch, stack_views
from pipeline.stacks.paths_torch import along_path
from pipeline.store import repair_advice
from pipeline.system.console import one_line
from pipeline.system.errors import ClipError, DamagedFile
from pipeline.system.progress import say_once
from pipeline.transforms import EncodedView, View
from pipeline.video import interpolation, jpeg

_AT_ONCE = 16  # most stacks per call: twice 28 MB for planes of 340 x 256, and 440 MB more for trajectories


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Views of N items (or of N items times K snippets) in host memory, some of them still JPEG."""

    shape: tuple[int, ...]
    """Shape of the network inputs: (N, C, H, W) or (N, K, C, H, W)."""
    decoded: ViewBatch | None
    """The views of the decoded items, in order; None if there are none."""
    views: list[list[EncodedView]]
    """What remains to be done for the K views of each other item, without their JPEG bytes."""
    places: list[int]
    """Indices in the batch of the items that are not decoded."""
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
        """The whole batch, decoded, on a device. On a GPU, all work after decoding is queued on the current stream.

        Raises:
            DamagedFile: the decoders reject a plane, or its size is not its clip's.
        """
        flat = [view for item in self.views for view in item]
        floats = any(map(_gives_floats, flat)) or (self.decoded and self.decoded.values.is_floating_point())
        values = torch.empty(self.shape, dtype=torch.float32 if floats else torch.uint8, device=device)
        factors = torch.empty((2, *self.shape[:-2]), dtype=torch.float32, device=device)  # scale and offset
        snippets, of_snippets = values.flatten(0, -4), factors.flatten(1, -2)  # (N K, ...), the same memory
        each = len(self.views[0])
        rows = [place * each + k for place in self.places for k in range(each)]
        planes, per_view = self.data.split(self.sizes), self.shape[-3]
        for some in _alike(flat):
            views = [flat[k] for k in some]
            data = [plane for k in some for plane in planes[k * per_view : (k + 1) * per_view]]
            images = _decoded_planes(data, views, device)
            stacks, scale_offset = _stacks_of(torch.cat(images).unflatten(0, (len(some), per_view)), views)
            for k, view, stack in zip(some, views, stacks, strict=True):
                snippets[rows[k]] = _finished(stack, view)
            of_snippets.index_copy_(1, torch.tensor([rows[k] for k in some], device=device), scale_offset)
        if self.decoded:  # last, because the decoder would wait for this copy
            rest = torch.tensor(sorted(set(range(len(self))) - set(self.places)), device=device)
            decoded = self.decoded.to(device, non_blocking=non_blocking)
            values.index_copy_(0, rest, decoded.values.to(values.dtype))
            factors.index_copy_(1, rest, torch.stack([decoded.scale, decoded.offset]))
        return ViewBatch(values, *factors)


def _alike(views: Sequence[EncodedView]) -> Iterator[Sequence[int]]:
    """Indices of views whose planes have the same size, in equal parts of at most `_AT_ONCE`."""
    by_size = defaultdict(list)
    for k, view in enumerate(views):
        by_size[view.stack.height, view.stack.width].append(k)
    for alike in by_size.values():
        yield from np.array_split(alike, -(-len(alike) // _AT_ONCE))


def _stacks_of(planes: torch.Tensor, views: Sequence[EncodedView]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacks from decoded planes: as `stored_stack` makes one, but for a batch on a device.

    Args:
        planes: (R, 2L, H, W) uint8, fields in the order of the stack.
        views: R views with the same `spec`.

    Returns:
        (R, 2L, H, W): the planes, or, for trajectories, the vectors along the paths, float32; and the scale and offset
        that turn them into the network's inputs, (2, R, 2L) float32.
    """
    given = np.stack([[view.stack.planes.scale, view.stack.planes.offset, view.factor] for view in views], axis=1)
    scale, offset, factor = torch.from_numpy(given).to(planes.device)
    spec = views[0].spec
    if spec.kind == "trajectory":
        fields = (planes * scale[..., None, None] + offset[..., None, None]).float().unflatten(1, (-1, 2))
        halves = fields.chunk(2 if spec.direction == "bidirectional" else 1, dim=1)
        planes = torch.cat([along_path(half) for half in halves], dim=1)
        scale, offset = torch.ones_like(scale), torch.zeros_like(offset)
    if spec.subtract_mean:  # the mean of q * s + o is mean(q) * s + o
        total = planes.sum((2, 3), dtype=torch.float64 if planes.is_floating_point() else torch.int64)
        offset = -scale * (total.double() / planes[0, 0].numel())
    return planes, torch.stack([scale * factor, offset * factor]).float()


def _decoded_planes(
    data: Sequence[torch.Tensor], views: Sequence[EncodedView], device: torch.device
) -> list[torch.Tensor]:
    """The planes of some views, each (1, H, W) uint8, on the device.

    Args:
        data: JPEG bytes of every plane of every view, in host memory.
        views: their sizes, and their clips for messages.
        device: decodes, with nvJPEG on CUDA. If it fails, the CPU decodes all of these planes.

    Raises:
        DamagedFile: the decoders reject a plane, or its size is not its clip's.
        torch.OutOfMemoryError: the device has no room for the planes.
    """
    try:
        images = decode(data, device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # it names no plane; nvJPEG may lack memory, or not support a kind of JPEG
        images = _decoded_here(data, views, device)
        why = one_line(str(error))
        say_once(f"the GPU did not decode some planes of flow, so the CPU does, which is slower ({why})")
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
        RuntimeError: from torchvision.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # takes a second, and loading processes import this module

    if device.type != "cuda":
        return decode_jpeg(list(data), mode=ImageReadMode.GRAY, device=device)
    # nvJPEG does not wait for the stream: it would write to memory freed here that is still being read
    torch.cuda.current_stream(device).synchronize()
    try:
        return decode_jpeg(list(data), mode=ImageReadMode.GRAY, device=device)
    except RuntimeError:  # it may still be writing to memory that it has given back
        torch.cuda.synchronize(device)
        raise


def _damaged(view: EncodedView, why: object) -> DamagedFile:
    clip, folder = view.stack.source
    return DamagedFile(f"flow of clip {clip!r} of {folder}: {why}; {repair_advice(folder)}")


def _resizes(view: EncodedView) -> bool:
    return (view.box.height, view.box.width) != (view.side, view.side)


def _gives_floats(view: EncodedView) -> bool:
    return _resizes(view) or view.spec.kind == "trajectory"


def _finished(stack: torch.Tensor, view: EncodedView) -> torch.Tensor:
    """A stack (C, H, W), cropped, resized and mirrored: (C, side, side)."""
    top, left, height, width = view.box
    part = stack[:, top : top + height, left : left + width]
    if _resizes(view):
        how = interpolation((height, width), (view.side, view.side))
        down, along = (_resizing(length, view.side, how, stack.device) for length in (height, width))
        part = down @ part.float() @ along.T
    return part.flip(-1) if view.mirrored else part


@functools.lru_cache(maxsize=64)
def _resizing(length: int, side: int, how: int, device: torch.device) -> torch.Tensor:
    """The matrix (side, length) float32 by which OpenCV's resizing maps a column of pixels to another length."""
    rows = cv2.resize(np.eye(length, dtype=np.float32), dsize=(length, side), interpolation=how)
    return torch.from_numpy(rows).to(device)


def stack_partly_encoded(items: Sequence[View | list[EncodedView]], *, room: Room) -> ViewBatch | EncodedBatch:
    """Views of equal shape, some perhaps still JPEG -> one batch, written to what `room` returns."""
    places = [place for place, item in enumerate(items) if not isinstance(item, View)]
    if not places:
        return stack_views(items, room=room)
    ready = [item for item in items if isinstance(item, View)]
    views = [items[place] for place in places]
    planes = [plane for item in views for view in item for plane in view.stack.planes.planes]
    data = room((sum(map(len, planes)),), np.dtype(np.uint8))
    np.concatenate(planes, out=data.numpy())
    first, snippets = views[0][0], [len(views[0])] if len(views[0]) > 1 else []
    shape = (len(items), *snippets, len(first.factor), first.side, first.side)
    decoded = stack_views(ready, room=room) if ready else None
    without = [[_without_bytes(view) for view in item] for item in views]
    return EncodedBatch(shape, decoded, without, places, data, [len(plane) for plane in planes])


def _without_bytes(view: EncodedView) -> EncodedView:
    return view._replace(stack=view.stack._replace(planes=view.stack.planes._replace(planes=())))
