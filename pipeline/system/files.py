"""Files that are either whole or absent, and folders with one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path

from pipeline.system.progress import say

MADE_FROM = "made_from.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota used up, a limit of the size of files
# a disk or a network that fails, or a machine short of something: it may pass, and says nothing about a file
MAY_PASS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
LOCK = ".lock"  # in an artifact's folder; held by the one run that writes there
IN_USE = ".in_use"  # in the folder of all artifacts; every run holds it as a shared lock
_TEMPORARY = ".tmp-"
_IMPOSSIBLE = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system does not have at all
_NUMBERS = itertools.count()
_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())  # folders that this thread is writing


@contextlib.contextmanager
def commit(path: Path | str) -> Iterator[Path]:
    """Write a temporary file beside `path`; it is renamed to `path` if the block ends without error, else removed.

    The temporary file keeps the suffix of `path`, for writers that depend on it. It is flushed to disk before the
    rename, so no exception, kill or power cut leaves a partial file under the final name.

    Yields:
        The path to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(path)
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        error.add_note(f"while writing {path}")
        raise


def _temporary_beside(path: Path) -> Path:
    # with the host name, since containers on several machines often have the same process numbers
    # and a number, since a thread that a killed run left behind in a worker may still write the same file
    writer = f"{plain_name(socket.gethostname())}-{os.getpid()}-{next(_NUMBERS)}"
    return path.with_name(f".{path.stem}{_TEMPORARY}{writer}{path.suffix}")


def write_text(path: Path | str, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with commit(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value) -> None:
    """Write a small JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def inside(path: Path | str, name: str) -> Path:
    """The file `name` in `path` if that is a folder, else `path` itself."""
    return Path(path) / name if Path(path).is_dir() else Path(path)


def read_json(path: Path | str) -> dict:
    """Read a mapping that `write_json` wrote.

    Raises:
        ValueError: the file holds something else, for example after disk damage; the message says what to do.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is damaged ({error}); delete it and run the same command again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged (it holds no mapping); delete it and run the same command again")
    return value


def find_temporaries(folder: Path) -> list[Path]:
    """Temporary files in or below `folder`, left by a killed process or being written right now."""
    return sorted(path for path in folder.rglob(".*") if _TEMPORARY in path.name)


def record_made_from(folder: Path, artifacts: Path, others: Iterable[Path]) -> None:
    """Record which other artifacts the artifact in `folder` is about to be made from.

    Args:
        folder: folder of the artifact.
        artifacts: folder of all artifacts; each artifact lies three levels below it.
        others: the other artifacts, or files in them; paths outside `artifacts` are ignored.
    """
    root, *paths = (Path(os.path.normpath(path.absolute())) for path in (artifacts, *others))  # links are not resolved
    below = [path.relative_to(root) for path in paths if path.is_relative_to(root)]
    names = {Path(*path.parts[:3]).as_posix() for path in below}
    write_json(folder / MADE_FROM, {"artifacts": sorted(names)})


def read_made_from(folder: Path) -> list[str]:
    """Read what `record_made_from` wrote: paths relative to the folder of all artifacts.

    Raises:
        OSError, ValueError, KeyError: the file is missing or damaged.
    """
    return list(read_json(folder / MADE_FROM)["artifacts"])


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. A second run prints who holds it and waits. The lock is freed when its holder dies.

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
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            say(f"{folder} is being written by {lock.read().strip() or 'another run'}; waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
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
def no_writer(folder: Path) -> Iterator[None]:
    """Keep writers out of an artifact's folder for the block.

    Raises:
        ValueError: somebody is writing there.
    """
    with try_exclusive_lock(folder) as free:
        if not free:
            raise ValueError(f"{folder} is being written; wait for that to end")
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


def nameless_file() -> int:
    """Descriptor of a new, empty file, which is gone when it is closed; in memory where the system has that (Linux)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("nameless")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_space_text(folder: Path) -> str:
    """Free space on the disk of a folder, as text; the folder need not exist yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{shutil.disk_usage(there).free / 1e6:.0f} MB are free on the disk of {folder}"


def remove_artifact(folder: Path, *, first: str) -> bool:
    """Remove an artifact's folder, unless somebody is writing there. Returns whether it was removed.

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


def size_of(folder: Path) -> int:
    """Bytes of all files in and below a folder; links are not followed, and files that vanish meanwhile are ignored."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.lstat().st_size if file.is_file() and not file.is_symlink() else 0
    return total


def file_hash(path: Path) -> str:
    """16 hex digits of BLAKE2b over the bytes of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def plain_name(text: str) -> str:
    """The text as part of a folder name: anything but letters, digits, dots and underscores becomes a dash."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-.") or "x"


def link(path: Path, target: Path) -> None:
    """Point the symbolic link `path` at its sibling `target`, atomically replacing an older link.

    On a file system that has no links, it is only said that there is none: the link is a convenience.
    """
    temporary = _temporary_beside(path)
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except OSError as error:
        if error.errno not in _IMPOSSIBLE:
            raise
        say(f"{path} does not point to {target.name}, because links are not possible there ({error.strerror})")
        return
    temporary.replace(path)
