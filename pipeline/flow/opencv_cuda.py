"""OpenCV's flow estimators on CUDA devices, for an OpenCV built with CUDA; PyPI's wheels are not.

Those wheels still have a `cv2.cuda` with some of its classes, so only the number of devices tells them apart. Nothing
here has run on a real device yet: the tests use a stand-in for `cv2.cuda`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from pipeline.flow.opencv import OfPair, pair_by_pair
from pipeline.specs import FlowSpec
from pipeline.system.console import one_line
from pipeline.system.errors import UserError

CLASSES = {
    "opencv_cuda_tvl1": ("OpticalFlowDual_TVL1",),
    "opencv_cuda_brox": ("BroxOpticalFlow",),
    "nvidia_of": ("NvidiaOpticalFlow_2_0", "NvidiaOpticalFlow_1_0"),  # the newer first
}
MIN_SIZE_PX = (16, 16)  # of the coarsest level of Brox's pyramid
FIXED_POINT_STEPS = 32.0  # S10.5: a sign bit, ten integer bits (pixels), five fractional bits
SLOW_PRESET = 5  # NV_OF_PERF_LEVEL_SLOW of both versions: the most accurate
GRIDS_PX = (1, 2, 4)  # possible sides of a block of pixels that shares one vector
NVIDIA_MIN_SIZE_PX = (128, 160)  # smaller images are extended: each hardware generation has a minimum size


def device_count() -> int:
    """Number of CUDA devices OpenCV can use; 0 if it was built without CUDA or does not match the driver."""
    try:
        return max(0, cv2.cuda.getCudaEnabledDeviceCount())
    except (AttributeError, cv2.error):
        return 0


def why_not(method: str) -> str:
    """What this OpenCV build lacks for the method and what to do, or ""."""
    if not device_count():
        return (
            "OpenCV sees no CUDA device (PyPI's wheels are built without CUDA); build OpenCV and contrib with WITH_CUDA"
        )
    if not _classes(method):
        return f"this OpenCV has no {' or '.join(CLASSES[method])}; build it with contrib's cudaoptflow"
    return ""


def between(first: np.ndarray, second: np.ndarray, spec: FlowSpec, *, device: str) -> np.ndarray:
    """Flow from each first image to its second image; every pair is computed independently.

    Args:
        first, second: (N, H, W) uint8, gray.
        spec: its method is a key of CLASSES. Settings are OpenCV's defaults and the hardware's most accurate preset;
            no hints pass from pair to pair.
        device: "cuda" or "cuda:N".

    Returns:
        (N, 2, H, W) float32, pixels; channel 0 is x (right positive), 1 is y (down positive).

    Raises:
        UserError: this OpenCV build lacks the method, or the hardware's vectors have an unknown format.

    Source: Zach, Pock, Bischof, A duality based approach for realtime TV-L1 optical flow, DAGM 2007; Brox et al.,
    High accuracy optical flow estimation based on a theory for warping, ECCV 2004; NVIDIA Optical Flow SDK, with one
    vector, in units of 1/32 pixel, per square block of side 1, 2 or 4 pixels: we interpolate between the blocks.
    """
    if why := why_not(spec.method):
        raise UserError(f"[flow] method {spec.method} is not available: {why}")
    index = int(device.partition(":")[2] or 0)
    cv2.cuda.setDevice(index)
    with _estimator(spec.method, first.shape[1:], index) as (of_pair, size):
        return pair_by_pair(of_pair, size, first, second)


@contextlib.contextmanager
def _estimator(method: str, size: tuple[int, int], index: int) -> Iterator[tuple[OfPair, tuple[int, int]]]:
    """A function of two images that returns (H, W, 2) in pixels, and the (height, width) to extend them to."""
    classes = _classes(method)
    if method == "nvidia_of":
        whole = tuple(-(-max(side, low) // 4) * 4 for side, low in zip(size, NVIDIA_MIN_SIZE_PX, strict=True))
        hardware = _hardware(classes, whole, index)
        try:
            yield lambda a, b: to_pixels(hardware.calc(_upload(a), _upload(b), None)[0].download(), whole), whole
        finally:
            hardware.collectGarbage()  # nothing else frees its buffers
        return
    estimator = next(iter(classes.values())).create()
    if method == "opencv_cuda_brox":  # it takes gray values in 0..1
        yield lambda a, b: estimator.calc(_upload(_unit(a)), _upload(_unit(b)), None).download(), MIN_SIZE_PX
    else:
        yield lambda a, b: estimator.calc(_upload(a), _upload(b), None).download(), MIN_SIZE_PX


def _classes(method: str) -> dict[str, Any]:
    """The method's classes that this OpenCV build has, by name."""
    return {name: getattr(cv2.cuda, name) for name in CLASSES[method] if hasattr(cv2.cuda, name)}


def _hardware(classes: dict[str, Any], size: tuple[int, int], index: int) -> Any:
    """NVIDIA's estimator for images of (height, width) `size`, with the newest interface that the driver supports."""
    for name, kind in classes.items():
        grid = {"outputGridSize": GRIDS_PX[0]} if name == "NvidiaOpticalFlow_2_0" else {}  # the older one's is 4
        try:
            return kind.create(size[::-1], perfPreset=SLOW_PRESET, gpuId=index, **grid)
        except cv2.error as error:
            refused = one_line(str(error))
    raise UserError(f"[flow] method nvidia_of is not available: the GPU or its driver refuses ({refused})")


def to_pixels(vectors: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Convert the hardware's vectors to flow in pixels.

    Args:
        vectors: (h, w, 2) int16, 1/32 pixel of the image; each stands for a block of side 1, 2 or 4.
        size: (H, W) of the image, which the blocks fill exactly.

    Returns:
        (H, W, 2) float32, pixels, interpolated between the centers of blocks. The values do not depend on the block
        size, because the hardware counts in pixels of the image.

    Raises:
        UserError: vectors of the wrong type, or blocks that do not fill the image.
    """
    grid = size[0] // vectors.shape[0]
    if vectors.dtype != np.int16 or grid not in GRIDS_PX or vectors.shape != (size[0] // grid, size[1] // grid, 2):
        raise UserError(
            f"the optical flow hardware gave {vectors.dtype} of shape {vectors.shape} for an image of {size}; "
            f"expected int16, one vector for each block of side {', '.join(map(str, GRIDS_PX))}"
        )
    flow = vectors.astype(np.float32) / FIXED_POINT_STEPS
    return flow if grid == 1 else cv2.resize(flow, size[::-1], interpolation=cv2.INTER_LINEAR)


def _unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255


def _upload(image: np.ndarray) -> Any:
    matrix = cv2.cuda.GpuMat()
    matrix.upload(np.ascontiguousarray(image))
    return matrix
