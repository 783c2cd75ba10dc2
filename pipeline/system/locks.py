"""Locks on folders: one writer or many readers of an artifact, and many runs or one removal among all artifacts.

They are the file system's (flock): a lock is freed when its holder dies, and seen from other machines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import shutil
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from pipeline.system.errors import UserError
from pipeline.system.files import find_temporaries
from pipeline.system.progress import say

LOCK = ".lock"  # in an artifact's folder; held by the one run that writes there, or by those that read a store
IN_USE = ".in_use"  # in the folder of all artifacts; every run holds it as a shared lock
_NO_LOCK = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())  # folders that this thread is writing


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. A second run prints who holds it and waits, as it does while somebody is `reading`.

    The holder may enter again. Temporary files that a killed process left in the folder are removed.

    Raises:
        RuntimeError: a spawned child is re-running an unguarded script; it would wait for a lock that its parent holds
            while starting it.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # so multiprocessing itself finds out
        raise RuntimeError(
            "this script starts processes, which import it again; put what it does under "
            '`if __name__ == "__main__":`, so that they do not do it too'
        )
    place = folder.absolute()
    if place in _HELD.get():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        _wait_for(lock, fcntl.LOCK_EX, folder)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        for left in find_temporaries(folder):
            left.unlink(missing_ok=True)
        before = _HELD.set(_HELD.get() | {place})
        try:
            yield
        finally:
            _HELD.reset(before)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Keep writers out of a folder for the block, which others may read too. Waits for one that is there.

    Nothing keeps them out where there can be no lock, as of a store that is linked from a disk mounted read-only, or
    from one without locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(os.fdopen(os.open(folder / LOCK, os.O_RDONLY | os.O_CREAT, 0o644)))
            _wait_for(lock, fcntl.LOCK_SH, folder)
            stack.callback(fcntl.flock, lock, fcntl.LOCK_UN)  # to close it is not enough if a forked child has it open
        except OSError as error:
            if error.errno not in _NO_LOCK:
                raise
        yield


def _wait_for(lock: IO[str], kind: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"{folder} is being {_what_holds(lock)}; waiting for that to end")
        fcntl.flock(lock, kind)


def _what_holds(lock: IO[str]) -> str:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        return f"written by {lock.read().strip() or 'another run'}"
    fcntl.flock(lock, fcntl.LOCK_UN)
    return "read by another run"


@contextlib.contextmanager
def try_exclusive_lock(folder: Path, lock: str = LOCK) -> Iterator[bool]:
    """Try to lock a folder for the block, without waiting; yields False if another process holds the lock.

    With `lock=IN_USE` on the folder of all artifacts, this keeps out all runs.
    """
    with (folder / lock).open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def nobody_else(folder: Path) -> Iterator[None]:
    """Keep writers and other readers out of an artifact's folder for the block.

    Raises:
        UserError: somebody is writing or `reading` there.
    """
    with try_exclusive_lock(folder) as free:
        if not free:
            raise UserError(f"{folder} is being written or read; wait for that to end")
        yield


@contextlib.contextmanager
def no_run_in(artifacts: Path) -> Iterator[None]:
    """Keep runs out of the folder of all artifacts while something in it is removed.

    Raises:
        UserError: a run is active, which may need what would be removed.
    """
    if not (artifacts / IN_USE).exists():  # no run has ever been here
        yield
        return
    with try_exclusive_lock(artifacts, IN_USE) as alone:
        if not alone:
            raise UserError(f"a run is going on in {artifacts}, and may need what it has not read yet; wait")
        yield


def hold_shared_lock(artifacts: Path, *, create: bool) -> int:
    """Hold a shared lock on the folder of all artifacts, so that `try_exclusive_lock` on it fails.

    The lock lasts until the returned file descriptor is closed or this process ends.
    Without `create`, if there has never been a run, nothing is written and -1 is returned.
    """
    lock = artifacts / IN_USE
    if create and not artifacts.exists():
        artifacts.mkdir(parents=True, exist_ok=True)
    elif not create and not lock.exists():
        return -1
    descriptor = os.open(lock, os.O_RDONLY | (os.O_CREAT if create else 0), 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"something is being removed from {artifacts}; waiting for that to end")
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def remove_artifact(folder: Path, *, first: str) -> bool:
    """Remove an artifact's folder, unless somebody writes or reads there. Returns whether it was removed.

    The file `first` goes before all others, so that the remains of an interrupted removal do not count as whole. The
    lock goes last, when it is closed: NFS only renames an open file, and would keep the folder. If the folder is a
    link, the one it points to and the link are removed.
    """
    place = folder.resolve()
    with try_exclusive_lock(folder) as free:
        if not free:
            return False
        (place / first).unlink(missing_ok=True)
        for path in list(place.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    shutil.rmtree(place)
    if folder.is_symlink():
        folder.unlink()
    return True
