"""The library of the two-stream pipeline: arrays and files, no Luigi.

The table in docs/design.md has its folders and modules in the order of the data, in which they are best read. Each
imports only from those before it; `tests/test_layers.py` holds them to it.
"""

import os
import sys
import threading

# its warnings of videos that do not open name no file; our messages do. Read when cv2 is first loaded
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

_forking, _threads_of_opencv = threading.Lock(), 0  # how many there were before the fork; 0 if it is not loaded


def _end_threads_of_opencv() -> None:
    """A forked child has no threads but one, and OpenCV in it would wait forever for those that it had."""
    global _threads_of_opencv
    _forking.acquire()  # of two threads that fork at once, one would take the other's 1 for what it was before
    loaded = hasattr(cv2 := sys.modules.get("cv2"), "setNumThreads")
    _threads_of_opencv = cv2.getNumThreads() if loaded else 0
    if loaded:
        cv2.setNumThreads(1)


def _allow_threads_of_opencv() -> None:
    if _threads_of_opencv:
        sys.modules["cv2"].setNumThreads(_threads_of_opencv)
    _forking.release()


if hasattr(os, "register_at_fork"):  # Luigi forks its workers, and torch's DataLoader may
    os.register_at_fork(
        before=_end_threads_of_opencv,
        after_in_parent=_allow_threads_of_opencv,
        after_in_child=_allow_threads_of_opencv,
    )
