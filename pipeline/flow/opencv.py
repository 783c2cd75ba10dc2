"""OpenCV's flow estimators, pair by pair on the CPU.

They use as many threads as `cv2.setNumThreads` allows; a worker process sets that to 1.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from pipeline.specs import FlowSpec

DIS_MIN_SIDE_PX = 16  # of OpenCV's DIS; smaller images are refused by it
FARNEBACK = {"pyr_scale": 0.5, "levels": 5, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}
PRESETS = {
    "dis_ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "dis_fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "dis_medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


def between(first: np.ndarray, second: np.ndarray, spec: FlowSpec, *, device: str) -> np.ndarray:
    """Flow from each first image to its second image; every pair is computed from nothing but itself.

    Args:
        first, second: (N, H, W) uint8, gray.
        spec: its method names the estimator: dis_ultrafast, dis_fast, dis_medium or farneback.
        device: "cpu"; OpenCV's wheels know no other.

    Returns:
        (N, 2, H, W) float32, pixels; channel 0 is x (right positive), 1 is y (down positive).

    Source: Kroeger et al., Fast optical flow using dense inverse search, ECCV 2016; Farneback, Two-frame motion
    estimation based on polynomial expansion, SCIA 2003. Images with a side under 16 pixels, which OpenCV's DIS
    refuses, are extended by their border pixels and the flow is cut back.
    """
    count, height, width = first.shape
    of_pair, min_side = _estimator(spec.method)
    flow = np.empty((count, 2, height, width), np.float32)
    for t in range(count):
        pair = _extend(first[t], min_side), _extend(second[t], min_side)
        flow[t] = of_pair(*pair)[:height, :width].transpose(2, 0, 1)  # (H, W, 2) => (2, H, W)
    return flow


def _estimator(method: str) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], int]:
    """A function of two images that returns (H, W, 2), and the shortest side it takes."""
    if method == "farneback":
        return lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, **FARNEBACK), 1
    # a new one for each size: it never forgets the coarsest scale that the smallest image it has seen allowed
    dis = cv2.DISOpticalFlow.create(PRESETS[method])
    return lambda a, b: dis.calc(a, b, None), DIS_MIN_SIDE_PX  # None: no flow to start from, hence no memory


def _extend(image: np.ndarray, min_side: int) -> np.ndarray:
    height, width = image.shape
    if min(height, width) >= min_side:
        return image
    return np.pad(image, ((0, max(0, min_side - height)), (0, max(0, min_side - width))), mode="edge")
