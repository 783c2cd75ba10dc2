"""Clips that earlier shards of a store hold already: made by the same settings from the same content, they are copied.

A new class renumbers the labels behind it, a new group pattern renames groups, a video that is added enters a shard or
divides it: such shards are written anew, but what is in them need not be decoded or computed anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import store


class Earlier:
    """The shards of a store that may hold a new shard's clips; a context manager."""

    def __init__(self, paths: Iterable[Path], kind: str, digest: str):
        """Those of other settings, and damaged ones, are left aside."""
        self._shards: list[store.Store] = []
        for path in paths:
            with contextlib.suppress(ValueError, OSError):
                shard = store.Store(path, kind)
                if shard.attrs.get("digest") == digest:
                    self._shards.append(shard)

    def __enter__(self) -> Earlier:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._shards:
            shard.close()

    def clip(self, video_id: str, made_from: str) -> tuple[store.StoredClip, dict[str, Any]] | None:
        """A clip that was made from this content, and its row in the table; None if there is none, or a damaged one.

        Args:
            video_id: its id.
            made_from: what its attribute of that name must be.
        """
        for shard in self._shards:
            if video_id not in shard.rows or video_id in shard.failed:
                continue
            with contextlib.suppress(ValueError, OSError, KeyError):
                found = shard[video_id]
                if found.attrs.get("made_from") == made_from and found.checksum() == found.attrs["crc32"]:
                    return found, shard.rows[video_id]
        return None


def copied(found: store.StoredClip, writer: store.ClipWriter) -> store.ClipWriter:
    """The writer, with all images of a stored clip as they are."""
    for part in found.parts:
        for data in found.jpegs(part=part):
            writer.append(data.tobytes(), part=part)
        if part in found.ranges_px:
            writer.append_range(found.ranges_px[part], part=part)
    return writer
