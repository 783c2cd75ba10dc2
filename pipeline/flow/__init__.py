"""Frames to motion: `estimate` is the one entry, whatever the method.

A method is a module with `between(first, second, spec, *, device)`, which returns a numpy array, or a torch tensor on
the device. It is loaded when it is first asked for, so that nobody waits for torch who does not use it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import NamedTuple

import numpy as np

from pipeline.specs import FLOW_METHODS, FlowSpec


class _Method(NamedTuple):
    module: str
    needs: str  # the package it computes with
    package: str  # what pip calls that
    cuda: bool


_OPENCV = _Method("pipeline.flow.opencv", "cv2", "opencv-contrib-python", cuda=False)
_REGISTRY = {
    "tvl1": _Method("pipeline.flow.tvl1", "torch", "torch", cuda=True),
    "brox": _Method("pipeline.flow.brox", "torch", "torch", cuda=True),
    "dis_ultrafast": _OPENCV,
    "dis_fast": _OPENCV,
    "dis_medium": _OPENCV,
    "farneback": _OPENCV,
}
assert tuple(_REGISTRY) == FLOW_METHODS


def estimate(frames: np.ndarray, spec: FlowSpec, *, device: str = "auto", direction: str = "forward") -> np.ndarray:
    """Dense motion between consecutive frames.

    Args:
        frames: (T, H, W, 3) uint8 RGB, or (T, H, W) uint8 gray, T >= 2.
        spec: which estimator, and its settings. The work is done in batches of `spec.batch_pairs` pairs.
        device: "cpu", "cuda", "cuda:N", or "auto": CUDA where there is one and the method can use it.
        direction: "forward" or "backward".

    Returns:
        (T - 1, 2, H, W) float32, pixels per frame. Channel 0 is x (right positive), channel 1 is y (down positive).
        Forward, flow[t] carries frame t onto frame t + 1; backward, it carries frame t + 1 onto frame t.

    Raises:
        ValueError: frames of another type or shape or fewer than two, an unknown direction or device, CUDA asked for
            where there is none.

    Source: `between` of the method's module names its paper and what we do differently.
    """
    _check_frames(frames)
    if direction not in ("forward", "backward"):
        raise ValueError(f"direction is {direction!r}; allowed: forward, backward")
    method = _REGISTRY[spec.method]
    device = _device(device, spec.method, method.cuda)
    gray = to_gray(frames)
    first, second = (gray[:-1], gray[1:]) if direction == "forward" else (gray[1:], gray[:-1])
    flow = importlib.import_module(method.module).between(first, second, spec, device=device)
    return flow if isinstance(flow, np.ndarray) else flow.cpu().numpy()


def methods() -> dict[str, str]:
    """Name of each method -> "available", or why it is not and what to do."""
    return {name: _availability(method) for name, method in _REGISTRY.items()}


def to_gray(frames: np.ndarray) -> np.ndarray:
    """Gray values, the same for every method: (T, H, W, 3) uint8 RGB -> (T, H, W) uint8, by OpenCV's RGB2GRAY.

    That is 0.299 R + 0.587 G + 0.114 B, rounded. Frames that are gray already are returned as they are.
    """
    if frames.ndim == 3:
        return frames
    import cv2

    return np.stack([cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames])


def _availability(method: _Method) -> str:
    if importlib.util.find_spec(method.needs) is None:
        return f"not available: {method.needs} is not installed; pip install {method.package}"
    return "available"


def _check_frames(frames: np.ndarray) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        got = getattr(frames, "dtype", type(frames).__name__)
        raise ValueError(f"frames are {got}; they must be a numpy array of uint8, 0 to 255")
    gray, rgb = frames.ndim == 3, frames.ndim == 4 and frames.shape[3] == 3
    if not (gray or rgb) or 0 in frames.shape[1:]:
        raise ValueError(f"frames have shape {frames.shape}; allowed: (T, H, W, 3) RGB or (T, H, W) gray, no side 0")
    if len(frames) < 2:
        raise ValueError(f"frames hold {len(frames)} frame; motion needs at least 2")


def _device(device: str, name: str, cuda: bool) -> str:
    """The device to compute on: never another than the one asked for."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"device is {device!r}; allowed: auto, cpu, cuda, cuda:0, cuda:1, ...")
    if device == "cpu" or (device == "auto" and not cuda):
        return "cpu"
    if not cuda:
        raise ValueError(f"device is {device!r}, but method {name} computes on the CPU only; use device auto or cpu")
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if there else "cpu"
    if int(device.partition(":")[2] or 0) >= there:
        raise ValueError(f"device is {device!r}, but torch sees {there} CUDA devices here; use device auto or cpu")
    return device
