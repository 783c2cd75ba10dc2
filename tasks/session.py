"""What lasts as long as a command: the lock that holds `gc` off, and what its tasks have found out.

A program that calls Luigi from Python has no such end: nothing of it is kept.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline import files
from tasks import settings
from tasks.mistakes import told_plainly

_COMMAND = object()
_LOOKING: list[object] = []  # holds the present look of a program
_IN_USE: dict[tuple[str, int], int] = {}  # artifacts, process -> lock that holds `gc` off


def use_artifacts(artifacts: str, *, create: bool = False) -> None:
    """Hold `gc` off these artifacts until this command ends; a caller from Python must do that itself."""
    key = (artifacts, os.getpid())
    if settings.from_command_line() and _IN_USE.get(key, -1) < 0:
        with told_plainly():
            _IN_USE[key] = files.hold_shared_lock(Path(artifacts), create=create)


@contextlib.contextmanager
def one_look() -> Iterator[object]:
    """What tells how long an answer is remembered.

    It is one object as long as a command runs. A program may ask a day later, and Luigi would give it the same tasks:
    there it is another one each time, except for the questions that a question leads to.
    """
    if settings.from_command_line():
        yield _COMMAND
    elif _LOOKING:
        yield _LOOKING[0]
    else:
        _LOOKING.append(object())
        try:
            yield _LOOKING[0]
        finally:
            _LOOKING.clear()
