"""What is said of a data set when it is read, before hours are spent on it: left out, empty, or hardly meant."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.layouts import some, told_absent
from pipeline.progress import say
from pipeline.specs import DatasetSpec

_NAMES_OF_PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def on_files(spec: DatasetSpec, *, clips: int, videos: int, absent: Sequence[str], others: Sequence[str]) -> None:
    """Say which files of the folder, and which videos of the lists, are left aside.

    Args:
        spec: the data set.
        clips: how many are in its catalog.
        videos: how many there are in the folder.
        absent: paths that the lists name and that are not there.
        others: paths of files that are no videos.
    """
    if absent:
        say(f"catalog: {told_absent(spec, absent, clips)}")
    if ignored := videos - clips:
        say(f"catalog: {ignored} videos in {spec.videos!r} are in no list and are ignored")
    if others:
        say(f"catalog: {len(others)} files in {spec.videos!r} are no videos by their endings: {some(others)}")


def on_classes(spec: DatasetSpec, classes: Sequence[str], *, trained: Collection[str], split: str) -> None:
    """Say which classes are hardly meant as such, or cannot be learnt; `trained` are those with training clips."""
    if classes and spec.layout == "folder" and {name.lower() for name in classes} <= _NAMES_OF_PARTS:
        say(
            f"catalog: the classes are {some(classes)}, as the first folder of each path has it; if these are "
            "parts of the set, name class and part of each video in a CSV file ([dataset] layout = csv)"
        )
    if names := sorted(set(classes) - set(trained)):
        say(f"catalog: {untrained(names, split)}")
    if len(classes) == 1:
        say(f"catalog: there is one class, {classes[0]!r}: frames and flow can be made, but nothing trained")


def on_parts(present: Collection[str]) -> None:
    """Frames and flow need no parts; fusion and report do, and hours before them is the time to hear of it."""
    cures = {
        "val": "the last weights are kept, and the average is the only fusion; others want [dataset] val_fraction and "
        "enough groups",
        "test": "nothing can be reported; set [dataset] test_fraction, or name a test group with --split",
    }
    for part, cure in cures.items():
        if part not in present:
            say(f"catalog: no {part} clips in this split: {cure}")


def untrained(names: Sequence[str], split: str) -> str:
    """That these classes have no training clip, in words."""
    return f"no training clip in split {split} of {len(names)} of the classes: {some(names)}"
