"""Flow of enlarged frames, brought back to the original size: it captures objects only a few pixels wide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def enlarged(images: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge (N, H, W) or (N, H, W, 3) uint8 images `factor` times along each side, by bicubic interpolation.

    OpenCV always does this on the CPU, so the rounding does not depend on the device of the flow.
    """
    if factor == 1:
        return images
    import cv2

    height, width = images.shape[1:3]
    size = width * factor, height * factor
    return np.stack([cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in images])


def brought_back(flow: np.ndarray | Tensor, factor: int) -> np.ndarray | Tensor:
    """(N, 2, factor H, factor W) flow of enlarged images -> (N, 2, H, W), in pixels of the original images.

    Each vector is the mean over the `factor` x `factor` pixels that its pixel became, divided by `factor`.
    """
    if factor == 1:
        return flow
    count, _, height, width = flow.shape
    blocks = flow.reshape(count, 2, height // factor, factor, width // factor, factor)
    if isinstance(flow, np.ndarray):
        return blocks.mean((3, 5), dtype=np.float32) / np.float32(factor)
    return blocks.mean((3, 5)) / factor
