"""What lasts as long as a command or a `luigi.build`: settings, what tasks cache, the lock that keeps `gc` off."""

from __future__ import annotations

import contextlib
import errno
import os
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.worker import Worker

from pipeline.system import files, locks
from pipeline.system.errors import UserError
from tasks import settings
from tasks.mistakes import one_line_errors

_SCOPE: ContextVar[object] = ContextVar("scope", default=None)
_SCOPES: WeakKeyDictionary[object, object] = WeakKeyDictionary()  # command or worker -> its scope, which can be pickled
_MAY_WRITE: ContextVar[bool] = ContextVar("may_write", default=True)
_OF_WORKERS = {Worker.add.__code__, Worker.run.__code__}
_IN_USE: dict[tuple[str, int], int] = {}  # (artifacts, process) -> lock that keeps `gc` off


def use_artifacts(artifacts: str, *, create: bool = False) -> None:
    """Keep `gc` off these artifacts until this command ends; a Python caller must do that itself."""
    key = (artifacts, os.getpid())
    if settings.from_command_line() and _IN_USE.get(key, -1) < 0:
        with one_line_errors():
            try:
                _IN_USE[key] = locks.hold_shared_lock(Path(artifacts), create=create)
            except ValueError as error:  # a character that no path may have
                raise UserError(f"[run] artifacts is {artifacts!r}: {error}") from None
            except OSError as error:
                if error.errno in files.NO_SPACE:
                    raise
                if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    if not create:  # nothing is written
                        return
                    raise UserError(
                        f"[run] artifacts is {artifacts!r}, whose file system has no locks ({error.strerror}), which "
                        "keep two runs from writing the same file; give another folder by --artifacts"
                    ) from None
                raise UserError(
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
def cache_scope() -> Iterator[object]:
    """Scope of what tasks cache of the disk and the settings: yields the same object for as long as it remains valid.

    It is Luigi's command, or the worker of `luigi.build`: a program may build again a day later, and Luigi would give
    it the same task objects. If a program only queries a task, each query, with those it makes in turn, is a new scope.
    """
    scope = _SCOPE.get()
    if scope is None:
        of_luigi = CmdlineParser.get_instance() or _worker()
        scope = object() if of_luigi is None else _SCOPES.setdefault(of_luigi, object())
    given = _SCOPE.set(scope)
    try:
        yield scope
    finally:
        _SCOPE.reset(given)


class cached_in_scope:
    """A property of a task that is computed once in a `cache_scope`: between two, a program may change the settings."""

    def __init__(self, compute: Callable[[Any], Any]):
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"cached {name}"

    def __get__(self, task: luigi.Task | None, owner: type) -> Any:
        if task is None:
            return self
        with cache_scope() as scope:
            of_scope, value = task.__dict__.get(self._name, (None, None))
            if of_scope is not scope:
                value = self._compute(task)
                task.__dict__[self._name] = scope, value
            return value


class OfProgram(luigi.Task):
    """A task whose result depends on the settings of this program, or of this command, not only on its parameters."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # a scheduler that serves several commands knows tasks by this, and must not take one's for the other's
        self.task_id += f"_{settings.fingerprint()}"

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled, for a process that may be forked later but not spawned.

        Raises:
            RuntimeError: for a spawned process, which would run the task with the settings of luigi.cfg alone.
        """
        if get_spawning_popen() is not None:
            raise RuntimeError(
                "Luigi's worker processes must be forked: others would not know the settings of this program. Call "
                'multiprocessing.set_start_method("fork"), or use workers=1'
            )
        return self.__dict__


def _worker() -> Worker | None:
    """The worker that called us, directly or indirectly."""
    for frame, _ in traceback.walk_stack(None):
        if frame.f_code in _OF_WORKERS:
            return frame.f_locals["self"]
    return None
