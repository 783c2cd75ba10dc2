"""Optical flow of frames: `estimate` is the entry point; `estimate_on_device` leaves the flow on the device.

A method is a module with `between(first, second, spec, *, device)`, imported on first use, so torch is not loaded
needlessly. The images are (N, H, W) uint8, or (N, H, W, 3) uint8 for methods with `color`: numpy arrays, or tensors on
the device for methods with `tensors` on CUDA. The flow is (N, 2, H, W) float32, an array or a tensor.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.flow.device import (
    Download,
    concatenated,
    in_halving_batches,
    on_cuda_device,
    pairs_at_once,
    threads,
    uploaded,
)
from pipeline.flow.enlarging import brought_back, enlarged
from pipeline.flow.registry import (
    REGISTRY,
    between,
    check,
    cuda_devices,
    devices,
    may_use_cuda,
    method_device,
    methods,
    takes_color,
    tensor_device,
    to_download,
)
from pipeline.specs import FlowSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check",
    "cuda_devices",
    "devices",
    "estimate",
    "estimate_on_device",
    "may_use_cuda",
    "method_device",
    "methods",
    "pairs_of",
    "pairs_to_time",
    "takes_color",
    "tensor_device",
    "to_download",
    "to_gray",
    "to_rgb",
]

_PICTURE_PX = 16  # least side of what is surely a picture
_TIMED_PAIRS = 400  # more would take doctor and plan too long with slow methods


def estimate(frames: np.ndarray, spec: FlowSpec, *, device: str = "auto", direction: str = "forward") -> np.ndarray:
    """Dense optical flow between consecutive frames.

    Args:
        frames: (T, H, W, 3) uint8 RGB, or (T, H, W) uint8 gray, T >= 2.
        spec: the estimator and its settings. `spec.batch_pairs` affects only RAFT's results on CUDA.
        device: "cpu", "cuda", "cuda:N", or "auto": CUDA if it is available and the method can use it.
        direction: "forward" or "backward".

    Returns:
        (T - 1, 2, H, W) float32, pixels per frame. Channel 0 is x (right positive), channel 1 is y (down positive).
        Forward, flow[t] is the motion from frame t to frame t + 1; backward, the motion from frame t + 1 to frame t.

    Raises:
        ValueError: frames of the wrong type or shape, fewer than two frames, an unknown direction or device, a device
            that this machine lacks or the method cannot use, a missing package, or weights that do not fit RAFT.
        OSError: RAFT's weights are not on this machine and cannot be downloaded.

    On a CPU compiled TV-L1 and Brox compute a pair on each of OpenCV's threads (`cv2.setNumThreads`). A pair of
    4000 x 3000 pixels takes 1.7 GiB with TV-L1, 3.4 with Brox. RAFT's rounding depends on the number of torch threads.

    Source: `between` in the method's module cites its paper and says what we do differently.
    """
    _check_spec(spec)
    _refuse_one_rgb_frame(frames)
    device = method_device(spec.method, device)
    on_cpu = tensor_device(spec.method, device) == "cpu"
    if on_cpu and spec.enlarge == 1:  # the method batches internally; enlarged flow would be held whole
        return estimate_on_device(frames, spec, device=device, direction=direction)
    _check_frames(frames)
    flow = np.empty((len(frames) - 1, 2, *frames.shape[1:3]), np.float32)
    pairs = pairs_of(flow[0, 0].shape, spec, device=tensor_device(spec.method, device))
    if on_cpu:
        pairs = max(pairs, threads())
    # the device holds two batches, never the whole clip: one downloads while the other is computed
    parts: list[tuple[slice, Download]] = []
    for k in range(0, len(flow), pairs):
        part = estimate_on_device(frames[k : k + pairs + 1], spec, device=device, direction=direction)
        parts.append((slice(k, k + pairs), Download(part)))
        if len(parts) == 2:
            _arrive(flow, *parts.pop(0))
    _arrive(flow, *parts.pop())
    return flow


def _arrive(flow: np.ndarray, pairs: slice, download: Download) -> None:
    flow[pairs] = download.wait()[0]


def estimate_on_device(
    frames: np.ndarray,
    spec: FlowSpec,
    *,
    device: str = "auto",
    direction: str = "forward",
    cuts: Sequence[int] = (),
) -> np.ndarray | Tensor:
    """Like `estimate`, but the flow stays where it was computed, and `frames` may hold several clips of equal size.

    Args:
        frames, spec, device, direction: as for `estimate`. Frames in a `device.pinned_array` are sent asynchronously
            and must not change before the flow has been read. All pairs are computed at once if memory allows.
        cuts: index of the first frame of every clip but the first, ascending. The clips are concatenated in `frames`;
            no pair spans a cut.

    Returns:
        (T - 1 - len(cuts), 2, H, W) float32, pixels per frame: a numpy array from the CPU; from CUDA, a tensor that may
        not be ready yet.

    Raises:
        ValueError: as for `estimate`, or cuts that leave a clip of fewer than two frames.
    """
    _check_spec(spec)
    _check_frames(frames)
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction is {direction!r}; allowed: forward, backward")
    bounds = [0, *cuts, len(frames)]
    if min(np.diff(bounds)) < 2:
        raise ValueError(f"cuts are {list(cuts)} in {len(frames)} frames; every clip needs at least 2")
    method, device = REGISTRY[spec.method], method_device(spec.method, device)
    compute_pairs = between(spec.method)
    with on_cuda_device(tensor_device(spec.method, device)):
        images = np.ascontiguousarray(to_rgb(frames) if method.color else to_gray(frames))
        images = enlarged(images, spec.enlarge)
        images = uploaded(images, device=device) if method.tensors else images
        first, second = (
            concatenated([images[begin + k : end - 1 + k] for begin, end in itertools.pairwise(bounds)]) for k in (0, 1)
        )
        if direction == "backward":
            first, second = second, first
        compute = functools.partial(compute_pairs, spec=spec, device=device)
        flow = in_halving_batches(compute, first, second)
        return brought_back(flow, spec.enlarge)


def pairs_of(size: tuple[int, int], spec: FlowSpec, *, device: str) -> int:
    """Number of pairs of `size` (height, width) frames to compute together; see `device.pairs_at_once`."""
    return pairs_at_once(size[0] * size[1] * spec.enlarge**2, device=device, batch_pairs=spec.batch_pairs)


def pairs_to_time(size: tuple[int, int], spec: FlowSpec, *, device: str) -> int:
    """Number of pairs with which to time a method on CUDA: up to three whole batches, or a single large one."""
    pairs = pairs_of(size, spec, device=device)  # of several, one is fetched while the next is computed
    return pairs * min(3, max(1, _TIMED_PAIRS // pairs))


def to_gray(frames: np.ndarray) -> np.ndarray:
    """Gray values, the same for every method: (T, H, W, 3) uint8 RGB -> (T, H, W) uint8, by OpenCV's RGB2GRAY.

    That is 0.299 R + 0.587 G + 0.114 B, rounded. Frames that are already gray are returned unchanged.
    """
    if frames.ndim == 3:
        return frames
    import cv2

    return np.stack([cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames])


def to_rgb(frames: np.ndarray) -> np.ndarray:
    """(T, H, W) uint8 gray -> (T, H, W, 3) uint8 with three equal channels; RGB frames are returned unchanged."""
    return frames if frames.ndim == 4 else np.repeat(frames[..., None], 3, axis=3)


def _check_spec(spec: FlowSpec) -> None:
    if not isinstance(spec, FlowSpec):
        raise ValueError(f"spec is {spec!r}; it must be a FlowSpec, such as FlowSpec(method='tvl1')")


def _refuse_one_rgb_frame(frames: np.ndarray) -> None:
    """Refuse (H, W, 3), which would be taken for H gray frames of 3 pixels' width. (The Flow stage may have such.)"""
    shape = getattr(frames, "shape", ())
    if len(shape) == 3 and shape[2] == 3 and min(shape[:2]) >= _PICTURE_PX:
        raise ValueError(
            f"frames have shape {tuple(shape)}, which is one RGB frame; motion needs at least 2, (T, H, W, 3); "
            "give gray frames that are 3 px wide as RGB"
        )


def _check_frames(frames: np.ndarray) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        got = frames.dtype if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ValueError(f"frames are {got}; they must be a numpy array of uint8, 0 to 255")
    gray, rgb = frames.ndim == 3, frames.ndim == 4 and frames.shape[3] == 3
    if not (gray or rgb) or 0 in frames.shape[1:]:
        raise ValueError(f"frames have shape {frames.shape}; allowed: (T, H, W, 3) RGB or (T, H, W) gray, no side 0")
    if len(frames) < 2:
        raise ValueError(f"frames hold {len(frames)} frame; motion needs at least 2")
