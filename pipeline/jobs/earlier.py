"""Clips that earlier shards of a store hold already: made by the same settings from the same content, they are copied.

A new class renumbers the labels behind it, a new group pattern renames groups, a video that is added enters a shard or
divides it: such shards are written anew, but what is in them need not be decoded or computed anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import store
from pipeline.catalog import UNREADABLE


class Found(NamedTuple):
    """A clip of an earlier shard."""

    stored: store.StoredClip
    row: dict[str, Any]
    """Its row in the table."""
    seconds: list[float]
    """Presentation times of frames; of flow there are none."""


class Earlier:
    """The shards of a store that may hold a new shard's clips; a context manager."""

    def __init__(self, paths: Iterable[Path], kind: str, digest: str):
        """Those of other settings, and damaged ones, are left aside."""
        self._shards: list[store.Store] = []
        for path in paths:
            with contextlib.suppress(Exception):  # damage to HDF5's own structures may raise anything
                shard = store.Store(path, kind)
                if shard.attrs["digest"] == digest:
                    self._shards.append(shard)

    def __enter__(self) -> Earlier:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._shards:
            shard.close()

    def clip(self, video_id: str, made_from: str) -> Found | None:
        """A clip that was made from this content, all its images as they were written; None if there is none.

        Args:
            video_id: its id.
            made_from: what its attribute of that name must be.
        """
        for shard in self._shards:
            if made_from == UNREADABLE or video_id not in shard.rows or video_id in shard.failed:
                continue
            with contextlib.suppress(Exception):  # then it is made anew
                stored = shard[video_id]
                if stored.attrs["made_from"] != made_from or stored.checksum() != stored.attrs["crc32"]:
                    continue
                seconds = [] if stored.kind == "flow" else stored.seconds.tolist()
                if _is_plausible(stored, seconds):
                    return Found(stored, shard.rows[video_id], seconds)
        return None


def _is_plausible(stored: store.StoredClip, seconds: list[float]) -> bool:
    """Whether what the checksum does not cover can be true."""
    if stored.kind == "flow":
        return all((low <= high).all() for low, high in (np.moveaxis(r, 2, 0) for r in stored.ranges_px.values()))
    return {"fps", "promised_frames"} <= set(stored.attrs) and bool(np.isfinite(seconds).all())


def copied(found: store.StoredClip, writer: store.ClipWriter) -> store.ClipWriter:
    """The writer, with all images of a stored clip as they are."""
    for part in found.parts:
        for data in found.jpegs(part=part):
            writer.append(data.tobytes(), part=part)
        if part in found.ranges_px:
            writer.append_range(found.ranges_px[part], part=part)
    return writer
