"""Files that are either whole or absent, and records of what folders were made from."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.system.errors import UserError
from pipeline.system.progress import say

MADE_FROM = "made_from.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota used up, a limit of the size of files
DISK_AWAY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # a disk or a network that fails
MAY_PASS = (*DISK_AWAY, errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # or this machine lacks something
TEMPORARY = ".tmp-"  # in the names of files that `find_temporaries` finds
_IMPOSSIBLE = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system does not have at all
_NUMBERS = itertools.count()


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
    return path.with_name(f".{path.stem}{TEMPORARY}{writer}{path.suffix}")


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
        UserError: the file holds something else, for example after disk damage; the message says what to do.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even text
        raise UserError(f"{path} is damaged ({error}); delete it and run the same command again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (it holds no mapping); delete it and run the same command again")
    return value


def find_temporaries(folder: Path) -> list[Path]:
    """Temporary files in or below `folder`, left by a killed process or being written right now."""
    return sorted(path for path in folder.rglob(".*") if TEMPORARY in path.name)


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
        OSError, UserError: the file is missing or damaged.
    """
    found = read_json(folder / MADE_FROM).get("artifacts")
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{folder / MADE_FROM} is damaged (it names no artifacts)")
    return found


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


def size_of(folder: Path) -> int:
    """Bytes of all files in and below a folder; links are not followed, and files that vanish meanwhile are ignored."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += file.lstat().st_size if file.is_file() and not file.is_symlink() else 0
    return total


def with_home(path: str) -> str:
    """A path with a leading ~/ expanded: no shell does that in luigi.cfg, nor after --videos=."""
    return str(Path(path).expanduser()) if path.startswith("~/") else path


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
