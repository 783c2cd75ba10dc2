"""OpenCV's flow estimators, pair by pair on the CPU.

They use as many threads as `cv2.setNumThreads` allows (PCAFlow: one); worker processes set that to 1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import cv2
import numpy as np

from pipeline.specs import FlowSpec
from pipeline.system.errors import UserError

FARNEBACK_BORDER_PX = 16  # images are extended by this: with OpenCV's own border, identical frames seem to move
FARNEBACK = {"pyr_scale": 0.5, "levels": 5, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}
PRESETS = {
    "dis_ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "dis_fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "dis_medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
CONTRIB = {"deepflow": "createOptFlow_DeepFlow", "pcaflow": "createOptFlow_PCAFlow"}  # in cv2.optflow
# (height, width) of the smallest image that an estimator takes. On smaller ones, DIS chooses the coarsest scale by
# width alone and reads past the end of images that are less high
DIS_MIN_SIZE_PX = {"dis_ultrafast": (32, 32), "dis_fast": (32, 32), "dis_medium": (16, 16)}
# PCAFlow writes 14 x 18 cosine coefficients into an image of (height // 8 * 2, width // 8 * 2), overrunning it if it
# is smaller
PCAFLOW_MIN_SIZE_PX = (56, 72)
_NOTHING_TRACKED = ("checkVector", "empty matrix")  # in PCAFlow's messages when no point can be tracked
_SWITCHES = threading.Lock()  # OpenCV's switches are global: threads would restore each other's changes

OfPair = Callable[[np.ndarray, np.ndarray], np.ndarray]


def why_not(method: str) -> str:
    """What this OpenCV build lacks for the method and what to do, or ""."""
    if method in CONTRIB and not hasattr(getattr(cv2, "optflow", None), CONTRIB[method]):
        return (
            "this OpenCV has no contrib modules (cv2.optflow); pip uninstall opencv-python opencv-python-headless, "
            "then pip install --force-reinstall opencv-contrib-python"
        )
    return ""


def between(first: np.ndarray, second: np.ndarray, spec: FlowSpec, *, device: str) -> np.ndarray:
    """Flow from each first image to its second image; every pair is computed independently.

    Args:
        first, second: (N, H, W) uint8, gray.
        spec: its method names the estimator: a key of PRESETS or CONTRIB, or farneback.
        device: "cpu"; the CUDA methods are in `opencv_cuda.py`.

    Returns:
        (N, 2, H, W) float32, pixels; channel 0 is x (right positive), 1 is y (down positive).

    Raises:
        UserError: the method needs the contrib modules, and this OpenCV has none.

    Source: Kroeger et al., Fast optical flow using dense inverse search, ECCV 2016; Farneback, Two-frame motion
    estimation based on polynomial expansion, SCIA 2003; Weinzaepfel et al., DeepFlow, ICCV 2013 (OpenCV's has no deep
    matching, only the variational part); Wulff and Black, Efficient sparse-to-dense optical flow estimation using a
    learned basis and layers, CVPR 2015 (OpenCV's uses cosines instead of a learned basis). Images too small for an
    estimator are extended by repeating their border pixels, and the flow is cropped back.
    """
    return pair_by_pair(*_estimator(spec.method), first, second)


def pair_by_pair(of_pair: OfPair, min_size: tuple[int, int], first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, 2, H, W) flow of (N, H, W) images, by a function of two images of at least `min_size`, (height, width)."""
    count, height, width = first.shape
    flow = np.empty((count, 2, height, width), np.float32)
    for t in range(count):
        pair = _extended(first[t], min_size), _extended(second[t], min_size)
        flow[t] = of_pair(*pair)[:height, :width].transpose(2, 0, 1)  # (H, W, 2) => (2, H, W)
    return flow


def _extended(image: np.ndarray, min_size: tuple[int, int]) -> np.ndarray:
    """The image with its last row and column repeated until it is at least `min_size`, (height, width)."""
    height, width = image.shape
    if height >= min_size[0] and width >= min_size[1]:
        return image
    return np.pad(image, ((0, max(0, min_size[0] - height)), (0, max(0, min_size[1] - width))), mode="edge")


def _estimator(method: str) -> tuple[OfPair, tuple[int, int]]:
    """A function of two images that returns (H, W, 2), and the smallest (height, width) it takes."""
    if method == "farneback":
        return _farneback, (1, 1)
    if method in PRESETS:
        # a new one for each call of `between`: it keeps the coarsest scale that the smallest image so far allowed
        dis = cv2.DISOpticalFlow.create(PRESETS[method])
        finest = dis.getFinestScale()
        return lambda a, b: _dis(dis, finest, a, b), DIS_MIN_SIZE_PX[method]
    if why := why_not(method):
        raise UserError(f"[flow] method {method} is not available: {why}")
    contrib = getattr(cv2.optflow, CONTRIB[method])()
    if method == "pcaflow":
        return lambda a, b: _pcaflow(contrib, a, b), PCAFLOW_MIN_SIZE_PX
    return lambda a, b: contrib.calc(a, b, None), (1, 1)


def _dis(estimator: cv2.DISOpticalFlow, finest: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Run DIS, whose finest scale a small image lowers for all that follow, which would then get other scales."""
    estimator.setFinestScale(finest)
    return estimator.calc(first, second, None)  # None: no initial flow, so pairs are independent


def _farneback(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    border = FARNEBACK_BORDER_PX
    pair = (cv2.copyMakeBorder(image, *[border] * 4, cv2.BORDER_REPLICATE) for image in (first, second))
    return cv2.calcOpticalFlowFarneback(*pair, None, **FARNEBACK)[border:-border, border:-border]


def _pcaflow(estimator: cv2.DenseOpticalFlow, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Run PCAFlow with one thread and without OpenCL, because its bits depend on both.

    The flow is 0 if no point can be tracked (a black frame): OpenCV rejects such a pair, and the damped least squares
    fit to no points is 0.
    """
    with _SWITCHES:
        threads, opencl = cv2.getNumThreads(), cv2.ocl.useOpenCL()
        cv2.setNumThreads(1)
        cv2.ocl.setUseOpenCL(False)
        try:
            return estimator.calc(first, second, None)
        except cv2.error as error:
            if not any(words in error.err for words in _NOTHING_TRACKED):
                raise
            return np.zeros((*first.shape, 2), np.float32)
        finally:
            cv2.setNumThreads(threads)
            cv2.ocl.setUseOpenCL(opencl)
