"""Optical flow of frames: `estimate` is the entry point; `estimate_on_device` leaves the flow on the device.

A method is a module with `between(first, second, spec, *, device)`, imported on first use, so torch is not loaded
needlessly. The images are (N, H, W) uint8, or (N, H, W, 3) uint8 for methods with `colour`: numpy arrays, or tensors on
the device for methods with `tensors` on CUDA. The flow is (N, 2, H, W) float32, an array or a tensor.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
from pipeline.specs import RAFT_WEIGHTS, FlowSpec
from pipeline.specs.base import check_device

if TYPE_CHECKING:
    from torch import Tensor


class _Method(NamedTuple):
    module: str
    needs: str  # the package it computes with
    package: str  # pip's name for that package
    cuda: bool  # runs on CUDA devices ...
    cpu: bool = True  # ... and on the CPU
    colour: bool = False  # reads RGB, not gray
    asks: str = ""  # a module, quick to import, whose `why_not(name)` says what else is missing
    tensors: bool = False  # on CUDA, takes tensors on the device, not numpy arrays


_OPENCV = _Method("pipeline.flow.opencv", "cv2", "opencv-contrib-python", cuda=False, asks="pipeline.flow.opencv")
_OPENCV_CUDA = _OPENCV._replace(
    module="pipeline.flow.opencv_cuda", cuda=True, cpu=False, asks="pipeline.flow.opencv_cuda"
)
_RAFT = _Method(
    "pipeline.flow.raft",
    "torchvision",
    "torchvision",
    cuda=True,
    colour=True,
    asks="pipeline.flow.weights",
    tensors=True,
)
_REGISTRY = {
    "tvl1": _Method("pipeline.flow.tvl1", "torch", "torch", cuda=True, tensors=True),
    "brox": _Method("pipeline.flow.brox", "torch", "torch", cuda=True, tensors=True),
    "raft_small": _RAFT,
    "raft_large": _RAFT,
    "dis_ultrafast": _OPENCV,
    "dis_fast": _OPENCV,
    "dis_medium": _OPENCV,
    "farneback": _OPENCV,
    "deepflow": _OPENCV,
    "pcaflow": _OPENCV,
    "opencv_cuda_tvl1": _OPENCV_CUDA,
    "opencv_cuda_brox": _OPENCV_CUDA,
    "nvidia_of": _OPENCV_CUDA,
}


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
            that this machine lacks or the method cannot use, or weights that do not fit RAFT.
        OSError: RAFT's weights are not on this machine and cannot be downloaded.

    Source: `between` in the method's module cites its paper and says what we do differently.
    """
    if not isinstance(spec, FlowSpec):
        raise ValueError(f"spec is {spec!r}; it must be a FlowSpec, such as FlowSpec(method='tvl1')")
    device = method_device(spec.method, device)
    on_cpu = tensor_device(spec.method, device) == "cpu"
    if on_cpu and spec.enlarge == 1:  # the method batches internally; enlarged flow would be held whole
        return Download(estimate_on_device(frames, spec, device=device, direction=direction)).wait()[0]
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
    _check_frames(frames)
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction is {direction!r}; allowed: forward, backward")
    bounds = [0, *cuts, len(frames)]
    if min(np.diff(bounds)) < 2:
        raise ValueError(f"cuts are {list(cuts)} in {len(frames)} frames; every clip needs at least 2")
    method, device = _REGISTRY[spec.method], method_device(spec.method, device)
    between = importlib.import_module(method.module).between
    with on_cuda_device(tensor_device(spec.method, device)):
        images = np.ascontiguousarray(to_rgb(frames) if method.colour else to_gray(frames))
        images = enlarged(images, spec.enlarge)
        images = uploaded(images, device=device) if method.tensors else images
        first, second = (
            concatenated([images[begin + k : end - 1 + k] for begin, end in itertools.pairwise(bounds)]) for k in (0, 1)
        )
        if direction == "backward":
            first, second = second, first
        compute = functools.partial(_between, between, spec=spec, device=device)
        flow = in_halving_batches(compute, first, second, pairs=len(first))
        return brought_back(flow, spec.enlarge)


def _between(between: Callable, first: np.ndarray | Tensor, second: np.ndarray | Tensor, **given: Any) -> Any:
    """The method's result, rejected if it cannot be the flow of these pairs; it would be stored all the same."""
    flow, wanted = between(first, second, **given), (len(first), 2, *first.shape[1:3])
    kind = str(getattr(flow, "dtype", type(flow).__name__)).removeprefix("torch.")
    if kind != "float32" or tuple(flow.shape) != wanted:
        got = f"{kind} of shape {tuple(flow.shape)}" if hasattr(flow, "shape") else kind
        raise ValueError(f"method {given['spec'].method} returned {got}; it must return float32 of shape {wanted}")
    return flow


def pairs_of(size: tuple[int, int], spec: FlowSpec, *, device: str) -> int:
    """Number of pairs of `size` (height, width) frames to compute together; see `device.pairs_at_once`."""
    return pairs_at_once(size[0] * size[1] * spec.enlarge**2, device=device, batch_pairs=spec.batch_pairs)


def cuda_devices(method: str, device: str) -> tuple[str, ...]:
    """The CUDA devices that a method would use here: all for "auto", otherwise the one named; none for the CPU.

    Raises:
        ValueError: the device is unknown or cannot be used, as for `estimate`.
    """
    found = method_device(method, device)
    if found == "cpu" or device != "auto":
        return () if found == "cpu" else (found,)
    return tuple(f"cuda:{k}" for k in range(_counted(_REGISTRY[method])[1]))


def tensor_device(method: str, device: str) -> str:
    """Device of the torch tensors of a method that runs on `device`: `device`, or "cpu" if OpenCV does the work."""
    return "cpu" if _REGISTRY[method].needs == "cv2" else device


def may_use_cuda(method: str, device: str) -> bool:
    """Whether a method would run on CUDA if CUDA were available."""
    return _REGISTRY[method].cuda and device != "cpu"


def takes_colour(method: str) -> bool:
    """Whether the method reads RGB frames; the other methods read gray values."""
    return _REGISTRY[method].colour


def devices(method: str) -> tuple[str, ...]:
    """The kinds of device that the method runs on: "cpu", "cuda" or both."""
    about = _REGISTRY[method]
    return ("cpu",) * about.cpu + ("cuda",) * about.cuda


def methods() -> dict[str, str]:
    """Method name -> "available", or why it is not and what to do; downloads nothing and does not import torch."""
    missing = {name: _missing(name) for name in _REGISTRY}
    return {name: f"not available: {why}" if why else "available" for name, why in missing.items()}


def check(spec: FlowSpec, *, device: str = "auto") -> None:
    """Reject up front what this machine cannot compute; downloads RAFT's weights if they are missing.

    Raises:
        ValueError, OSError: as for `estimate`, or a missing package or module.
    """
    if spec.method in RAFT_WEIGHTS and importlib.util.find_spec("torchvision"):
        from pipeline.flow import raft

        raft.load(spec)
    elif why := _missing(spec.method):
        raise ValueError(f"[flow] method {spec.method} is not available: {why}")
    if device != "auto" or not _REGISTRY[spec.method].cpu:
        method_device(spec.method, device)


def to_download(spec: FlowSpec) -> str:
    """Name of the RAFT weights file that `check` would have to download; "" if there is none."""
    if spec.method not in RAFT_WEIGHTS or spec.weights_file is not None:
        return ""
    from pipeline.flow import weights

    name = weights.file_name(spec.method, spec.raft_weights)
    return "" if (weights.folder() / name).is_file() else name


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


def _missing(name: str) -> str:
    """What the method lacks on this machine and what to do, or "" if it can be used."""
    method = _REGISTRY[name]
    if importlib.util.find_spec(method.needs) is None:
        return f"{method.needs} is not installed; pip install {method.package}"
    try:
        return importlib.import_module(method.asks).why_not(name) if method.asks else ""
    except ImportError as error:
        return f"{method.needs} is installed, but cannot be imported ({error}); `python -m pipeline doctor` says more"


def _check_frames(frames: np.ndarray) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        got = getattr(frames, "dtype", type(frames).__name__)
        raise ValueError(f"frames are {got}; they must be a numpy array of uint8, 0 to 255")
    gray, rgb = frames.ndim == 3, frames.ndim == 4 and frames.shape[3] == 3
    if not (gray or rgb) or 0 in frames.shape[1:]:
        raise ValueError(f"frames have shape {frames.shape}; allowed: (T, H, W, 3) RGB or (T, H, W) gray, no side 0")
    if len(frames) < 2:
        raise ValueError(f"frames hold {len(frames)} frame; motion needs at least 2")


def method_device(name: str, device: str) -> str:
    """The device that method `name` runs on, "cpu", "cuda" or "cuda:N"; only "auto" needs resolving.

    Raises:
        ValueError: an unknown device, or one that this machine lacks or that the method cannot use.
    """
    method = _REGISTRY[name]
    check_device("device", device)
    if device == "cpu" and not method.cpu:
        raise ValueError(f"device is 'cpu', but method {name} computes on CUDA only; use device auto or cuda")
    if device == "cpu" or (device == "auto" and not method.cuda):
        return "cpu"
    if not method.cuda:
        raise ValueError(f"device is {device!r}, but method {name} computes on the CPU only; use device auto or cpu")
    counted_by, there = _counted(method)
    if device == "auto" and (there or method.cpu):
        return "cuda" if there else "cpu"
    if int(device.partition(":")[2] or 0) >= there:
        cure = "use device auto or cpu" if method.cpu else "choose another device or method"
        raise ValueError(f"device is {device!r}, but {counted_by} sees {there} CUDA devices here; {cure}")
    return device


def _counted(method: _Method) -> tuple[str, int]:
    """The library that counts CUDA devices for the method, and how many it can use."""
    if method.needs == "cv2":
        from pipeline.flow import opencv_cuda

        return "OpenCV", opencv_cuda.device_count()
    import torch

    return "torch", torch.cuda.device_count() if torch.cuda.is_available() else 0
