"""Synthetic frames and flow stores for the benchmarks that read one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import store

FPS = 25.0


class Drawn(NamedTuple):
    """A clip of a synthetic store."""

    id: str
    label: int
    group: str
    images: Iterable[bytes]  # JPEG: frames, or the x and y planes of each field in turn
    size: tuple[int, int]  # height, width
    part: str = "train"


def class_of(label: int) -> str:
    """Name of a class."""
    return f"class{label}"


def write_store(folder: Path, kind: str, clips: Iterable[Drawn], *, shard_clips: int, bound_px: float = 20.0) -> None:
    """Write a store whose clips have the attributes that the Frames or Flow stage gives them.

    Args:
        folder: of the store; it is made.
        kind: "frames" or "flow".
        clips: drawn one after another, as they are written.
        shard_clips: clips in each shard.
        bound_px: of the bytes of a flow store.
    """
    about = {"digest": "synthetic", "inputs": "synthetic", "spec": "{}", "split_name": "1"}
    clips, found, parts = iter(clips), [], {}
    while inside := list(itertools.islice(clips, shard_clips)):
        name = f"shard-{len(found):06}"
        with store.create_shard(folder / "shards" / f"{name}.h5", kind, about) as shard:
            for clip in inside:
                record = _written(shard, kind, clip, bound_px)
                shard.record(record)
                found.append((record, name))
                parts[clip.id] = clip.part
    store.write_index(folder / "index.h5", kind, found, parts, about)


def _written(shard: store.ShardWriter, kind: str, clip: Drawn, bound_px: float) -> store.Record:
    writer, count = shard.clip(clip.id), 0
    for image in clip.images:
        writer.append(image)
        count += 1
    frames = count if kind == "frames" else count // 2 + 1
    attrs: dict[str, Any] = {"label": clip.label, "class": class_of(clip.label), "group": clip.group, "fps": FPS}
    attrs |= {"height": clip.size[0], "width": clip.size[1], "source": f"{clip.id}.avi", "made_from": "0"}
    if kind == "frames":
        crc32 = writer.finish({**attrs, "promised_frames": 0}, [t / FPS for t in range(frames)])
    else:
        crc32 = writer.finish({**attrs, "method": "none", "scaling": "bound", "bound_px": bound_px})
    return store.Record(clip.id, class_of(clip.label), clip.label, clip.group, frames, "ok", "", crc32)
