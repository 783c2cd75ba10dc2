"""Stacks of fields as they are stored, without turning a byte into a float: bytes, and what they mean."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from pipeline.specs import StackSpec
from pipeline.stacks import Window, check_read, make_stack


class Stack(NamedTuple):
    """The temporal input at one moment: in pixels it is `planes * scale + offset`, channel by channel."""

    planes: np.ndarray
    """(2L, H, W) uint8 or float32, channels x1 y1 x2 y2 ... xL yL."""
    scale: np.ndarray
    """(2L,) float64."""
    offset: np.ndarray
    """(2L,) float64."""

    def pixels(self) -> np.ndarray:
        """(2L, H, W) float32, pixels."""
        return (self.planes * self.scale[:, None, None] + self.offset[:, None, None]).astype(np.float32)


class StoredFields(NamedTuple):
    """Consecutive fields as they are stored: in pixels they are `planes * scale + offset`."""

    planes: np.ndarray
    """(n, 2, H, W) uint8 (or float32)."""
    scale: np.ndarray
    """(n, 2) float64."""
    offset: np.ndarray
    """(n, 2) float64."""

    def pixels(self) -> np.ndarray:
        """(n, 2, H, W) float32, pixels."""
        return Stack(*(part.reshape(-1, *part.shape[2:]) for part in self)).pixels().reshape(self.planes.shape)


def stored_stack(forward: StoredFields, backward: StoredFields | None, spec: StackSpec, where: Window) -> Stack:
    """The network input of one window, from stored fields: what `make_stack` gives, to float32 rounding.

    Between bytes and pixels lies a factor and an offset a plane, and the mean vector of a field follows from the sum of
    its bytes, which is exact; so whoever crops and normalises can put both off to the end. Only a trajectory, which has
    to look into the fields, turns them into pixels here.

    Args:
        forward: fields [i, j) = where.forward.
        backward: fields of where.backward, or None where that is None.
        spec: kind of stack, and whether means are subtracted.
        where: from `window`, with the same spec.

    Raises:
        ValueError: other fields than the window asked for.
    """
    if spec.kind == "trajectory":
        pixels = make_stack(forward.pixels(), backward and backward.pixels(), spec, where)
        return Stack(pixels, np.ones(len(pixels)), np.zeros(len(pixels)))
    halves = [("forward", forward, where.forward, where.ahead), ("backward", backward, where.backward, where.behind)]
    parts = []
    for name, fields, span, order in halves:
        check_read(name, fields and fields.planes, span)
        if span is not None:
            parts.append([part[np.array(order) - span[0]].reshape(-1, *part.shape[2:]) for part in fields])
    planes, scale, offset = (np.concatenate(of) if len(of) > 1 else of[0] for of in zip(*parts, strict=True))
    if spec.subtract_mean:  # of values q * s + o the mean is mean(q) * s + o
        offset = -scale * [cv2.mean(plane)[0] for plane in planes]
    return Stack(planes, scale, offset)
