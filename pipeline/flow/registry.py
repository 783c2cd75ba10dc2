"""The flow methods: which there are, what each needs, and the devices on which it works here.

Torch is imported only to count its devices and to try RAFT's weights.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

from pipeline.specs import RAFT_WEIGHTS, FlowSpec
from pipeline.specs.base import check_device
from pipeline.system import downloads
from pipeline.system.errors import UserError
from pipeline.system.gpus import cuda_count
from pipeline.system.packages import PACKAGES


class Method(NamedTuple):
    """How a method is computed: by which module, what that needs, and where it runs."""

    module: str
    needs: str  # the package it computes with, one of PACKAGES
    cuda: bool  # runs on CUDA devices ...
    cpu: bool = True  # ... and on the CPU
    color: bool = False  # reads RGB, not gray
    asks: str = ""  # a module, quick to import, whose `why_not(name)` says what else is missing

    @property
    def tensors(self) -> bool:
        """Whether it computes with torch: on CUDA it takes and gives tensors on the device, not numpy arrays."""
        return self.needs != "cv2"


_OPENCV = Method("pipeline.flow.opencv", "cv2", cuda=False, asks="pipeline.flow.opencv")
_OPENCV_CUDA = _OPENCV._replace(
    module="pipeline.flow.opencv_cuda", cuda=True, cpu=False, asks="pipeline.flow.opencv_cuda"
)
_RAFT = Method("pipeline.flow.raft", "torchvision", cuda=True, color=True, asks="pipeline.flow.weights")
REGISTRY = {
    "tvl1": Method("pipeline.flow.tvl1", "torch", cuda=True),
    "brox": Method("pipeline.flow.brox", "torch", cuda=True),
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


def cuda_devices(method: str, device: str) -> tuple[str, ...]:
    """The CUDA devices that a method would use here: all for "auto", otherwise the one named; none for the CPU.

    Raises:
        ValueError: the device is unknown or cannot be used, as for `estimate`.
    """
    found = method_device(method, device)
    if found == "cpu" or device != "auto":
        return () if found == "cpu" else (found,)
    return tuple(f"cuda:{k}" for k in range(_counted(REGISTRY[method])[1]))


def tensor_device(method: str, device: str) -> str:
    """Device of the torch tensors of a method that runs on `device`: `device`, or "cpu" if OpenCV does the work."""
    return device if REGISTRY[method].tensors else "cpu"


def may_use_cuda(method: str, device: str) -> bool:
    """Whether a method would run on CUDA if CUDA were available."""
    return REGISTRY[method].cuda and device != "cpu"


def takes_color(method: str) -> bool:
    """Whether the method reads RGB frames; the other methods read gray values."""
    return REGISTRY[method].color


def devices(method: str) -> tuple[str, ...]:
    """The kinds of device that the method runs on: "cpu", "cuda" or both."""
    about = REGISTRY[method]
    return tuple(kind for kind, usable in (("cpu", about.cpu), ("cuda", about.cuda)) if usable)


def methods() -> dict[str, str]:
    """Method name -> "available", or why it is not and what to do; downloads nothing and does not import torch."""
    missing = {name: _missing(name) for name in REGISTRY}
    return {name: f"not available: {why}" if why else "available" for name, why in missing.items()}


def check(spec: FlowSpec, *, device: str = "auto") -> None:
    """Reject up front what this machine cannot compute; downloads RAFT's weights if they are missing.

    Raises:
        ValueError, OSError: as for `estimate`, or a missing package or module.
    """
    if spec.method in RAFT_WEIGHTS and not _missing_package(REGISTRY[spec.method]):
        from pipeline.flow import raft

        raft.load(spec)
    elif why := _missing(spec.method):
        raise UserError(f"[flow] method {spec.method} is not available: {why}")
    if device != "auto" or not REGISTRY[spec.method].cpu:
        method_device(spec.method, device)


def to_download(spec: FlowSpec) -> str:
    """Name of the RAFT weights file that `check` would have to download; "" if there is none."""
    if spec.method not in RAFT_WEIGHTS or spec.weights_file is not None:
        return ""
    from pipeline.flow import weights

    return downloads.missing(weights.url(spec.method, spec.raft_weights))


def _missing(name: str) -> str:
    """What the method lacks on this machine and what to do, or "" if it can be used."""
    method = REGISTRY[name]
    if missing := _missing_package(method):
        return missing
    try:
        return importlib.import_module(method.asks).why_not(name) if method.asks else ""
    except ImportError as error:
        return f"{method.needs} is installed, but cannot be imported ({error}); `python -m pipeline doctor` says more"


def _missing_package(method: Method) -> str:
    for module in (method.needs, *(["torch"] if method.tensors else [])):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed; pip install {PACKAGES[module]}"
    return ""


def between(name: str) -> Callable:
    """The function of method `name` that computes flow.

    Raises:
        UserError: what it needs is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(REGISTRY[name].module).between
    except ImportError as error:
        raise UserError(f"[flow] method {name} is not available: {_missing(name) or error}") from error


def method_device(name: str, device: str) -> str:
    """The device that method `name` runs on, "cpu", "cuda" or "cuda:N"; only "auto" needs resolving.

    Raises:
        UserError: an unknown device, or one that this machine lacks or that the method cannot use.
    """
    method = REGISTRY[name]
    check_device("device", device)
    if device == "cpu" and not method.cpu:
        raise UserError(f"device is 'cpu', but method {name} computes on CUDA only; use device auto or cuda")
    if device == "cpu" or (device == "auto" and not method.cuda):
        return "cpu"
    if not method.cuda:
        raise UserError(f"device is {device!r}, but method {name} computes on the CPU only; use device auto or cpu")
    counted_by, there = _counted(method)
    if device == "auto" and (there or method.cpu):
        return "cuda" if there else "cpu"
    if int(device.partition(":")[2] or 0) >= there:
        cure = "use device auto or cpu" if method.cpu else "choose another device or method"
        raise UserError(f"device is {device!r}, but {counted_by} sees {there} CUDA devices here; {cure}")
    return device


def _counted(method: Method) -> tuple[str, int]:
    """The library that counts CUDA devices for the method, and how many it can use."""
    if not method.tensors:
        from pipeline.flow import opencv_cuda

        return "OpenCV", opencv_cuda.device_count()
    return "torch", cuda_count()
