"""What lasts as long as a command or a `luigi.build`: what tasks remember, and the lock that keeps `gc` off."""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from luigi.cmdline_parser import CmdlineParser
from luigi.worker import Worker

from pipeline.system import files
from tasks import settings
from tasks.mistakes import told_plainly

_QUESTION: ContextVar[object] = ContextVar("question", default=None)
_MAY_WRITE: ContextVar[bool] = ContextVar("may_write", default=True)
_OF_WORKERS = {Worker.add.__code__, Worker.run.__code__}
_IN_USE: dict[tuple[str, int], int] = {}  # (artifacts, process) -> lock that keeps `gc` off


def use_artifacts(artifacts: str, *, create: bool = False) -> None:
    """Keep `gc` off these artifacts until this command ends; a Python caller must do that itself."""
    key = (artifacts, os.getpid())
    if settings.from_command_line() and _IN_USE.get(key, -1) < 0:
        with told_plainly():
            try:
                _IN_USE[key] = files.hold_shared_lock(Path(artifacts), create=create)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise
                raise ValueError(
                    f"[run] artifacts is {artifacts!r}, where nothing can be written ({error.strerror}); give another "
                    "folder by --artifacts"
                ) from None


def may_write() -> bool:
    """Whether a task's `check` may write or download; a plan must not."""
    return _MAY_WRITE.get()


@contextlib.contextmanager
def writing_nothing() -> Iterator[None]:
    """Within the block no `check` writes or downloads anything, not even to see whether a download works."""
    before = _MAY_WRITE.set(False)
    try:
        yield
    finally:
        _MAY_WRITE.reset(before)


@contextlib.contextmanager
def one_look() -> Iterator[object]:
    """Scope of remembered answers: yields the same object for as long as they remain valid.

    It is Luigi's command, or the worker of `luigi.build`: a program may build again a day later, and Luigi would give
    it the same task objects. If a program only queries a task, each query, with those it makes in turn, is a new scope.
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
    """The worker that called us, directly or indirectly."""
    for frame, _ in traceback.walk_stack(None):
        if frame.f_code in _OF_WORKERS:
            return frame.f_locals["self"]
    return None
