"""A clip of a dataset, and all of them under one split.

Labels become zero-based in the catalog and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.catalog.rows import PARTS, ListedClip
from pipeline.system.digests import digest_of
from pipeline.system.errors import UserError

UNKNOWN = -1  # label of an unlabeled clip
UNREADABLE = "0" * 16  # `content` of a file that was not or cannot be read; decoding it later shows why
NO_VIDEO = frozenset({UNREADABLE, hashlib.blake2b(digest_size=8).hexdigest()})  # that, and `content` of an empty file


@dataclass(frozen=True)
class Clip:
    """One video of the dataset.

    Attributes:
        id: unique name, used in every artifact.
        path: relative to the folder of the videos, with forward slashes.
        label: zero-based index into `Catalog.classes`, or UNKNOWN.
        class_name: name of the class; "" if it is unknown.
        group: clips of one group come from one source; a group must not be divided between parts.
        part: "train", "val", "test" or "unused", in the split of the catalog.
        bytes, mtime_ns: size and time stamp of the file.
        content: 16 hex digits of BLAKE2b over the bytes of the file.
    """

    id: str
    path: str
    label: int
    class_name: str
    group: str
    part: str
    bytes: int
    mtime_ns: int
    content: str

    @classmethod
    def of(cls, row: ListedClip, label: int, bytes: int = 0, mtime_ns: int = 0) -> Clip:
        """The clip of a row, before its file is read."""
        return cls(row.id, row.path, label, row.class_name, row.group, row.part, bytes, mtime_ns, UNREADABLE)


@dataclass(frozen=True)
class Catalog:
    """All clips of a dataset under one split, sorted by id.

    Attributes:
        clips: every clip on disk, including the unused ones.
        classes: class names; the position is the label. Empty if the videos are unlabeled.
        split_name: the split, as the user named it.
        absent: listed paths that are not on disk (only with `partial`).
    """

    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    split_name: str
    absent: tuple[str, ...]

    def __post_init__(self):
        object.__setattr__(self, "clips", tuple(sorted(self.clips, key=lambda clip: clip.id)))
        _refuse_duplicates(self.clips)
        names = {UNKNOWN: "", **dict(enumerate(self.classes))}
        for clip in self.clips:
            if clip.part not in PARTS or names.get(clip.label) != clip.class_name:
                raise UserError(f"clip {clip.id!r}: no part {clip.part!r}, or {clip.class_name!r} not {clip.label}")

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={len(self.part(name))}" for name in PARTS)
        counts = (
            f"{len(self.clips)} clips, {len(self.classes)} classes, {len({clip.group for clip in self.clips})} groups"
        )
        return f"Catalog({counts}, split {self.split_name!r}: {parts})"

    def part(self, name: str) -> tuple[Clip, ...]:
        """The clips of "train", "val", "test" or "unused", sorted by id.

        Raises:
            ValueError: there is no such part.
        """
        if name not in PARTS:
            raise ValueError(f"part is {name!r}; allowed: {', '.join(PARTS)}")
        return tuple(clip for clip in self.clips if clip.part == name)

    def counts(self) -> dict[str, dict[str, int]]:
        """Part -> numbers of "clips" and "groups", for parts that have clips."""
        found = {name: self.part(name) for name in PARTS}
        return {
            name: {"clips": len(clips), "groups": len({c.group for c in clips})}
            for name, clips in found.items()
            if clips
        }

    def groups(self) -> dict[str, list[str]]:
        """Part -> names of its groups, sorted, for parts that have clips; {} if every clip is a group of its own."""
        if len({clip.group for clip in self.clips}) == len(self.clips):
            return {}
        return {name: sorted({clip.group for clip in self.part(name)}) for name in self.counts()}

    @property
    def videos_key(self) -> str:
        """12 hex digits over all that frames and flow depend on: the videos and their labels, not groups and parts."""
        return digest_of([[c.id, c.label, c.class_name, c.content] for c in self.clips])

    @property
    def key(self) -> str:
        """12 hex digits over all that training depends on: the videos, the classes, each clip's part and group."""
        return digest_of(self.videos_key, list(self.classes), [[clip.part, clip.group] for clip in self.clips])


def _refuse_duplicates(rows: Iterable[Clip]) -> None:
    """Refuse two rows of one id or of one path.

    Raises:
        UserError: there are such rows; the message names the first.
    """
    paths: dict[str, str] = {}
    for row in rows:
        if row.id in paths:
            if paths[row.id] == row.path:
                raise UserError(f"the video {row.path!r} is listed twice; take one line out")
            raise UserError(f"two videos have the id {row.id!r}: {paths[row.id]!r} and {row.path!r}; rename one")
        paths[row.id] = row.path
    for path, times in Counter(paths.values()).items():
        if times > 1:
            raise UserError(f"the video {path!r} is listed under {times} names")
