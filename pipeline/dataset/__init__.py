"""torch datasets over a store: random training items, and the fixed test views of every clip.

Item i of step s is a pure function of (seed, s, i): its clip, its place in the clip, its crop, flip and colors. So
training depends neither on the number of loader processes nor on interruptions. (Which items a GPU decodes may depend
on them, and the GPU may round differently: `training/feeding.py`.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline import stacks
from pipeline.catalog import Clip
from pipeline.dataset.encoded import EncodedBatch, stack_partly_encoded
from pipeline.dataset.inputs import Room, ViewBatch, join_views, new_room
from pipeline.dataset.pictures import Pictures
from pipeline.specs import StreamSpec
from pipeline.system.console import some
from pipeline.system.errors import UserError
from pipeline.system.progress import say
from pipeline.transforms import EncodedView, EvalViews, TrainView, View

_ITEM, _CLASS_ORDER, _CLIP_ORDER = range(3)  # purposes of random numbers: each has its own sequence


class ClassUniform:
    """Chooses the clip of the n-th training item: all classes equally often, and all clips of a class equally often.

    Items come in blocks of one per class, in a new random order per block. Each visit to a class takes its next clip,
    in an order that is redrawn when all clips have been taken. Example, classes A and B: A3 B1 B2 A1 A2 B3.

    Source: paper, section 5 ("uniformly across the classes"). Drawing without replacement is ours: the same mean, less
    noise, and every clip is used.
    """

    def __init__(self, labels: Sequence[int], *, seed: int):
        """`labels` holds the class of each clip; a class without clips is never chosen."""
        places = defaultdict(list)
        for place, label in enumerate(labels):
            places[label].append(place)
        self.seed, self.members = seed, [places[label] for label in sorted(places)]
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # class -> turn, order of its clips in that turn

    def __call__(self, n: int) -> int:
        """Index in `labels` of the clip for item n."""
        block, rank = divmod(n, len(self.members))
        chosen = _generator(self.seed, _CLASS_ORDER, block).permutation(len(self.members))[rank]
        members = self.members[chosen]
        turn, rank = divmod(block, len(members))
        return members[self._order(int(chosen), turn)[rank]]

    def _order(self, chosen: int, turn: int) -> np.ndarray:
        """Order of a class's clips in a turn; cached, since drawing it per item would be quadratic in a large class."""
        known, order = self._orders.get(chosen, (-1, None))
        if known != turn:
            order = _generator(self.seed, _CLIP_ORDER, turn, chosen).permutation(len(self.members[chosen]))
            self._orders[chosen] = turn, order
        return order


def snippet_positions(count: int, drawn: np.ndarray) -> list[int]:
    """One random position in each of K equal parts of 0 ... count - 1; `drawn` holds K random numbers in [0, 1).

    The parts are cut as real numbers, so every position can be drawn, and a clip of fewer than K positions gives each
    of them about equally often, in order. Example: 10 positions, drawn 0.5 0.5 0.99, are 1 5 9.

    Source: Wang et al., Temporal Segment Networks, ECCV 2016, section 3.1. Their code rounds the length of a part down,
    so it never draws the last positions, and from a clip that is too short it takes the first position K times.
    """
    places = ((part + share) / len(drawn) * count for part, share in enumerate(drawn))
    return [min(int(place), count - 1) for place in places]  # 63.999... of 64 may round up


class TrainingSet(Dataset):
    """Training items by number: item i of step s has number s * batch + i."""

    def __init__(
        self,
        spec: StreamSpec,
        store_path: Path | str,
        clips: Sequence[Clip],
        *more: tuple[Path | str, Sequence[Clip]],
    ):
        """`clips` are the training clips; those not in the store are left out, and a message says so.

        `more` holds the stores of other datasets and the clips of each; their labels continue those of `clips`.

        Raises:
            UserError: no clip of a dataset is left.
        """
        self.spec, self.view = spec, TrainView(spec)
        self.clips: list[Clip] = []
        self.pictures: list[Pictures] = []  # what each clip is read from
        for path, wanted in ((store_path, clips), *more):
            pictures = Pictures(spec, path)
            held = pictures.usable(wanted)
            if not held:
                raise UserError(
                    f"none of the {len(wanted)} training clips is in {path}; `python -m pipeline inspect` shows why"
                )
            _say_lost_classes(spec, wanted, held)
            self.clips += held
            self.pictures += [pictures] * len(held)
        self.choose = ClassUniform([clip.label for clip in self.clips], seed=spec.seed)

    def __len__(self) -> int:
        return self.spec.steps * self.spec.batch

    def __getitem__(self, number: int) -> tuple[View, int]:
        """The view and the zero-based label of one item.

        The view is of one picture, (C, crop_px, crop_px); with K > 1 segments, of one picture in each segment,
        (K, C, crop_px, crop_px), all cropped, mirrored and jittered alike.
        """
        clip, read, drawn = self._read(number, Pictures.read)
        views = [self.view(picture, drawn) for picture in read]
        if self.spec.segments == 1:
            return views[0], clip.label
        return View(*(np.stack(parts) for parts in zip(*views, strict=True))), clip.label

    def encoded(self, number: int) -> tuple[list[EncodedView] | View, int]:
        """The same item of a temporal stream, not yet decoded: its K views.

        An item whose planes would be resized before cropping comes decoded, as from indexing.
        """
        clip, read, drawn = self._read(number, Pictures.read_encoded)
        views = [self.view.encoded(stack, drawn) for stack in read]
        return self[number] if None in views else (views, clip.label)

    def _read(self, number: int, read: Callable) -> tuple[Clip, list, np.ndarray]:
        """The clip of an item, what `read` (a method of `Pictures`) returns, and the numbers drawn for its view."""
        if not 0 <= number < len(self):
            raise IndexError(f"there is no training item {number}; there are {len(self)}")
        chosen = self.choose(number)
        clip, pictures = self.clips[chosen], self.pictures[chosen]
        rng = _generator(self.spec.seed, _ITEM, *divmod(number, self.spec.batch))
        where = rng.random(self.spec.segments)
        try:
            positions = snippet_positions(pictures.count(clip.id), where)
            found = [read(pictures, clip.id, position) for position in positions]
        except Exception as error:
            error.add_note(f"while reading training clip {clip.id!r}")
            raise
        return clip, found, rng.random(TrainView.DRAWS)


def _say_lost_classes(spec: StreamSpec, wanted: Sequence[Clip], held: Sequence[Clip]) -> None:
    if lost := sorted({clip.class_name for clip in wanted} - {clip.class_name for clip in held}):
        say(f"{spec.stream}: no training clip is left of {some(lost)}, which will not be learned")


class EvalItem(NamedTuple):
    """The views of one picture of one clip."""

    number: int
    """Number of the item: picture j of clip k has number k * frames + j."""
    views: View | None
    """(crops, C, crop_px, crop_px), or None if the clip failed in the store."""
    reason: str
    """Why it failed there; "" if it did not."""


class EvalSet(Dataset):
    """The test views of every clip, one picture per item, so batches are bounded however many pictures a clip has."""

    def __init__(self, spec: StreamSpec, store_path: Path | str, clips: Sequence[Clip], *, frames: int, crops: int):
        """`frames` pictures of each clip at equal temporal spacing, `crops` views of each; failed clips stay in."""
        self.clips, self.frames, self.pictures = clips, frames, Pictures(spec, store_path)
        self.views = EvalViews(spec, crops=crops)

    def __len__(self) -> int:
        return len(self.clips) * self.frames

    def __getitem__(self, number: int) -> EvalItem:
        """Item number k * frames + j: picture j of clip k."""
        place, j = divmod(number, self.frames)
        video_id = self.clips[place].id
        if video_id in self.pictures.store.failed:
            return EvalItem(number, None, self.pictures.why_lost(video_id))
        try:
            position = stacks.spaced(self.pictures.count(video_id), self.frames)[j]
            return EvalItem(number, self.views(self.pictures.read(video_id, int(position))), "")
        except Exception as error:
            error.add_note(f"while reading test clip {video_id!r}")
            raise


def stack_items(
    items: list[tuple[View | list[EncodedView], int]], *, room: Room = new_room
) -> tuple[ViewBatch | EncodedBatch, torch.Tensor]:
    """Training items -> their views, written to what `room` returns, and labels (N,) int64."""
    views, labels = zip(*items, strict=True)
    return stack_partly_encoded(views, room=room), torch.tensor(labels)


class EvalBatch(NamedTuple):
    """Some pictures of a test set, and why those of failed clips are not there."""

    numbers: list[int]
    """Numbers of the items that are there."""
    views: ViewBatch | None
    """Their views: all crops of the first item, then of the second ...; None if there are none."""
    failed: dict[int, str]
    """Number -> reason, for the items of clips that failed in the store."""


def stack_test_items(items: list[EvalItem], *, room: Room = new_room) -> EvalBatch:
    """Test items -> one batch of all their views, written to what `room` returns."""
    read = [item for item in items if item.views is not None]
    failed = {item.number: item.reason for item in items if item.views is None}
    return EvalBatch(
        [item.number for item in read], join_views([i.views for i in read], room=room) if read else None, failed
    )


def _generator(*key: int) -> np.random.Generator:
    """Random generator that depends only on this key (Philox: similar keys give unrelated sequences)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
