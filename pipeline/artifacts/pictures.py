"""Pictures of a store's content: frames, or flow in colors."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pipeline import store
from pipeline.artifacts.inspection import clip_named, file_of, kind_of
from pipeline.system.errors import UserError


def picture(path: Path, out: Path, *, clip: str = "", images: int = 8) -> str:
    """Write a PNG of equally spaced frames of a clip, or of its flow: hue is direction, brightness is speed.

    Returns:
        What the picture shows, in words.

    Raises:
        FileNotFoundError: the folder of the picture does not exist.
        UserError: the file is not a store, or holds no clips or none of this name, or `out` does not end in .png.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"the picture's path is {str(out)!r}; give a path that ends in .png")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {str(out.parent)!r} for the picture does not exist")
    kind = kind_of(file_of(path))
    if kind not in ("frames", "flow"):
        raise UserError(f"{path} is a {kind} file; pictures are made of frames and flow stores")
    opened = store.Store(file_of(path), kind)
    if not opened:
        raise UserError(f"{path} holds no clip of which a picture could be made: all have failed")
    shown = clip_named(opened, clip or next(iter(opened)))
    at = np.linspace(0, len(shown) - 1, min(images, len(shown))).round().astype(int)
    tiles = [shown.frames(i, i + 1)[0] if kind == "frames" else shown.flow(i, i + 1)[0] for i in at]
    if kind == "flow":
        fastest = max(float(np.percentile(np.hypot(*flow), 99.5)) for flow in tiles)
        tiles = [flow_colors(flow, full_px=max(fastest, 1.0)) for flow in tiles]
    if not cv2.imwrite(str(out), cv2.cvtColor(np.hstack(tiles), cv2.COLOR_RGB2BGR)):
        raise OSError(f"no picture can be written to {out}")
    return f"{len(tiles)} of {len(shown)} {'frames' if kind == 'frames' else 'fields of flow'} of clip {shown.id}"


def flow_colors(flow: np.ndarray, *, full_px: float) -> np.ndarray:
    """(2, H, W) float32 flow in pixels -> (H, W, 3) uint8 RGB: hue is direction (red right, cyan left), value is speed.

    `full_px` is the speed, in pixels, shown at full brightness.
    """
    speed, angle = cv2.cartToPolar(flow[0], flow[1], angleInDegrees=True)
    value = np.clip(speed / full_px * 255, 0, 255)
    hsv = np.stack([angle / 2, np.full_like(value, 255), value], -1).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
