"""Flow of enlarged frames, brought back to their own size: what is a few pixels wide moves as something wider."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def enlarged(images: np.ndarray, factor: int) -> np.ndarray:
    """(N, H, W) or (N, H, W, 3) uint8 with sides `factor` times as long, by bicubic interpolation.

    Always by OpenCV on the CPU: where the motion is estimated must not change the images by a rounding.
    """
    if factor == 1:
        return images
    import cv2

    height, width = images.shape[1:3]
    size = width * factor, height * factor
    return np.stack([cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in images])


def brought_back(flow: np.ndarray | Tensor, factor: int) -> np.ndarray | Tensor:
    """(N, 2, factor H, factor W) flow of enlarged images -> (N, 2, H, W), in pixels of the images as they were.

    A vector is the mean of those of the `factor` x `factor` points that its pixel became.
    """
    if factor == 1:
        return flow
    count, _, height, width = flow.shape
    blocks = flow.reshape(count, 2, height // factor, factor, width // factor, factor)
    if isinstance(flow, np.ndarray):
        return blocks.mean((3, 5), dtype=np.float32) / np.float32(factor)
    return blocks.mean((3, 5)) / factor
