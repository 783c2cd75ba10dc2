"""Training together with another dataset: which of its clips and classes take part, and the order of the clips.

With `heads` (the paper's multi-task learning) each set has a last layer and a loss of its own, and every step takes
`batch` clips of each. With `classes` the classes that only the other set has are added to those of this set, and the
batch is drawn uniformly from all classes. Validation and test use this set's clips and classes only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from pipeline.catalog import NO_VIDEO, Catalog, Clip
from pipeline.dataset import TrainingSet
from pipeline.networks.checkpoint import clips_seen
from pipeline.networks.starting import refuse_absent
from pipeline.specs import StreamSpec
from pipeline.specs.base import unknown_name
from pipeline.system.console import some
from pipeline.system.errors import UserError
from pipeline.system.progress import say
from pipeline.transforms import EncodedView, View

_OTHER_SEED = 1  # second key of the other set's seed, so that its items are drawn independently of this set's


class OtherDataset(NamedTuple):
    """The other dataset of a training."""

    name: str
    """Its name, under which luigi.cfg describes it."""
    store_path: Path
    """Index of its frames or flow store."""
    catalog: Catalog


def same_classes(own: Sequence[str], other: Sequence[str], pairs: Sequence[str] = ()) -> dict[str, str]:
    """Which classes of the other set are classes of this set: name there -> name here.

    Two names mean the same class if they are equal apart from case and characters that are neither letter nor digit
    (`ride_horse`, `RideHorse`), or if a pair says so. Several classes of the other set may be one class here.

    Args:
        own, other: names of the classes.
        pairs: texts of the form "name here:name there".

    Raises:
        UserError: a pair with a name that is not among the classes.
    """
    plain = {_plain(name): name for name in reversed(own)}
    found = {name: plain[_plain(name)] for name in other if _plain(name) in plain}
    for pair in pairs:
        here, there = pair.split(":")
        for name, names, whose in ((here, own, "this set"), (there, other, "the other set")):
            if name not in names:
                raise UserError(unknown_name(f"with_same has {pair!r}: class {name!r} of {whose}", name, names))
        found[there] = here
    return {name: found[name] for name in other if name in found}


def other_classes(spec: StreamSpec, catalog: Catalog, other: OtherDataset | None) -> tuple[str, ...]:
    """Classes of the other set for which the network has outputs, in their order there.

    Raises:
        UserError: `with_same` names a class that does not exist, no class is left to be added, or none of those that
            are has a training clip.
    """
    if other is None:
        return ()
    if spec.with_how == "heads":
        return other.catalog.classes
    same = same_classes(catalog.classes, other.catalog.classes, spec.with_same)
    added = tuple(name for name in other.catalog.classes if name not in same)
    if not added:
        raise UserError(f"[{spec.stream}] with_how is classes, but every class of {other.name} is a class of this set")
    if not any(clip.class_name in added for clip in other.catalog.part("train")):
        raise UserError(
            f"[{spec.stream}] with_how is classes, but {other.name} has no training clip of the classes that it would "
            f"add: {some(added)}"
        )
    return added


def training_set(spec: StreamSpec, store_path: Path, catalog: Catalog, other: OtherDataset | None) -> Dataset:
    """The items of a training; those of step s begin with number s * items_per_step.

    Args:
        spec: the stream.
        store_path, catalog: store and catalog of this set, whose training part is used.
        other: the other set, whose training part is used as well; None for a training on this set alone.

    Raises:
        UserError: no usable clip in one of the sets, or what `other_classes` refuses.
    """
    clips = catalog.part("train")
    if other is None:
        return TrainingSet(spec, store_path, clips)
    _say_left_out(spec, catalog, other)
    others = _used(spec, catalog, other)
    if spec.with_how == "heads":
        drawn = int(np.random.SeedSequence([spec.seed, _OTHER_SEED]).generate_state(1, np.uint64)[0])
        second = TrainingSet(replace(spec, seed=drawn % 2**63), other.store_path, others)  # a seed has 63 bits
        return TakingTurns(TrainingSet(spec, store_path, clips), second)
    added, first = other_classes(spec, catalog, other), len(catalog.classes)
    _say_matching(spec, catalog, other, added)
    label = {name: first + place for place, name in enumerate(added)}
    more = [replace(clip, label=label[clip.class_name]) for clip in others]
    return TrainingSet(spec, store_path, clips, (other.store_path, more))


class TakingTurns(Dataset):
    """Items of two training sets in turn: number 2n is item n of the first, number 2n + 1 item n of the second.

    So however a batch is divided into equal parts, each part holds as many clips of one set as of the other.
    """

    def __init__(self, first: TrainingSet, second: TrainingSet):
        self.sets = first, second

    def __len__(self) -> int:
        return 2 * len(self.sets[0])

    def __getitem__(self, number: int) -> tuple[View, int]:
        """(view, label within its set) of one item."""
        return self.sets[number % 2][number // 2]

    def encoded(self, number: int) -> tuple[list[EncodedView] | View, int]:
        """The same of one item that is not decoded yet, as from a `TrainingSet`."""
        return self.sets[number % 2].encoded(number // 2)


def refuse_overlap(spec: StreamSpec, catalog: Catalog, other: OtherDataset) -> None:
    """Refuse `with_how = start` if the training on the other set uses validation or test clips of this set.

    That training is done for the other set alone, so no clip is left out of it for the sake of this set. It uses the
    other set's validation clips too, by which its weights are chosen.

    Raises:
        UserError: training or validation clips of the other set are, byte for byte, validation or test clips of this
            set.
    """
    if twice := _held_out(catalog, other, ("train", "val")):
        raise UserError(
            f"[{spec.stream}] with_how is start, but {len(twice)} training or validation clips of {other.name} are "
            f"validation or test clips of this set: {some([clip.id for clip in twice])}; "
            "take them out there, or set with_how to heads or classes, which leave them out"
        )


def say_shared_groups(spec: StreamSpec, catalog: Catalog, other: OtherDataset) -> None:
    """Say which groups that are held out here have clips in the other set that are trained on, by their names.

    The same person, or the same video encoded again, is no byte-for-byte copy, so that nothing is left out; and equal
    names may be chance. So this is for the user to judge.
    """
    held_out = {clip.group for part in ("val", "test") for clip in catalog.part(part)}
    held_out -= {clip.group for clip in catalog.part("train")}
    shared = sorted(held_out & {clip.group for clip in _used(spec, catalog, other)})
    if shared:
        say(
            f"{spec.stream}: {len(shared)} groups that are held out here have training clips in {other.name}, by their "
            f"names: {some(shared)}; if they are the same people or videos, the accuracy here is too high"
        )


def seen_by(spec: StreamSpec, catalog: Catalog, other: OtherDataset | None, start: Path | None) -> dict[str, list[str]]:
    """What the checkpoint records as `trained_on` and `chosen_on`: content of the clips that the weights have seen.

    They include the clips of the other set that are used, and all that the weights had seen from which the training
    starts.
    """
    trained, chosen = clips_seen(start) if start else (frozenset(), frozenset())
    used = [*catalog.part("train"), *(_used(spec, catalog, other) if other else [])]
    return {
        "trained_on": sorted(trained.union(clip.content for clip in used)),
        "chosen_on": sorted(chosen.union(clip.content for clip in catalog.part("val"))),
    }


def refuse_start_that_saw(spec: StreamSpec, catalog: Catalog, start: Path | None) -> None:
    """Refuse a file of weights to start from that saw clips which are held out here, as one of another split did.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it was trained on validation or test clips of this split that are not training clips too, or chosen
            on its test clips.
    """
    if not start:
        return
    refuse_absent(start, spec)
    trained, chosen = clips_seen(start)
    own = {clip.content for clip in catalog.part("train")} | NO_VIDEO
    seen = {"val": trained - own, "test": (trained | chosen) - own}
    if twice := [clip.id for part, contents in seen.items() for clip in catalog.part(part) if clip.content in contents]:
        raise UserError(
            f"[{spec.stream}] start: the weights in {str(start)!r} were trained or chosen on {len(twice)} "
            f"clips that are validation or test clips of split {catalog.split_name}: {some(twice)}; start from weights "
            "that did not see them"
        )


def _held_out(catalog: Catalog, other: OtherDataset, parts: Sequence[str] = ("train",)) -> list[Clip]:
    """Clips of these parts of the other set that are, byte for byte, validation or test clips of this set."""
    held_out = {clip.content for clip in catalog.clips if clip.part in ("val", "test")} - NO_VIDEO
    return [clip for part in parts for clip in other.catalog.part(part) if clip.content in held_out]


def _used(spec: StreamSpec, catalog: Catalog, other: OtherDataset) -> list[Clip]:
    """Training clips of the other set, except validation or test clips of this set, byte for byte.

    With `classes`, only those of the classes that are added.
    """
    names = other_classes(spec, catalog, other) if spec.with_how == "classes" else other.catalog.classes
    left_out = {clip.id for clip in _held_out(catalog, other)}
    return [c for c in other.catalog.part("train") if c.id not in left_out and c.class_name in names]


def _say_left_out(spec: StreamSpec, catalog: Catalog, other: OtherDataset) -> None:
    if twice := [clip.id for clip in _held_out(catalog, other)]:
        say(
            f"{spec.stream}: {len(twice)} training clips of {other.name} are validation or test clips here, and are "
            f"left out: {some(twice)}"
        )


def _say_matching(spec: StreamSpec, catalog: Catalog, other: OtherDataset, added: Sequence[str]) -> None:
    same = same_classes(catalog.classes, other.catalog.classes, spec.with_same)
    pairs = ", ".join(f"{there} = {here}" for there, here in same.items())
    say(
        f"{spec.stream}: {len(added)} of the {len(other.catalog.classes)} classes of {other.name} are added"
        + (f"; not added, as classes of this set: {pairs}" if pairs else "")
    )


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFC", name).casefold()
    # vowel signs are marks (M): without them different words would be one
    return "".join(letter for letter in text if unicodedata.category(letter)[0] in "LNM") or text
