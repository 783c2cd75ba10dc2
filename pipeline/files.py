"""Files that are either whole or absent, and folders with one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.progress import say

MADE_FROM = "made_from.json"
LOCK = ".lock"  # in the folder of an artifact; held by the one run that writes there
IN_USE = ".in_use"  # in the folder of all artifacts; shared by every run
_TEMPORARY = ".tmp-"


@contextlib.contextmanager
def commit(path: Path | str) -> Iterator[Path]:
    """Write to a temporary sibling; it takes the name `path` only if the block ends well, and vanishes otherwise.

    The temporary keeps the suffix of `path` (writers that go by the suffix work) and is flushed to disk before the
    rename, so that neither an exception, a kill nor a power cut leaves a partial file under the final name.

    Yields:
        The path to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}{_TEMPORARY}{os.getpid()}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        error.add_note(f"while writing {path}")
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with commit(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value) -> None:
    """Write a small JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path | str) -> dict:
    """What `write_json` wrote of a mapping.

    Raises:
        ValueError: something else is in it, as after damage to the disk; with what to do.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{path} is damaged ({error}); delete it and run the same command again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged (it holds no mapping); delete it and run the same command again")
    return value


def remove_temporaries(folder: Path) -> int:
    """Remove what a killed process left half written in `folder`; only the holder of its lock may call this.

    Returns:
        How many files were removed.
    """
    found = find_temporaries(folder)
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def find_temporaries(folder: Path) -> list[Path]:
    """What was left half written in `folder` or below it, or is just being written."""
    return sorted(path for path in folder.rglob(".*") if _TEMPORARY in path.name)


def record_made_from(folder: Path, artifacts: Path, others: Iterable[Path]) -> None:
    """Write down which other artifacts the one in `folder` is about to be made from.

    Args:
        folder: its own.
        artifacts: folder of everything that is made: an artifact is three folders below it.
        others: artifacts, or files in them; whatever lies elsewhere is left out.
    """
    root, *paths = (Path(os.path.normpath(path.absolute())) for path in (artifacts, *others))  # links stay as they are
    inside = [path.relative_to(root) for path in paths if path.is_relative_to(root)]
    names = {Path(*path.parts[:3]).as_posix() for path in inside}
    write_json(folder / MADE_FROM, {"artifacts": sorted(names)})


def read_made_from(folder: Path) -> list[str]:
    """What `record_made_from` wrote: paths below the folder of all artifacts.

    Raises:
        OSError, ValueError, KeyError: it is not there, or damaged.
    """
    return list(read_json(folder / MADE_FROM)["artifacts"])


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second run waits and says for whom. The system frees it when its holder dies."""
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
        remove_temporaries(folder)
        yield


@contextlib.contextmanager
def try_exclusive_lock(folder: Path, lock: str = LOCK) -> Iterator[bool]:
    """Keep others out of a folder within the block; False if one is at work in it, which nobody waits for.

    Of all artifacts, with `IN_USE`, it is the runs that are kept out.
    """
    with (folder / lock).open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def hold_shared_lock(artifacts: Path, *, create: bool) -> int:
    """Hold off `try_exclusive_lock` of all artifacts.

    It lasts until the descriptor that is returned is closed, or this process ends.
    Without `create`, and if there never was a run, nothing is written and -1 is returned.
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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_space_text(folder: Path) -> str:
    """How much may still be written to the disk of a folder, in words; it need not exist yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{shutil.disk_usage(there).free / 1e6:.0f} MB are free on the disk of {folder}"


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it; where it is a link, what it points to and the link."""
    shutil.rmtree(folder.resolve())
    if folder.is_symlink():
        folder.unlink()


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder and below; links are not followed."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def file_hash(path: Path) -> str:
    """16 hex digits of BLAKE2b over the bytes of a file."""
    digest = hashlib.blake2b(digest_size=8)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value) -> str:
    """One text for equal values: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def plain_name(text: str) -> str:
    """A text as part of a folder's name: what is not a letter, digit, dot or underscore becomes a dash."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-.") or "x"


def link(path: Path, target: Path) -> None:
    """Let the symbolic link `path` point to its sibling `target`, replacing an older link in one step."""
    temporary = path.with_name(f".{path.name}{_TEMPORARY}{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(path)
