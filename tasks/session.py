"""What lasts as long as a command or a build of a program: what tasks have found out, and the lock against `gc`."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from luigi.cmdline_parser import CmdlineParser
from luigi.worker import Worker

from pipeline import files
from tasks import settings
from tasks.mistakes import told_plainly

_QUESTION: ContextVar[object] = ContextVar("question", default=None)
_OF_WORKERS = {Worker.add.__code__, Worker.run.__code__}
_IN_USE: dict[tuple[str, int], int] = {}  # artifacts, process -> lock that holds `gc` off


def use_artifacts(artifacts: str, *, create: bool = False) -> None:
    """Hold `gc` off these artifacts until this command ends; a caller from Python must do that itself."""
    key = (artifacts, os.getpid())
    if settings.from_command_line() and _IN_USE.get(key, -1) < 0:
        with told_plainly():
            _IN_USE[key] = files.hold_shared_lock(Path(artifacts), create=create)


@contextlib.contextmanager
def one_look() -> Iterator[object]:
    """What tells how long an answer is remembered: the same object as long as it holds.

    It is Luigi's command, or the worker of `luigi.build`. A program may build again a day later, and Luigi would give
    it the same tasks. A program that only asks a task has another look each time, which includes what that task asks.
    """
    if of_luigi := CmdlineParser.get_instance() or _worker():
        yield of_luigi
        return
    within = _QUESTION.get()
    given = _QUESTION.set(within or object())
    try:
        yield _QUESTION.get()
    finally:
        _QUESTION.reset(given)


def _worker() -> Worker | None:
    """The worker that has called us, directly or not."""
    for frame, _ in traceback.walk_stack(None):
        if frame.f_code in _OF_WORKERS:
            return frame.f_locals["self"]
    return None
