"""The device of a flow method: batch sizes, and asynchronous copies to the device and back.

Torch is imported only where needed, so methods that do without it do not wait for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.system.errors import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

HOST_PIXELS = 2 << 20  # in a batch of frames on a CPU: with more, frames and flow would not stay in its caches
PLAIN_PIXELS = 320 * 240  # in a batch of pairs of plain torch on a CPU
# in a batch of pairs, at most: enough to occupy the largest device, and for its work to take longer than launching it
CUDA_PIXELS = 384 * 320 * 240
# memory that a method needs per pixel of a pair; Brox, in plain torch, needs about 570, or about 790 in images of
# fewer than `filters.SMALL_PX` pixels (both calculated), for which there is room, as a third of the memory is planned
CUDA_BYTES_PER_PIXEL = 640


def pairs_at_once(pixels: int, *, device: str, batch_pairs: int = 0) -> int:
    """Number of pairs of `pixels`-pixel frames to compute together; it affects only RAFT's results on CUDA.

    On CUDA, it is `batch_pairs`, or, if that is 0, as many as a third of the device's free memory holds (another shard
    may be about to take as much), at most CUDA_PIXELS pixels. On a CPU, it is as many as fit in HOST_PIXELS, whatever
    `batch_pairs` is: the method divides them further.
    """
    if device == "cpu":
        return max(1, HOST_PIXELS // pixels)
    return batch_pairs or _that_fit(_free_bytes(device) // 3, pixels)


def plain_pairs_at_once(pixels: int, *, device: str, batch_pairs: int) -> int:
    """Number of pairs of a given batch that a method on tensors computes together.

    On CUDA half the free memory may be taken: a batch of `pairs_at_once` is not to be divided because its own images,
    and the flow of the batch before, are in memory by now; the last pairs would take as many launches as all others.
    """
    if device == "cpu":
        return batch_pairs or max(1, PLAIN_PIXELS // pixels)
    return batch_pairs or _that_fit(_free_bytes(device) // 2, pixels)


def _that_fit(size: int, pixels: int) -> int:
    return max(1, min(CUDA_PIXELS, size // CUDA_BYTES_PER_PIXEL) // pixels)


def in_batches(
    compute: Callable[[Tensor, Tensor], Tensor],
    first: np.ndarray | Tensor,
    second: np.ndarray | Tensor,
    *,
    pairs: int,
    device: str,
) -> np.ndarray | Tensor:
    """Flow of images (N, H, W, ...), (N, 2, H, W) float32: as many pairs at once as said, each batch by `compute`.

    `compute` gets two tensors on the device. The result is a tensor there, or a numpy array for the CPU.
    """
    import torch

    count, *size = first.shape[:3]
    flow = torch.empty(count, 2, *size, dtype=torch.float32, device=device)
    for start in range(0, count, pairs):
        flow[start : start + pairs] = compute(*(as_tensor(of[start : start + pairs], device) for of in (first, second)))
    return flow if flow.is_cuda else flow.numpy()


def threads() -> int:
    """Number of threads a method may use on the CPU: OpenCV's, which `one_thread` and workers set."""
    import cv2

    return max(1, cv2.getNumThreads())


def _free_bytes(device: str) -> int:
    """Free memory of a CUDA device in bytes, including what torch has reserved but does not use."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def in_halving_batches(between: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    """Apply `between` to all pairs at once, or in batches, halved until they fit in the device's memory.

    Args:
        between: maps n first and n second images to their flow, (n, 2, H, W).
        first, second: (N, H, W) or (N, H, W, 3), numpy arrays or tensors; N >= 1.

    Returns:
        (N, 2, H, W), a numpy array or a tensor, as `between` returns.

    Raises:
        torch.OutOfMemoryError: one pair alone does not fit.
    """
    pairs = len(first)
    while True:
        try:
            parts = [between(first[k : k + pairs], second[k : k + pairs]) for k in range(0, len(first), pairs)]
            return concatenated(parts)
        except RuntimeError as error:
            if not is_out_of_memory(error) or pairs == 1:
                raise
        _give_back()  # outside the handler, whose traceback would keep the tensors alive
        pairs = -(-pairs // 2)


@contextlib.contextmanager
def ignoring_out_of_memory() -> Iterator[None]:
    """Suppress an out-of-memory error of the device, then free all device memory that is not in use."""
    try:
        yield
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    _give_back()


def _give_back() -> None:
    import torch

    torch.cuda.empty_cache()


def as_tensor(images: np.ndarray | Tensor, device: str) -> Tensor:
    """The images on the device. Read-only arrays, which torch would warn about, are copied."""
    import torch

    if isinstance(images, np.ndarray) and not images.flags.writeable:
        images = images.copy()
    return torch.as_tensor(images).to(device)


def concatenated(parts: list[Any]) -> Any:
    """Concatenate numpy arrays or tensors along the first axis; a single one is returned uncopied."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(parts)


@contextlib.contextmanager
def on_cuda_device(device: str) -> Iterator[None]:
    """Launch kernels on this CUDA device within the block; does nothing for the CPU."""
    if device == "cpu":
        yield
        return
    import torch

    with torch.cuda.device(device):
        yield


def pinned_array(shape: tuple[int, ...], *, device: str) -> np.ndarray:
    """An uninitialized uint8 array that can be sent to the device asynchronously: page-locked memory for CUDA."""
    if device == "cpu":
        return np.empty(shape, np.uint8)
    import torch

    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def uploaded(frames: np.ndarray, *, device: str) -> np.ndarray | Tensor:
    """Copy frames to the device; asynchronously from a `pinned_array`, which must not change in the meantime."""
    if device == "cpu":
        return frames
    import torch

    return torch.from_numpy(np.require(frames, requirements=["C", "W"])).to(device, non_blocking=True)


class Download:
    """An asynchronous copy of numpy arrays or tensors to the host, queued behind the device's pending work."""

    def __init__(self, *arrays: np.ndarray | Tensor):
        self._arrays, self._event = [_on_host(array) for array in arrays], None
        on_cuda = [array.device for array in arrays if not isinstance(array, np.ndarray) and array.is_cuda]
        if on_cuda:
            import torch

            self._event = torch.cuda.Event(blocking=True)  # a blocking wait frees the core for JPEG threads
            self._event.record(torch.cuda.current_stream(on_cuda[0]))

    def wait(self) -> list[np.ndarray]:
        """Wait for the arrays and return them."""
        if self._event is not None:
            self._event.synchronize()
        return self._arrays


def _on_host(array: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    if not array.is_cuda:
        return array.numpy()
    import torch

    host = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
    return host.copy_(array, non_blocking=True).numpy()
