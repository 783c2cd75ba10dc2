"""Stacks of flow fields as stored, without conversion to floats: bytes, with a scale and an offset per plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.specs import StackSpec
from pipeline.stacks import Window, check_count, make_stack

_BYTES = np.arange(256)


class Planes(NamedTuple):
    """Components of flow fields, alternately x and y, as stored: in pixels, each is `plane * scale + offset`.

    As read, they are consecutive fields of a clip; as a network's input, the 2L channels of a stack.
    """

    planes: Sequence[np.ndarray]
    """Each (H, W) uint8 or float32, or still JPEG, (n,) uint8; not copied into one array, since often only a crop is
    needed."""
    scale: np.ndarray
    """Factor of each plane, (planes,) float64, pixels per unit of the plane."""
    offset: np.ndarray
    """Offset of each plane, (planes,) float64, pixels."""

    def pixels(self) -> np.ndarray:
        """The planes in pixels, (planes, H, W) float32."""
        found = np.empty((len(self.planes), *self.planes[0].shape), np.float32)
        for plane, scale, offset, pixels in zip(*self, found, strict=True):
            if plane.dtype == np.uint8:  # converts 256 values, not all pixels
                cv2.LUT(plane, (_BYTES * scale + offset).astype(np.float32), dst=pixels)
            else:
                pixels[:] = plane * scale + offset
        return found


class EncodedStack(NamedTuple):
    """The planes of a stack as JPEG, and what only their store knows about them."""

    planes: Planes
    """2L planes as JPEG, before any mean is subtracted."""
    height: int
    width: int
    source: tuple[str, Path]
    """Clip and store folder that the planes come from, for messages."""


def stored_stack(forward: Planes, backward: Planes | None, spec: StackSpec, where: Window) -> Planes:
    """The network input of one window, from stored fields: what `make_stack` gives, to within float32 rounding.

    A factor and an offset per plane turn bytes into pixels, and the mean vector of a field follows from the sum of its
    bytes, which is exact. So the caller can crop first and apply factor and offset last. Only trajectories, which must
    sample the fields, convert them to pixels here. Planes that are still JPEG are only put in order, which works if
    `spec` neither subtracts means nor follows trajectories.

    Args:
        forward: fields [i, j) = where.forward.
        backward: fields of where.backward, or None where that is None.
        spec: kind of stack, and whether means are subtracted.
        where: from `window`, with the same spec.

    Returns:
        2L planes, channels x1 y1 x2 y2 ... xL yL.

    Raises:
        ValueError: the wrong number of fields.
    """
    if spec.kind == "trajectory":
        stack = make_stack(_fields(forward), backward and _fields(backward), spec, where)
        return Planes(stack, np.ones(len(stack)), np.zeros(len(stack)))
    planes, scale, offset = [], [], []
    for name, given, span, order in (
        ("forward", forward, where.forward, where.ahead),
        ("backward", backward, where.backward, where.behind),
    ):
        check_count(name, given and len(given.planes) // 2, span)
        for place in (2 * (field - span[0]) + component for field in order for component in (0, 1)):
            planes.append(given.planes[place])
            scale.append(given.scale[place])
            offset.append(given.offset[place])
    if spec.subtract_mean:  # the mean of q * s + o is mean(q) * s + o
        offset = [-s * cv2.mean(plane)[0] for plane, s in zip(planes, scale, strict=True)]
    return Planes(planes, np.array(scale), np.array(offset))


def _fields(given: Planes) -> np.ndarray:
    """The fields in pixels, (n, 2, H, W) float32."""
    pixels = given.pixels()
    return pixels.reshape(-1, 2, *pixels.shape[1:])
