"""What this machine has: packages, memory, disk, CUDA devices, video decoders.

Every package is imported inside a function; anything missing or broken becomes a line of the report.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.system.console import one_line
from pipeline.system.gpus import cuda_count, driver_too_old
from pipeline.system.limits import free_memory_bytes, processors, usable_cores
from pipeline.system.packages import OPENCVS, PACKAGES, version

# --- what is installed


def packages() -> dict[str, dict[str, str]]:
    """Import name -> {"version", "problem"}; the problem says what to do and begins with "missing" if not installed."""
    report = {name: _package(name, pip) for name, pip in PACKAGES.items()}
    installed = [name for name in OPENCVS if version(name)]
    if len(installed) > 1 and not report["cv2"]["problem"]:
        report["cv2"]["problem"] = (
            f"{' and '.join(installed)} overwrite each other's files; pip uninstall {' '.join(installed)}, "
            "then pip install opencv-contrib-python"
        )
    return report


def _package(name: str, pip: str) -> dict[str, str]:
    if importlib.util.find_spec(name) is None:
        return {"version": "", "problem": f"missing: pip install {pip}"}
    try:
        module = importlib.import_module(name)
    except Exception as error:  # importing a package may raise anything
        return {"version": version(pip), "problem": f"cannot be imported: {cure(error)}"}
    return {"version": str(getattr(module, "__version__", "")) or version(pip), "problem": ""}


def cure(error: Exception) -> str:
    """The error in one line, with the cure if one is known."""
    text = one_line(f"{type(error).__name__}: {error}")
    if "torchvision::nms" in text:
        return f"{text}; torch and torchvision are of different builds: pip install --force-reinstall torch torchvision"
    if "libGL" in text:
        return f"{text}; on a machine without a screen: pip install --force-reinstall opencv-contrib-python-headless"
    return text


# --- the machine


def resources(artifacts: Path) -> dict[str, Any]:
    """Cores that this process may use, and bytes of free memory and of free disk space for artifacts."""
    folder = next(parent for parent in (artifacts.absolute(), *artifacts.absolute().parents) if parent.is_dir())
    return {
        "cores": usable_cores(),
        "memory_free": free_memory_bytes(),
        "disk_free": shutil.disk_usage(folder).free,
        "artifacts": str(artifacts),
    }


def load() -> dict[str, Any]:
    """Load average of the last minute (processes that want a core), number of cores, and whether the load exceeds it.

    If so, threads that wait for one another distort timings: a small training step was seen to take 100 times as long.
    """
    wanted, cores = os.getloadavg()[0], len(processors())
    return {"load": wanted, "cores": cores, "busy": wanted > cores}


def devices() -> dict[str, dict[str, Any]]:
    """CUDA devices that torch and OpenCV see: {"found": [...], "why_not"}."""
    return {"torch": _devices_of(_torch_devices, "torch"), "opencv": _devices_of(_opencv_devices, "cv2")}


def _devices_of(look: Callable[[], tuple[list[dict[str, Any]], str]], package: str) -> dict[str, Any]:
    try:
        found, why_not = look()
    except Exception as error:  # a driver may fail in any way
        found, why_not = [], f"{package}: {cure(error)}"
    return {"found": found, "why_not": why_not if not found else ""}


def _torch_devices() -> tuple[list[dict[str, Any]], str]:
    import torch

    if torch.version.cuda is None:
        return [], "this torch is built for the CPU only"
    count = cuda_count()
    if not count:
        return [], driver_too_old() or "torch is built for CUDA, but finds no device"
    each = [torch.cuda.get_device_properties(i) for i in range(count)]
    return [{"name": device.name, "memory": device.total_memory} for device in each], ""


def _opencv_devices() -> tuple[list[dict[str, Any]], str]:
    from pipeline.flow import opencv_cuda

    found = [{"index": i} for i in range(opencv_cuda.device_count())]
    return found, "OpenCV is built without CUDA, as PyPI's wheels are, or finds no device"


# --- video


def decoders() -> dict[str, str]:
    """Decoder -> "works", or why not, after decoding a clip of a few frames. OpenCV's ffmpeg decodes videos.

    nvJPEG decodes images: part of the stored flow, when a temporal stream is trained on a GPU.
    """
    try:
        importlib.import_module("cv2")
    except Exception as error:
        return {"ffmpeg": f"cv2: {cure(error)}"}
    from pipeline.video import Video

    with tempfile.TemporaryDirectory() as folder:
        path, frames = Path(folder) / "clip.avi", 5
        _write_clip(path, frames)
        tries = {"ffmpeg": lambda: sum(1 for _ in Video(path)), "nvjpeg": lambda: _nvjpeg(frames)}
        return {name: _outcome(count, frames) for name, count in tries.items()}


def _write_clip(path: Path, frames: int) -> None:
    import cv2
    import numpy as np

    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (64, 48))
    for shade in range(frames):
        writer.write(np.full((48, 64, 3), 40 * shade, np.uint8))
    writer.release()


def _nvjpeg(images: int) -> int:
    import numpy as np
    import torch

    from pipeline.dataset import encoded
    from pipeline.video import jpeg

    if not cuda_count():
        raise RuntimeError("no CUDA device; only a training on one uses it")
    data = np.frombuffer(jpeg.encode(np.zeros((48, 64), np.uint8), quality=95), np.uint8).copy()
    return len(encoded.decode([torch.from_numpy(data)] * images, torch.device("cuda")))


def _outcome(count: Callable[[], int], frames: int) -> str:
    try:
        decoded = count()
    except Exception as error:
        return f"does not work: {cure(error)}"
    return "works" if decoded == frames else f"does not work: {decoded} of {frames} frames decode"
