"""The content of the videos: a hash of each file, computed once for a path, size and time stamp."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from pipeline.catalog.clips import UNREADABLE, Catalog, Clip
from pipeline.specs import DatasetSpec
from pipeline.system.digests import file_hash
from pipeline.system.errors import MachineFault
from pipeline.system.files import MAY_PASS
from pipeline.system.limits import usable_cores
from pipeline.system.progress import Progress, say

_MOMENTARY = 8
"""So many reads may fail and be tried again; more are no moment that passes but a disk that is away."""


def reading_threads() -> int:
    """Number of threads that read videos at full speed; twice as many are used, since some wait for the disk."""
    return min(4, usable_cores())


def hashes(spec: DatasetSpec, clips: Iterable[Clip], known: Iterable[Clip]) -> dict[str, str]:
    """Content hash of each path: from `known` if path, size and time stamp are the same, else computed in threads.

    A read that fails is tried again after all others: one moment of a disk must not cost the night.

    Raises:
        MachineFault: a read has failed twice, or many have failed.
    """
    old = by_stamp(known)
    content = {clip.path: old.get(stamp(clip)) for clip in clips}
    new = {path: Path(spec.videos, path) for path in content if content[path] is None}
    if not new:
        return content
    again: list[str] = []
    with (
        ThreadPoolExecutor(2 * reading_threads()) as pool,
        Progress("catalog: reading", len(new), "videos") as progress,
    ):
        for path, found in zip(new, pool.map(_hash_file, new.values()), strict=True):
            if isinstance(found, OSError):
                again.append(path)
                _say_or_raise(new[path], found, fatal=len(again) > _MOMENTARY)
                continue
            content[path] = found
            progress.advance()
        for path in again:
            found = _hash_file(new[path])
            if isinstance(found, OSError):
                _say_or_raise(new[path], found, fatal=True)
            content[path] = found
            progress.advance()
    return content


def of_equal_sizes(one: tuple[DatasetSpec, Catalog], two: tuple[DatasetSpec, Catalog]) -> tuple[Catalog, Catalog]:
    """Two outlines with the content of each file whose size a file of the other one has; no other can be the same file.

    Args:
        one, two: how each dataset is read, and its clips; content that is known already is kept.
    """
    sizes = {clip.bytes for clip in one[1].clips} & {clip.bytes for clip in two[1].clips}
    return _with_content(*one, sizes), _with_content(*two, sizes)


def _with_content(spec: DatasetSpec, catalog: Catalog, sizes: set[int]) -> Catalog:
    unknown = [clip for clip in catalog.clips if clip.content == UNREADABLE and clip.bytes in sizes]
    found = hashes(spec, unknown, ())
    clips = (replace(clip, content=found.get(clip.path, clip.content)) for clip in catalog.clips)
    return replace(catalog, clips=tuple(clips))


def stamp(clip: Clip) -> tuple[str, int, int]:
    """Path, size and time stamp: a cheap test that a file is unchanged since it was read."""
    return clip.path, clip.bytes, clip.mtime_ns


def by_stamp(clips: Iterable[Clip]) -> dict[tuple[str, int, int], str]:
    """Stamp -> content hash of the clips that could be read."""
    return {stamp(clip): clip.content for clip in clips if clip.content != UNREADABLE}


def _hash_file(file: Path) -> str | OSError:
    """The content hash, or UNREADABLE; or the error, if another time the file may be read.

    A catalog with a blank for it would be kept, and differ from those of other splits.
    """
    try:
        return file_hash(file)
    except OSError as error:
        if error.errno in MAY_PASS:
            return error
        say(f"catalog: {file} cannot be read: {error}")
        return UNREADABLE


def _say_or_raise(file: Path, error: OSError, *, fatal: bool) -> None:
    if fatal:
        raise MachineFault(f"{file} cannot be read: {error}; fix that, or remove the file") from error
    say(f"catalog: {file} cannot be read: {error}; trying again when all others have been read")
