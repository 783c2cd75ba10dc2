"""The library of the two-stream pipeline: arrays and files, no Luigi.

Read the folders and modules in the order of the data: `specs`, `catalog`, `video`, `flow`, `quantize`, `store`,
`preprocess`, `stacks`, `transforms`, `dataset`, `networks`, `training`, `scores`, `inference`, `fusion`, `report`.
Each imports only from those before it; docs/design.md has the list of all, and `tests/test_layers.py` holds them to it.
"""

import os
import sys

# its warnings of videos that do not open name no file; our messages do. Read when cv2 is first loaded
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

_threads_of_opencv: list[int] = []  # as they were before each fork that is under way


def _end_threads_of_opencv() -> None:
    """A forked child has no threads but one, and OpenCV in it would wait without end for those that it had."""
    if hasattr(cv2 := sys.modules.get("cv2"), "setNumThreads"):
        _threads_of_opencv.append(cv2.getNumThreads())
        cv2.setNumThreads(1)


def _allow_threads_of_opencv() -> None:
    if _threads_of_opencv:
        sys.modules["cv2"].setNumThreads(_threads_of_opencv.pop())


if hasattr(os, "register_at_fork"):  # Luigi forks its workers, and torch's DataLoader may
    os.register_at_fork(
        before=_end_threads_of_opencv,
        after_in_parent=_allow_threads_of_opencv,
        after_in_child=_allow_threads_of_opencv,
    )
