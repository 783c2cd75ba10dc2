"""What a worker does with one shard: `frames.py` decodes videos, `flow.py` computes motion. One outcome a clip.

A job holds paths and settings, never arrays; it travels to the worker, and a number of clips comes back.
"""

import contextlib
from collections.abc import Iterator

import cv2

from pipeline.errors import ClipError

BAD_CLIP = (ClipError, cv2.error)  # the clip's own fault, which becomes its reason; all else fails the shard
_OF_THE_MACHINE = (cv2.Error.StsNoMem, cv2.Error.GpuNotSupported, cv2.Error.GpuApiCallError)


@contextlib.contextmanager
def machine_faults() -> Iterator[None]:
    """Turn OpenCV's errors that no clip can be blamed for into RuntimeError, so that another try may find them gone."""
    try:
        yield
    except cv2.error as error:
        if getattr(error, "code", None) not in _OF_THE_MACHINE:
            raise
        raise RuntimeError(f"OpenCV on this machine: {printable(error)}") from error


def printable(error: BaseException) -> str:
    """The message of an error as one line; what a damaged file puts into it may be anything."""
    return "".join(letter if letter.isprintable() else " " for letter in str(error)).strip()
