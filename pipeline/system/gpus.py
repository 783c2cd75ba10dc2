"""The CUDA devices that torch can use, counted so that this process can still fork others that use them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os

from pipeline.system.progress import say_once

_BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"  # torch's own variable
_NVML = "libnvidia-ml.so.1"  # comes with the driver


def cuda_count() -> int:
    """Number of CUDA devices that torch can use here; prints a line if the driver is too old for any.

    Under Luigi torch asks NVML for the devices (`tasks/__init__.py`), which counts those of a driver that is too old
    for this torch as well; CUDA itself would not, but a process that has asked it cannot fork others to use it.
    """
    import torch

    if not torch.cuda.is_available():
        return 0
    asked_nvml = os.environ.get(_BY_NVML) == "1" and not torch.cuda.is_initialized()
    if asked_nvml and (why := driver_too_old()):
        say_once(f"no GPU is used: {why}")
        return 0
    return torch.cuda.device_count()


def driver_too_old() -> str:
    """Why NVIDIA's driver cannot run this torch, and what helps; "" if it can, or if there is no driver.

    A driver for CUDA 12.4 runs what was built for any CUDA 12, but nothing that was built for CUDA 13.
    """
    import torch

    supported, built = _supported_by_driver(), torch.version.cuda
    if not supported or not built or supported[0] >= int(built.partition(".")[0]):
        return ""
    return (
        f"the NVIDIA driver supports CUDA {supported[0]}.{supported[1]}, but this torch was built for CUDA {built}; "
        f"update the driver, or install torch and torchvision built for CUDA {supported[0]}"
    )


@functools.cache
def _supported_by_driver() -> tuple[int, int] | None:
    """Newest version of CUDA that the driver supports, (major, minor); None if there is none, or NVML cannot say."""
    version = ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):  # no driver, or one that is too old to be asked
        nvml = ctypes.CDLL(_NVML)
        if nvml.nvmlInit_v2():
            return None
        failed = nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version))
        nvml.nvmlShutdown()
        if not failed:
            return version.value // 1000, version.value % 1000 // 10
    return None
