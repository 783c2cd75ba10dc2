"""The catalog of a dataset: one row per clip, with its label, its group and its part of the data.

A dataset's clips and classes do not depend on the split, so all splits share frames.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pipeline.catalog import remarks
from pipeline.catalog.clips import NO_VIDEO, UNKNOWN, UNREADABLE, Catalog, Clip
from pipeline.catalog.contents import by_stamp, hashes, reading_threads, stamp
from pipeline.catalog.layouts import (
    Ignored,
    Stat,
    list_files,
    lost_message,
    match,
    read_layout,
    scan_videos,
    unnamed_message,
)
from pipeline.catalog.parts import draw_parts
from pipeline.catalog.rows import ListedClip
from pipeline.specs import DatasetSpec
from pipeline.system.console import some
from pipeline.system.digests import digest_of
from pipeline.system.errors import UserError

__all__ = [
    "UNKNOWN",
    "UNREADABLE",
    "NO_VIDEO",
    "Catalog",
    "Clip",
    "changes",
    "files_fingerprint",
    "outline",
    "read_dataset",
    "reading_threads",
]


def files_fingerprint(spec: DatasetSpec) -> str:
    """Fingerprint of the files: a cheap test of whether any video or list was added, removed or touched.

    Args:
        spec: the dataset.

    Returns:
        12 hex digits over path, size and time stamp of every video and list, and over the videos that lack
        read permission. No file is opened.

    Raises:
        FileNotFoundError: the folder of the videos or a list does not exist.
    """
    videos = [[path, stat.bytes, stat.mtime_ns] for path, stat in _videos(spec).items()]
    closed = [path for path, *_ in videos if not os.access(Path(spec.videos, path), os.R_OK)]
    stats = [(file.name, file.stat()) for file in list_files(spec)]
    of_lists = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return digest_of(videos, of_lists, *([closed] if closed else []))


def read_dataset(spec: DatasetSpec, split: str | int, *, known: Iterable[Clip] = ()) -> Catalog:
    """Read a dataset of any layout, drawing by group the parts that the layout does not define.

    With `spec.partial`, listed but absent videos are left out and named in `Catalog.absent`. Classes without videos are
    left out too; the others keep their order and get consecutive labels. Without it, both are errors.

    Args:
        spec: where the dataset is, and how it is read and split.
        split: a number; layouts "folder" and "csv" also accept the name of the group to test.
        known: clips of older catalogs. A file with the path, size and time stamp of one of them is not read again.

    Returns:
        The catalog. Videos that no list names are not in it.

    Raises:
        FileNotFoundError: the folder of the videos, a list, or a listed video does not exist.
        UserError: no videos, a duplicate id, an unknown label, a class without clips or without training clips,
            a split that does not exist.
        MachineFault: a disk or a network fails: a video cannot be read, nor again after all others, or many cannot.
    """
    split = str(split)
    ignored = Ignored()
    videos = _videos(spec, ignored)
    found = _outline(spec, split, videos)
    clips = len(found.clips)
    remarks.on_files(spec, clips=clips, videos=len(videos), absent=found.absent, ignored=ignored)
    trained = {clip.class_name for clip in found.part("train")}
    remarks.on_classes(spec, found.classes, trained=trained, split=split)
    remarks.on_names(Counter(clip.class_name for clip in found.clips if clip.class_name))
    content = hashes(spec, found.clips, known)
    found = replace(found, clips=tuple(replace(clip, content=content[clip.path]) for clip in found.clips))
    if found.classes:  # unlabeled videos are not meant for training
        remarks.on_split(spec, split, {clip.group for clip in found.part("test")})
        remarks.on_groups(spec, found.clips)
        remarks.on_parts(spec, found.counts())
        remarks.on_untested(found.clips, found.classes)
        remarks.on_copies(_copies(found, "train", ("val", "test")), "validation or test", "training")
        remarks.on_copies(_copies(found, "val", ("test",)), "test", "validation")
    return found


def outline(spec: DatasetSpec, split: str, *, known: Iterable[Clip] = ()) -> Catalog:
    """A quick version of `read_dataset`'s catalog: no video is opened, and nothing is printed.

    A file not among `known` (by path, size and time stamp) has content UNREADABLE.

    Raises:
        FileNotFoundError, UserError: as for `read_dataset`.
    """
    found, old = _outline(spec, split, _videos(spec)), by_stamp(known)
    return replace(found, clips=tuple(replace(clip, content=old.get(stamp(clip), UNREADABLE)) for clip in found.clips))


def changes(old: Catalog, new: Catalog) -> list[str]:
    """How the videos differ from `old`, one line per kind: gone, new, changed, other class or group, other part."""
    before, now = ({clip.id: clip for clip in catalog.clips} for catalog in (old, new))
    both = [(clip, now[clip.id]) for clip in old.clips if clip.id in now]
    kinds = {
        "gone, with all that was made from them": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "changed": [a.id for a, b in both if a.content != b.content],
        "of another class or group": [a.id for a, b in both if (a.class_name, a.group) != (b.class_name, b.group)],
        "of another part (results before and after are not of the same clips)": [
            a.id for a, b in both if a.part != b.part and old.split_name == new.split_name
        ],
    }
    of_all = {"new": len(now)}
    return [
        f"{what}: {len(names)} of {of_all.get(what, len(before))} videos ({some(names)})"
        for what, names in kinds.items()
        if names
    ]


def _outline(spec: DatasetSpec, split: str, videos: dict[str, Stat]) -> Catalog:
    if not videos:
        raise UserError(f"[dataset] videos: there is no video in {spec.videos!r} or below it")
    rows, listed_classes = read_layout(spec, split, videos)
    rows, absent = match(spec, rows, videos)
    rows = draw_parts(spec, rows, split)
    classes = _classes(spec, rows, listed_classes, split)
    label = {"": UNKNOWN} | {name: number for number, name in enumerate(classes)}
    clips = [Clip.of(row, label[row.class_name], videos[row.path].bytes, videos[row.path].mtime_ns) for row in rows]
    return Catalog(tuple(clips), tuple(classes), split, tuple(absent))


def _videos(spec: DatasetSpec, ignored: Ignored | None = None) -> dict[str, Stat]:
    if not spec.videos:  # an empty path would mean the current folder
        raise UserError("[dataset] videos is empty; give the folder of the videos")
    try:
        str(Path(spec.videos).absolute()).encode()
    except UnicodeEncodeError:  # it would crash the decoder
        raise UserError(
            f"[dataset] videos is below a folder whose name is not UTF-8: {spec.videos!r}; rename that folder"
        ) from None
    ignored = ignored or Ignored()
    videos = scan_videos(Path(spec.videos), ignored)
    if spec.layout == "unlabelled":  # it loses only those videos
        return videos
    if ignored.unnamed:
        raise UserError(f"{unnamed_message(spec, ignored.unnamed)}; rename them")
    if ignored.lost and not spec.partial:  # everything made from videos on an unmounted disk would go
        raise FileNotFoundError(
            f"{lost_message(spec, ignored.lost)}; mount the disk that they lead to, remove the links, or, if the set "
            "is meant to be partial, set [dataset] partial = true"
        )
    return videos


def _classes(spec: DatasetSpec, rows: list[ListedClip], listed: list[str], split: str) -> list[str]:
    """The classes; each must have clips and training clips, but a partial set keeps all that have clips."""
    present = {row.class_name for row in rows} - {""}
    trained = {row.class_name for row in rows if row.part == "train"}
    empty, untrained = [name for name in listed if name not in present], sorted(present - trained)
    if empty and not spec.partial:
        raise UserError(
            f"no clip of {len(empty)} of the classes: {some(empty)}; take them out, or set [dataset] partial"
        )
    if untrained and not spec.partial:
        raise UserError(
            f"{remarks.untrained(untrained, split)}; add clips of other groups, take the class out, or set [dataset] "
            "partial = true to go on anyway"
        )
    return [name for name in listed if name in present]


def _copies(catalog: Catalog, part: str, later: tuple[str, ...]) -> list[str]:
    """Ids of the clips of the later parts that are byte-for-byte copies of a clip of this part."""
    known = {clip.content for clip in catalog.part(part)} - NO_VIDEO
    return [clip.id for name in later for clip in catalog.part(name) if clip.content in known]
