"""How datasets are laid out on disk: five layouts, each read into the same rows.

The set of clips and classes never depends on the split. This module decodes and hashes nothing, and draws no parts.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from pipeline.catalog.groups import grouped, refuse_torn_groups
from pipeline.catalog.official import read_hmdb51_lists, read_ucf101_classes, read_ucf101_lists, split_numbers
from pipeline.catalog.rows import PARTS, ListedClip, composed, folded, path_id, safe_path, text_of
from pipeline.specs import DatasetSpec
from pipeline.specs.base import unknown_name
from pipeline.system.console import some
from pipeline.system.errors import UserError

VIDEO_SUFFIXES = (
    *(".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv"),
    *(".ts", ".mts", ".m2ts", ".3gp", ".ogv", ".gif"),
)


@dataclass(frozen=True)
class Stat:
    """Size and timestamp of a file: a cheap way to detect that it changed."""

    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Ignored:
    """What lies in the folder of the videos and is no video, or none that can be used."""

    others: list[str] = field(default_factory=list)
    """Paths of files with other suffixes, in any order."""
    lost: list[str] = field(default_factory=list)
    """Paths of broken links that may be videos or folders of them."""
    unnamed: list[str] = field(default_factory=list)
    """Paths of videos that are not UTF-8, which cannot be written to an artifact."""


def scan_videos(folder: Path, ignored: Ignored | None = None) -> dict[str, Stat]:
    """Find every video file below a folder by its suffix; links are followed, names with a leading dot are skipped.

    Args:
        folder: folder of the videos.
        ignored: if given, what is left out is appended to its lists.

    Returns:
        Path relative to the folder, with forward slashes -> size and timestamp, sorted by path.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist, or is a file.
    """
    if folder.is_file():
        raise NotADirectoryError(f"[dataset] videos: {str(folder)!r} is a file; give the folder that holds it")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"[dataset] videos: the folder {str(folder)!r} does not exist; "
            "put the videos there, or correct `videos` in the dataset's section, if it has one (what was made stays), "
            "or name their folder (--data-videos; of ScoreVideos: --videos)"
        )
    found: dict[str, Stat] = {}
    _scan(folder, "", (), found, ignored or Ignored())
    return dict(sorted(found.items()))


def _scan(
    folder: Path,
    prefix: str,
    above: tuple[tuple[int, int], ...],
    found: dict[str, Stat],
    ignored: Ignored,
) -> None:
    here = (folder.stat().st_dev, folder.stat().st_ino)
    if here in above:  # a link to a folder that contains the link
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not Path(entry.path).exists():
                if PurePosixPath(entry.name).suffix.lower() in ("", *VIDEO_SUFFIXES):
                    ignored.lost.append(prefix + entry.name)
                continue
            if entry.is_dir():
                _scan(Path(entry.path), f"{prefix}{entry.name}/", (*above, here), found, ignored)
            elif entry.is_file() and PurePosixPath(entry.name).suffix.lower() in VIDEO_SUFFIXES:
                path, stat = prefix + entry.name, entry.stat()
                if any("\ud800" <= letter <= "\udfff" for letter in path):  # stand for bytes that are not UTF-8
                    ignored.unnamed.append(path)
                else:
                    found[path] = Stat(stat.st_size, stat.st_mtime_ns)
            elif entry.is_file():
                ignored.others.append(prefix + entry.name)


def list_files(spec: DatasetSpec) -> list[Path]:
    """The files that name and split the clips: none for layouts "folder" and "unlabelled", one for "csv".

    Raises:
        FileNotFoundError: the folder of the lists, or the CSV file, does not exist or holds no list.
    """
    if not spec.reads_lists:
        return []
    lists = Path(spec.lists)
    files = [lists] if spec.layout == "csv" else sorted(lists.glob("*.txt"))
    if not spec.lists or not files or not files[0].is_file():
        kind = "CSV file" if spec.layout == "csv" else "folder of the official split lists (*.txt)"
        raise FileNotFoundError(f"[dataset] lists: {spec.lists!r} is no {kind}; layout {spec.layout} needs one")
    return files


def read_layout(spec: DatasetSpec, split: str, videos: Iterable[str]) -> tuple[list[ListedClip], list[str]]:
    """Read any layout.

    Args:
        spec: the dataset.
        split: a number, or (layouts "folder" and "csv") the name of the test group.
        videos: paths of the videos on disk, as from `scan_videos`.

    Returns:
        One row for each clip that the layout names, whether or not its video is present; and the class names in label
        order. Layout "unlabelled" has no class names, and all its clips are test clips.

    Raises:
        FileNotFoundError: a list is missing.
        UserError: a list contradicts itself or the layout, or the split does not exist.
    """
    list_files(spec)  # raises if they are not there
    lists = Path(spec.lists)
    if spec.layout == "ucf101":
        return read_ucf101_lists(lists, split), read_ucf101_classes(lists)
    if spec.layout == "hmdb51":
        rows = read_hmdb51_lists(lists, split)
        return rows, sorted({row.class_name for row in rows})
    if spec.layout == "unlabelled":
        ids = {path: path.replace("/", "__") for path in videos}  # keep the suffix: names may differ only in it
        return [ListedClip(ids[path], path, "", ids[path], "test") for path in videos], []
    rows = _read_csv(spec, split) if spec.layout == "csv" else _read_folder(spec, list(videos))
    if any(not row.part for row in rows):
        rows = _hold_out(rows, split)
    classes = {row.class_name for row in rows}
    if spec.layout == "folder":  # a class folder without videos is a class too, so the catalog can reject it
        folders = (file.name for file in Path(spec.videos).iterdir() if file.is_dir())
        classes |= {composed(name) for name in folders if name[0] != "."}
    return rows, sorted(classes)


def split_names(spec: DatasetSpec) -> list[str]:
    """Every split of a dataset: the numbers of the official lists, or every group left out in turn.

    A CSV file with a split column has one split, as have unlabeled videos.

    Raises:
        FileNotFoundError: a list, or the folder of the videos, is missing.
        UserError: each clip is its own group, so leaving out each group would take one training per clip; or all clips
            are in one group.
    """
    if spec.layout == "unlabelled":
        return [spec.split]
    list_files(spec)  # raises if they are not there
    if spec.has_official_lists:
        return split_numbers(Path(spec.lists))
    csv_file = spec.layout == "csv"
    rows = _read_csv(spec, "1") if csv_file else _read_folder(spec, list(scan_videos(Path(spec.videos))))
    if any(row.part for row in rows):
        return ["1"]
    if csv_file and spec.partial:  # a group without a video cannot be tested
        rows, _ = match(spec, rows, scan_videos(Path(spec.videos)))
    groups = sorted({row.group for row in rows})
    if len(groups) < 2 or len(groups) == len(rows):
        why = f"each of the {len(rows)} clips is a group of its own" if len(groups) > 1 else "there are no two groups"
        cure = f"[dataset] group_pattern{' or a group column in the CSV file' if csv_file else ''}"
        raise UserError(f"{why}, so none can be left out in turn; say what belongs together by {cure}, or name splits")
    return groups


def _read_folder(spec: DatasetSpec, videos: list[str]) -> list[ListedClip]:
    """Rows of `<class>/<clip>`."""
    if loose := [path for path in videos if "/" not in path]:
        raise UserError(
            f"{len(loose)} of {len(videos)} videos lie in no class folder ({some(loose, 3)}); layout folder needs "
            "<class>/<clip>"
        )
    return grouped([ListedClip(path_id(path), path, composed(path.split("/")[0]), "", "") for path in videos], spec)


def _read_csv(spec: DatasetSpec, split: str) -> list[ListedClip]:
    """Rows of a CSV file with a header: path,label[,group][,split]; paths are relative to the folder of the videos."""
    file = Path(spec.lists)
    try:
        reader = csv.DictReader(io.StringIO(text_of(file)))
        reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or []]
        names = set(columns)
        if not {"path", "label"} <= names <= {"path", "label", "group", "split"} or len(names) < len(columns):
            raise UserError(f"{file.name}: the header is {','.join(columns)!r}; it must be path,label[,group][,split]")
        if "split" in columns and split != "1":
            raise UserError(f"split {split!r} does not exist; the split column of {file.name} is split 1")
        if "group" in columns and spec.group_pattern:
            raise UserError(
                f"{file.name} has a group column, and [dataset] group_pattern is {spec.group_pattern!r}; leave one out"
            )
        rows = [_csv_row(record, f"{file.name}, line {reader.line_num}") for record in reader]
    except csv.Error as error:
        raise UserError(f"{file.name} is no CSV file: {error}") from None
    if not rows:
        raise UserError(f"{file.name} lists no video")
    rows = grouped(rows, spec)
    if "split" in columns and ("group" in columns or spec.group_pattern):
        refuse_torn_groups(file.name, rows)
    return rows


def _csv_row(record: dict, where: str) -> ListedClip:
    if None in record or None in record.values():
        raise UserError(f"{where}: it has more or fewer fields than the header")
    path = safe_path(record["path"], where)
    # nobody sees a trailing blank, which would make another class or group
    label, group, part = (composed(record.get(name, "").strip()) for name in ("label", "group", "split"))
    if not label:
        raise UserError(f"{where}: {path!r} has no label")
    if "split" in record and part not in PARTS:
        raise UserError(f"{where}: split is {part!r}; allowed: {', '.join(PARTS)}")
    return ListedClip(path_id(path), path, label, group, part)


def _hold_out(rows: list[ListedClip], split: str) -> list[ListedClip]:
    """Make the group named `split` the test part; if there is none and `split` is a number, leave the parts open."""
    groups, split = {row.group for row in rows}, composed(split)
    if split in groups:
        return [replace(row, part="test" if row.group == split else "train") for row in rows]
    if not re.fullmatch(r"\d+", split):
        raise UserError(unknown_name(f"split {split!r} (a group, or a number)", split, groups))
    return rows


def match(spec: DatasetSpec, rows: list[ListedClip], videos: dict[str, Stat]) -> tuple[list[ListedClip], list[str]]:
    """Match the rows with the videos on disk.

    Returns:
        The rows of the videos that are present, with their paths as on disk; and the listed paths that are absent.

    Raises:
        FileNotFoundError: some videos are absent, and `spec.partial` is false.
        UserError: all videos are absent.
    """
    by_folded = {folded(path): path for path in videos}
    # as written, or else regardless of case and how accents are composed
    paths = {row.path: row.path if row.path in videos else by_folded.get(folded(row.path)) for row in rows}
    found = [replace(row, path=paths[row.path]) for row in rows if paths[row.path] is not None]
    absent = sorted({path for path, there in paths.items() if there is None})
    if absent and not spec.partial:
        message = absent_message(spec, absent, len(found))
        raise FileNotFoundError(f"{message}; if the set is meant to be partial, set [dataset] partial = true")
    if not found:
        raise UserError(f"none of the {len(rows)} listed videos is in {spec.videos!r}, such as {some(absent)}")
    return found, absent


def absent_message(spec: DatasetSpec, absent: Sequence[str], present: int) -> str:
    """Message saying how many listed videos are absent, and naming some."""
    return f"{len(absent)} of {len(absent) + present} listed videos are absent from {spec.videos!r}: {some(absent)}"


def lost_message(spec: DatasetSpec, lost: Sequence[str]) -> str:
    """Message saying how many links are broken, and naming some."""
    return f"{len(lost)} links in {spec.videos!r} lead nowhere: {some(sorted(lost))}"


def unnamed_message(spec: DatasetSpec, unnamed: Sequence[str]) -> str:
    """Message saying how many videos have names that are not UTF-8, and naming some."""
    return f"the names of videos in {spec.videos!r} are not UTF-8 ({len(unnamed)}): {some(sorted(unnamed))}"
