"""Copy clips from earlier shards of a store, if they were made with the same settings from the same content.

A new class renumbers the labels behind it, and an added video enters a shard or divides it. Such shards are written
again, but their clips need not be decoded or computed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import store
from pipeline.catalog import UNREADABLE
from pipeline.system.console import plain
from pipeline.system.progress import say


class Found(NamedTuple):
    """A clip that was found in an earlier shard."""

    stored: store.StoredClip
    row: dict[str, Any]
    """Row of the clip in the table of that shard."""
    seconds: list[float]
    """Presentation times of the frames, in seconds; empty for flow."""


class Earlier:
    """Earlier shards of a store that may hold clips of a new shard; a context manager."""

    def __init__(self, paths: Iterable[Path], kind: str, digest: str):
        """Open the shards in `paths`; shards of other settings and damaged ones are ignored."""
        self._shards: list[store.Store] = []
        for path in paths:
            try:
                shard = store.Store(path, kind)
                if shard.attrs["digest"] == digest:
                    self._shards.append(shard)
            except Exception as error:  # damage to HDF5's own structures may raise anything
                say(f"{kind}: nothing is copied from {path}, which cannot be read: {error!r}")

    def __enter__(self) -> Earlier:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._shards:
            shard.close()

    def clip(self, video_id: str, made_from: str) -> Found | None:
        """Find a clip that was made from this content and whose images match their checksum; None if there is none.

        Args:
            video_id: id of the clip.
            made_from: the value that its attribute `made_from` must have.
        """
        for shard in self._shards:
            if made_from == UNREADABLE or video_id not in shard.rows or video_id in shard.failed:
                continue
            try:
                if found := _unchanged(shard, video_id, made_from):
                    return found
            except Exception as error:  # as above
                what = f"{shard.kind}: {plain(video_id)} is not copied from {shard.path}"
                say(f"{what}, where it cannot be read: {error!r}")
        return None


def _unchanged(shard: store.Store, video_id: str, made_from: str) -> Found | None:
    stored = shard[video_id]
    if stored.attrs.get("made_from") != made_from or stored.checksum() != stored.attrs["crc32"]:
        return None
    return Found(stored, shard.rows[video_id], [] if stored.kind == "flow" else stored.seconds.tolist())


def copy_into(writer: store.ClipWriter, found: store.StoredClip) -> store.ClipWriter:
    """Copy all images of a stored clip, unchanged, into the writer, and return the writer."""
    for direction in found.directions:
        for data in found.jpegs(direction=direction):
            writer.append(data.tobytes(), direction=direction)
        if direction in found.ranges_px:
            writer.append_range(found.ranges_px[direction], direction=direction)
    return writer
