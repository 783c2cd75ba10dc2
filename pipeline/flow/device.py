"""The device under a method: how much it takes at once, and the way there and back without waiting.

Torch is imported only where it is needed: nobody waits for it whose method computes without.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.progress import say

if TYPE_CHECKING:
    from torch import Tensor

HOST_PIXELS = 2 << 20  # of frames at once on a CPU: more of them, and of their flow, would leave its caches
CUDA_PIXELS = 128 * 320 * 240  # of a batch of pairs at most: enough to fill the largest device
CUDA_BYTES_PER_PIXEL = 512  # that a method takes for each pixel of a pair: Brox, in plain torch, takes 410


def pairs_at_once(pixels: int, *, device: str, batch_pairs: int = 0) -> int:
    """Pairs of frames of so many pixels to compute together; it does not change the result.

    On CUDA `batch_pairs`, or, if that is 0, what half of the device's free memory holds, at most CUDA_PIXELS pixels.
    On a CPU HOST_PIXELS, whatever `batch_pairs` is: the method divides them further.
    """
    if device == "cpu":
        return max(1, HOST_PIXELS // pixels)
    return batch_pairs or max(1, min(CUDA_PIXELS, _free_bytes(device) // 2 // CUDA_BYTES_PER_PIXEL) // pixels)


def has_numba() -> bool:
    """Whether numba is installed and works; if it is and does not, as beside a numpy that is too new, that is said."""
    return importlib.util.find_spec("numba") is not None and _numba_works()


@functools.cache
def _numba_works() -> bool:
    try:
        import numba  # noqa: F401
    except Exception as error:  # whatever it finds wrong
        say(f"numba does not work, so plain torch computes in its place, several times slower: {error!r}")
        return False
    return True


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread in OpenCV and torch, as in worker processes; what was set before comes back."""
    import cv2

    with contextlib.ExitStack() as stack:
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        cv2.setNumThreads(1)
        with contextlib.suppress(Exception):  # a torch that is broken is of no use to whoever needs it, and says so
            import torch

            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        yield


def _free_bytes(device: str) -> int:
    """Free memory of a CUDA device, with what torch holds of it and does not use."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def in_halving_batches(between: Callable[[Any, Any], Any], first: Any, second: Any, *, pairs: int) -> Any:
    """`between` over parts of at most `pairs` pairs, which are halved while the device's memory does not suffice.

    Args:
        between: of (n, H, W) first and second images gives (n, 2, H, W).
        first, second: (N, H, W), numpy arrays or tensors.
        pairs: at least 1.

    Returns:
        (N, 2, H, W), a numpy array or a tensor, whatever `between` gives.

    Raises:
        torch.OutOfMemoryError: one pair alone does not fit.
    """
    while True:
        try:
            parts = [between(first[k : k + pairs], second[k : k + pairs]) for k in range(0, len(first), pairs)]
            return concatenated(parts)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError" or pairs == 1:
                raise
        _give_back()  # outside of the handler, whose traceback would keep the tensors alive
        pairs = -(-min(pairs, len(first)) // 2)


@contextlib.contextmanager
def ignoring_out_of_memory() -> Iterator[None]:
    """Go on without a result where the memory of the device does not suffice, all of it that is not in use free."""
    try:
        yield
        return
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
    _give_back()


def _give_back() -> None:
    import torch

    torch.cuda.empty_cache()


def concatenated(parts: list[Any]) -> Any:
    """Numpy arrays or tensors end to end; one alone is not copied."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(parts)


@contextlib.contextmanager
def on_cuda_device(device: str) -> Iterator[None]:
    """Make a CUDA device the one that kernels are launched on; nothing is done for the CPU."""
    if device == "cpu":
        yield
        return
    import torch

    with torch.cuda.device(device):
        yield


def pinned_array(shape: tuple[int, ...], *, device: str) -> np.ndarray:
    """A uint8 array that can be sent to the device without waiting: page-locked memory for CUDA."""
    if device == "cpu":
        return np.empty(shape, np.uint8)
    import torch

    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def uploaded(frames: np.ndarray, *, device: str) -> np.ndarray | Tensor:
    """The frames on the device; those of `pinned_array` are still under way, and must stay as they are meanwhile."""
    if device == "cpu":
        return frames
    import torch

    return torch.from_numpy(np.ascontiguousarray(frames)).to(device, non_blocking=True)


class Download:
    """Numpy arrays or tensors on their way to the host, behind whatever their device is still computing."""

    def __init__(self, *arrays: np.ndarray | Tensor):
        self._arrays, self._event = [_on_host(array) for array in arrays], None
        on_cuda = [array.device for array in arrays if not isinstance(array, np.ndarray) and array.is_cuda]
        if on_cuda:
            import torch

            self._event = torch.cuda.Event(blocking=True)  # to wait leaves the core to those that code JPEG
            self._event.record(torch.cuda.current_stream(on_cuda[0]))

    def wait(self) -> list[np.ndarray]:
        """The arrays, once they have arrived."""
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
