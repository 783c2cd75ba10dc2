"""Remarks printed when a dataset is read, before hours are spent on it: what is ignored, empty or likely wrong."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.catalog.clips import Clip
from pipeline.catalog.layouts import Ignored, absent_message, lost_message, unnamed_message
from pipeline.catalog.rows import path_id
from pipeline.specs import DatasetSpec
from pipeline.system.console import some
from pipeline.system.progress import say

_NAMES_OF_PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
_RARE = 2  # clips of a class whose name may be a slip
_EXCEPTIONS = 50  # where more classes are rare, this is how the set is, and comparing them all would take minutes


def on_files(spec: DatasetSpec, *, clips: int, videos: int, absent: Sequence[str], ignored: Ignored) -> None:
    """Print which files in the folder are ignored and which listed videos are absent.

    Args:
        spec: the dataset.
        clips: number of clips in its catalog.
        videos: number of videos in the folder.
        absent: listed paths that are not on disk.
        ignored: what else lies there.
    """
    if ignored.unnamed:
        say(f"catalog: {unnamed_message(spec, ignored.unnamed)}; they are ignored")
    if ignored.lost:
        say(f"catalog: {lost_message(spec, ignored.lost)}; they are ignored")
    if absent:
        say(f"catalog: {absent_message(spec, absent, clips)}")
    if unlisted := videos - clips:
        say(f"catalog: {unlisted} videos in {spec.videos!r} are in no list and are ignored")
    if others := sorted(ignored.others):
        say(f"catalog: {len(others)} files in {spec.videos!r} lack the file extension of a video: {some(others)}")


def on_classes(spec: DatasetSpec, classes: Sequence[str], *, trained: Collection[str], split: str) -> None:
    """Print which classes are likely a mistake or cannot be learned; `trained`: the classes with training clips."""
    if classes and spec.layout == "folder" and {name.lower() for name in classes} <= _NAMES_OF_PARTS:
        say(
            f"catalog: the classes are {some(classes)}, by the first folder of each path; if these are "
            "parts of the set, name class and part of each video in a CSV file ([dataset] layout = csv)"
        )
    if names := sorted(set(classes) - set(trained)):
        say(f"catalog: {untrained(names, split)}")
    if len(classes) == 1:
        say(f"catalog: there is one class, {classes[0]!r}: frames and flow can be made, but nothing trained")


def on_names(counts: Mapping[str, int]) -> None:
    """Print classes that look like another one, misspelled; `counts`: class -> number of its clips.

    These are names that differ only by upper and lower case, and rare classes with a name close to a common one's.
    """
    rare = sum(count <= _RARE for count in counts.values())
    for name, count in counts.items():
        more = [other for other in counts if (counts[other], other) > (count, name)]
        alike = [other for other in more if other.lower() == name.lower()]
        if count <= _RARE and rare <= _EXCEPTIONS:
            alike += difflib.get_close_matches(
                name, [other for other in more if counts[other] >= 3 * count], cutoff=0.75
            )
        if alike:
            clips = f"{count} clip{'s' * (count > 1)}"
            say(f"catalog: class {name!r} has {clips}; is it {alike[0]!r} ({counts[alike[0]]}), misspelled?")


def on_groups(spec: DatasetSpec, clips: Sequence[Clip]) -> None:
    """Print groups that are likely one, spelled differently, and clips without a group where others have one."""
    spelled: dict[str, set[str]] = {}
    for clip in clips:
        spelled.setdefault(clip.group.casefold(), set()).add(clip.group)
    if twice := sorted(name for names in spelled.values() if len(names) > 1 for name in names):
        say(f"catalog: groups differ only by upper and lower case, and may be in different parts: {some(twice)}")
    alone = [clip.id for clip in clips if clip.group == path_id(clip.path)]
    if spec.layout == "csv" and 0 < len(alone) < len(clips):
        say(
            f"catalog: {len(alone)} of {len(clips)} clips have no group in {Path(spec.lists).name}; each is then a "
            f"group of its own, and may be in another part than what belongs to it: {some(alone)}"
        )


def on_untested(clips: Sequence[Clip], classes: Sequence[str]) -> None:
    """Print which classes have no test clip, so that no accuracy covers them, and which no validation clip."""
    for part, so in (("test", "no accuracy covers them"), ("val", "the SVM never answers them")):
        present = {clip.class_name for clip in clips if clip.part == part}
        if present and (names := [name for name in classes if name not in present]):
            say(f"catalog: {len(names)} of {len(classes)} classes have no {part} clip, so {so}: {some(names)}")


def on_split(spec: DatasetSpec, split: str, tested: Collection[str]) -> None:
    """Print that a number was taken as the name of a group, where it would otherwise draw the test part."""
    if split.isdecimal() and spec.draws_groups and set(tested) == {split}:
        say(
            f"catalog: split {split} is the name of a group, which alone is the test part; a number that names no "
            "group draws [dataset] test_fraction of the groups"
        )


def on_parts(spec: DatasetSpec, present: Collection[str]) -> None:
    """Print which parts are empty: frames and flow do not need them, but fusion and report, hours later, do."""
    without = "trainings keep their last weights, and the average is the only fusion"
    cures = {
        "val": f"{without}; for others raise [dataset] val_fraction, with enough groups to draw from"
        if not spec.val_fraction
        else "Fuse refuses it; add clips of other groups, or do without validation: [dataset] val_fraction = 0 (then "
        f"{without})",
        "test": "nothing can be reported; set [dataset] test_fraction, name a test group with --split, or, in a CSV "
        "file with a split column, name test clips there",
    }
    for part, cure in cures.items():
        if part not in present:
            say(f"catalog: no {part} clips in this split: {cure}")


def on_copies(ids: Sequence[str], parts: str, seen: str) -> None:
    """Print which clips are byte for byte those of a part already `seen`: accuracies on them mean little or nothing."""
    if ids:
        say(f"catalog: {len(ids)} {parts} clips are byte for byte {seen} clips: {some(ids)}")


def untrained(names: Sequence[str], split: str) -> str:
    """Message that these classes have no training clip in the split."""
    return f"no training clip in split {split} of {len(names)} of the classes: {some(names)}"
