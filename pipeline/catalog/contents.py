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


def reading_threads() -> int:
    """Number of threads that read videos at full speed; twice as many are used, since some wait for the disk."""
    return min(4, usable_cores())


def hashes(spec: DatasetSpec, clips: Iterable[Clip], known: Iterable[Clip]) -> dict[str, str]:
    """Content hash of each path: from `known` if path, size and time stamp are the same, else computed in threads."""
    old = by_stamp(known)
    content = {clip.path: old.get(stamp(clip)) for clip in clips}
    new = [path for path in content if content[path] is None]
    if not new:
        return content
    with (
        ThreadPoolExecutor(2 * reading_threads()) as pool,
        Progress("catalog: reading", len(new), "videos") as progress,
    ):
        for path, digest in zip(new, pool.map(_hash_file, [Path(spec.videos, path) for path in new]), strict=True):
            content[path] = digest
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


def _hash_file(file: Path) -> str:
    try:
        return file_hash(file)
    except OSError as error:
        if error.errno in MAY_PASS:  # a catalog with a blank would be kept, and differ from those of other splits
            raise MachineFault(f"{file} cannot be read: {error}; fix that, or remove the file") from error
        say(f"catalog: {file} cannot be read: {error}")
        return UNREADABLE
