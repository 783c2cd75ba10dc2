"""Images <-> JPEG bytes. Callers use RGB; OpenCV's BGR is used only in this module."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.system.errors import ClipError

_LONGEST_PX = 65_500  # of libjpeg


def encode(image: np.ndarray, *, quality: int) -> bytes:
    """JPEG bytes of one image, (H, W, 3) RGB or (H, W) gray, uint8.

    Raises:
        ClipError: a side is longer than 65,500 pixels.
    """
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    fits = max(image.shape[:2]) <= _LONGEST_PX  # else some versions of OpenCV raise an error of their own
    done, buffer = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality]) if fits else (False, None)
    if not done:
        raise ClipError(f"an image of shape {image.shape} cannot be written as JPEG; sides are 1 to 65,500 pixels")
    return buffer.tobytes()


def decode(data: np.ndarray, *, gray: bool) -> np.ndarray:
    """The image in (n,) uint8 JPEG bytes: (H, W) uint8 if `gray`, else (H, W, 3) uint8 RGB.

    Raises:
        ClipError: the bytes are not an image.
    """
    # ignore orientation tags: JPEG bytes from elsewhere may carry one, ours never do
    flag = (cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(data, flag) if len(data) else None
    if image is None:
        raise ClipError(f"{len(data)} bytes do not decode as JPEG")
    return image if gray else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
