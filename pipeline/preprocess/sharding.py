"""Which clips share a shard: a binary trie over hashed ids.

The plan depends only on the names and sizes of the clips, so adding or changing a clip affects only its own shard.
"""

from __future__ import annotations

import bisect
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pipeline import store
from pipeline.catalog import Clip


def plan_shards(clips: Iterable[Clip], *, most_clips: int, most_bytes: int) -> dict[str, tuple[Clip, ...]]:
    """Divide clips into shards of at most `most_clips` clips and `most_bytes` of video (one clip may be larger).

    Extendible hashing: the bits of a clip's hashed id lead down a binary trie, and a leaf that is too full is split.
    A shard is named after its path: with one clip too many, shard 01 becomes 010 and 011, and no other changes.
    """
    clips = list(clips)
    leaves: dict[str, tuple[Clip, ...]] = {}
    bits = {clip.id: _hash_bits(clip.id) for clip in clips}
    waiting = [("", sorted(clips, key=lambda clip: clip.id))]
    while waiting:
        prefix, inside = waiting.pop()
        fits = len(inside) <= most_clips and sum(clip.bytes for clip in inside) <= most_bytes
        if len(inside) <= 1 or fits or len(prefix) == 64:
            if inside:
                leaves[f"shard-{prefix or 'all'}"] = tuple(inside)
            continue
        for way in "01":
            waiting.append((prefix + way, [clip for clip in inside if bits[clip.id][len(prefix)] == way]))
    return dict(sorted(leaves.items()))


def plan_of(found: store.Store, clips: Iterable[Clip]) -> dict[str, tuple[Clip, ...]]:
    """The shards of a finished store as `plan_shards` gives them: they may have been cut by other sizes."""
    plan: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: clip.id):
        plan[found.rows[clip.id]["shard"]].append(clip)
    return {name: tuple(inside) for name, inside in sorted(plan.items())}


def _hash_bits(video_id: str) -> str:
    return f"{int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest()):064b}"


def _bits_of(path: Path) -> str:
    """A shard's path in the trie, by its name."""
    return path.stem.removeprefix("shard-").removesuffix("all")


class Shards:
    """Existing shards, by their path in the trie."""

    def __init__(self, paths: Iterable[Path]):
        self._paths = {_bits_of(path): path for path in paths}
        self._bits = sorted(self._paths)

    def related(self, path: Path) -> tuple[Path, ...]:
        """Existing shards that may hold clips of the shard at `path`: its ancestors in the trie, itself, its parts."""
        ours = _bits_of(path)
        above = [ours[:n] for n in range(len(ours)) if ours[:n] in self._paths]
        parts = slice(*(bisect.bisect_left(self._bits, bits) for bits in (ours, f"{ours}2")))  # bits are 0 and 1
        return tuple(self._paths[bits] for bits in [*above, *self._bits[parts]])
