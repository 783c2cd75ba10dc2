"""Photographs with measured motion: two of Middlebury's stereo pairs, from Debian packages, used for flow.

    apt-get download opencv-doc python3-skimage                          # Debian or Ubuntu; nothing is installed
    for deb in *.deb; do dpkg -x $deb unpacked; done
    mkdir stereo && find unpacked -name 'aloe*' -o -name 'motorcycle_*' | xargs cp -t stereo
    python benchmarks/flow.py --stereo stereo

From the left camera to the right one each point moves left by its disparity, which Middlebury measured with structured
light: 43 to 211 px in *aloe* (2006), 7 to 60 px in *motorcycle* (2014). That is large, so the right image is moved back
by a disparity in between (90 and 30 px), and both images are reduced to the size and the motion of a video.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scenes import Pair, read_image

SAME_PX = 1.0  # disparities closer than this belong to one surface: neither point hides the other


class _Scene(NamedTuple):
    left: str
    right: str
    disparity: str
    back_px: int  # how far the right image is moved back
    reductions: tuple[int, int]  # how many pixels become one along each side, for each size


SCENES = {
    "aloe": _Scene("aloeL.jpg", "aloeR.jpg", "aloeGT.png", 90, (4, 8)),
    "motorcycle": _Scene("motorcycle_left.png", "motorcycle_right.png", "motorcycle_disp.npz", 30, (2, 4)),
}


def stereo(folder: Path) -> list[Pair]:
    """Both scenes in two sizes: up to 30 px of motion in frames about 320 px wide, and half of either.

    Raises:
        SystemExit: a file is missing, or the sizes differ.
    """
    found = []
    for k, reach_px in enumerate((30, 15)):
        for name, scene in SCENES.items():
            images = [read_image(folder / file) for file in (scene.left, scene.right)]
            disparity = read_disparity(folder / scene.disparity)
            if {image.shape[:2] for image in images} != {disparity.shape}:
                raise SystemExit(f"{name} in {folder}: images and disparity are not of one size")
            group = f"stereo, up to {reach_px} px"
            found.append(pair(group, name, images, disparity, scene.back_px, scene.reductions[k]))
    return found


def read_disparity(path: Path) -> np.ndarray:
    """(H, W) float32 pixels, NaN where unknown, which a picture marks as 0 and an array as infinite.

    Raises:
        SystemExit: there is no such file.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is missing; benchmarks/stereo.py says where to get it")
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            disparity = arrays[arrays.files[0]].astype(np.float32)
    else:
        disparity = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32)
    disparity[~np.isfinite(disparity) | (disparity == 0)] = np.nan
    return disparity


def pair(group: str, name: str, images: list[np.ndarray], disparity: np.ndarray, back_px: int, reduction: int) -> Pair:
    """Two views as two frames.

    Args:
        group: as in `Pair`.
        name: as in `Pair`.
        images: left and right, (H, W, 3) uint8 RGB each.
        disparity: (H, W) pixels by which points move left, NaN where unknown.
        back_px: how far the right image is moved right; columns without a partner are cut off.
        reduction: side of the squares of pixels that become one; its motion is their median disparity, or unknown if
            at least half of theirs are.
    """
    left, right = images[0][:, back_px:], images[1][:, : images[1].shape[1] - back_px]
    apart = disparity[:, back_px:] - back_px
    height, width = (side // reduction for side in apart.shape)
    cut = np.s_[: height * reduction, : width * reduction]
    frames = [cv2.resize(view[cut], (width, height), interpolation=cv2.INTER_AREA) for view in (left, right)]
    squares = apart[cut].reshape(height, reduction, width, reduction).swapaxes(1, 2).reshape(height, width, -1)
    known = np.isfinite(squares).mean(-1) > 0.5
    horizontal = np.zeros(known.shape, np.float32)
    horizontal[known] = -np.nanmedian(squares[known], -1) / reduction
    truth = np.stack([horizontal, np.zeros_like(horizontal)])
    return Pair(group, name, np.stack(frames), truth, known, known & _in_sight(horizontal, known))


def _in_sight(horizontal: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(H, W) bool: the point stays in the frame, and no nearer point (which moves farther left) lands on it."""
    width = known.shape[1]
    rows, columns = np.nonzero(known)
    to = columns + horizontal[known]
    inside = (to >= 0) & (to <= width - 1)
    at = np.rint(to[inside]).astype(int)
    nearest = np.full(known.shape, np.inf, np.float32)
    np.minimum.at(nearest, (rows[inside], at), horizontal[known][inside])
    seen = np.zeros(known.shape, bool)
    seen[rows[inside], columns[inside]] = horizontal[known][inside] <= nearest[rows[inside], at] + SAME_PX
    return seen
