"""What a worker does with one shard: `frames.py` decodes videos, `flow.py` computes flow. Each clip gets one outcome.

A job holds paths and settings, never arrays. It is sent to a worker, which returns the number of clips.
"""

import contextlib
from collections.abc import Iterator

import cv2

from pipeline.console import one_line
from pipeline.errors import ClipError, MachineFault

BAD_CLIP = (ClipError, cv2.error)  # errors that are the clip's fault and become its reason; all others fail the shard
_OF_THE_MACHINE = (cv2.Error.StsNoMem, cv2.Error.GpuNotSupported, cv2.Error.GpuApiCallError)


@contextlib.contextmanager
def machine_faults() -> Iterator[None]:
    """Turn OpenCV's errors that are the machine's fault, not a clip's, into `MachineFault`."""
    try:
        yield
    except cv2.error as error:
        if getattr(error, "code", None) not in _OF_THE_MACHINE:
            raise
        raise MachineFault(f"OpenCV on this machine: {one_line(str(error))}") from error
