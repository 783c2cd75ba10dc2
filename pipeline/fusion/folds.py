"""Validation clips cut into folds by group, so a fusion's choices are judged on clips of other groups.

Streams do not train on validation clips, so their scores there are those of unseen clips. A fusion fitted on all of
them and judged on the same clips would look better than it is; judged on a fold that shares no group with the clips it
was fitted on, it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.scores import Scores
from pipeline.system.errors import UserError


@dataclass(frozen=True, eq=False)
class Folds:
    """N clips cut into folds; `for fitted, held in folds` gives the rows for each fold."""

    of_row: np.ndarray
    """(N,) int64, the fold of each clip; all 0 if there is nothing to cut."""
    unit: str
    """What is never split: "groups", "clips" (no group is kept together), or "none" (no cut is possible)."""
    units: int
    """Number of units; 0 without a cut."""
    note: str
    """Why the cut is not by group, in words; empty if it is."""

    def __len__(self) -> int:
        return int(self.of_row.max(initial=-1)) + 1 if self.unit != "none" else 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows to fit on and rows to judge on, fold by fold."""
        for fold in range(len(self)):
            yield np.flatnonzero(self.of_row != fold), np.flatnonzero(self.of_row == fold)

    def as_dict(self) -> dict[str, Any]:
        """What is recorded about the cut, as plain JSON values."""
        return {"folds": len(self), "unit": self.unit, "units": self.units, "note": self.note}


def scored_pair(val_a: Scores, val_b: Scores) -> tuple[Scores, Scores]:
    """The labeled clips that both streams scored, joined and sorted by id: what a fusion is chosen on.

    Raises:
        UserError: the tables do not join, or there is no such clip.
    """
    a, b = val_a.join(val_b)
    scored = np.flatnonzero(~(a.failed_rows | b.failed_rows) & a.labeled)
    if not len(scored):
        raise UserError(
            f"none of the {len(a)} validation clips has a label and scores of both streams; "
            "a fusion is chosen on them: raise [dataset] val_fraction, or look at the failed clips"
        )
    rows = sorted(scored, key=lambda row: a.video_ids[row])
    return a.take(rows), b.take(rows)


def cut_folds(table: Scores, count: int, *, by_class: bool = True) -> Folds:
    """Cut the clips of a table into at most `count` folds; the order of its rows does not matter.

    Whole groups are dealt out, largest first, each to the fold with the fewest clips of its classes, then with the
    fewest clips: folds are as equal in size and class frequencies as whole groups allow. With fewer groups than folds,
    every group is a fold. If a cut by group is not usable (see `by_class`), clips are dealt out one by one in the same
    way; if that is not usable either, there is no cut.

    Args:
        table: the clips; their probabilities are not used.
        count: folds wanted, at least 2.
        by_class: whether the method being judged learns each class from the other folds. If so, a cut is usable if at
            least half of the clips find their class outside their own fold; if not, two folds are enough.

    Raises:
        ValueError: count is below 2, or the table has no clips.
    """
    if count < 2:
        raise ValueError(f"folds is {count}; it must be at least 2")
    if not len(table):
        raise ValueError("there is no clip to cut into folds")
    tried = []
    for unit, names in (("groups", table.groups), ("clips", table.video_ids)):
        if names is None:
            tried.append("the groups are unknown")
            continue
        fold = _deal(names, table.labels, count)
        why_not = _why_not(fold, table.labels, len(set(names)), unit, by_class)
        if not why_not:
            return Folds(fold, unit, len(set(names)), "; ".join(tried))
        tried.append(why_not)
    return Folds(np.zeros(len(table), np.int64), "none", 0, "; ".join(tried))


def _deal(names: Sequence[str], labels: np.ndarray, count: int) -> np.ndarray:
    """(N,) int64 fold of each clip; clips of one name share a fold."""
    units, unit_of_row = np.unique(np.asarray(names, object).astype(str), return_inverse=True)
    clips = np.zeros((len(units), labels.max() + 1))
    np.add.at(clips, (unit_of_row, labels), 1)
    folds, fold_of_unit = np.zeros((min(count, len(units)), clips.shape[1])), np.zeros(len(units), np.int64)
    for unit in np.argsort(-clips.sum(axis=1), kind="stable"):
        # an empty fold has no clips of any class, so it is always taken first: no fold stays empty
        alike, full = folds @ clips[unit], folds.sum(axis=1)
        fold = np.lexsort((full, alike))[0]
        fold_of_unit[unit], folds[fold] = fold, folds[fold] + clips[unit]
    return fold_of_unit[unit_of_row]


def _why_not(fold: np.ndarray, labels: np.ndarray, units: int, unit: str, by_class: bool) -> str:
    """Why a cut is not usable, or ""."""
    if units < 2:
        return f"there is only one of the {unit}"
    present = np.zeros((fold.max() + 1, labels.max() + 1), bool)
    present[fold, labels] = True
    learned = (present.sum(axis=0) > 1)[labels]
    if by_class and 2 * learned.sum() < len(labels):
        lacking = len(labels) - learned.sum()
        return f"cut by {unit}, {lacking} of {len(labels)} clips would have their class in no other fold"
    return ""
