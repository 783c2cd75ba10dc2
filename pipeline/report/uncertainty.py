"""The uncertainty of an accuracy: bootstrap intervals over groups of clips, and McNemar's test of two tables.

Clips of one group (one source video, one person) tend to succeed and fail together, so they carry less information than
independent clips. Therefore whole groups are resampled, and the number of groups determines an interval's width.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pipeline.report.intervals import LEVEL, Interval, Z, bca, clustered, student, widened, wilson
from pipeline.scores import Scores

RESAMPLES = 5000  # the ends of an interval then vary by about a fiftieth of its width from seed to seed
FEWEST = 5  # groups in all, groups with a wrong clip, groups with a right one: with fewer, resampling says too little
BCA, WILSON = "BCa bootstrap", "Wilson"


class Uncertainty(NamedTuple):
    """What a share of correct clips is worth."""

    interval: Interval
    """95 % interval, 0 to 1."""
    method: str
    """BCA or WILSON."""


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Intervals of the accuracies of tables over the same clips; all come from the same resamples, so they are paired.

    The method is BCa (bias-corrected and accelerated): near 0 and 1, plain percentiles lie on the wrong side. Its ends
    are then moved out, since resamples of few groups vary too little, and few groups do not show how much they vary: by
    the ratio of Student's t times a standard error without that bias to 1.96 times the deviation of the resamples. In
    simulations with nine persons the truth is then covered in 94 to 95 % of cases, instead of 88 to 90 %
    (`benchmarks/intervals.py`).

    If fewer than five groups have a wrong clip (or a correct one), in classes of several groups that have both,
    resampling sees almost no variation, and 19 of 20 would look more certain than 20 of 20. Then Wilson's interval is
    given, with as many trials as there are groups: it is wide, since so few errors cannot show how alike the clips of a
    group are. A class of one group does not count: drawn once or three times, its accuracy is the same, and intervals
    that rest on such classes would cover about 84 %, not 95 %.

    If each group has one class (UCF-101), the class frequencies vary from resample to resample. This is not part of the
    uncertainty, since the classes are given. So a resample gives an accuracy of each class, and these are weighted by
    the class frequencies of the sample.

    Source: B. Efron, JASA 82 (1987), for BCa; A. C. Davison and D. V. Hinkley, Bootstrap Methods and their Application
    (1997), section 3.8, for resampling whole groups; T. C. Hesterberg, The American Statistician 69 (2015), for
    the correction by Student's t; `intervals.clustered` for the standard error.
    """

    tables: Mapping[str, Scores]
    """Name -> table; the same clips in the same order, at least one."""
    groups: tuple[str, ...] | None
    """Group of each clip; None if unknown. A group may hold clips of several splits."""
    resamples: int = RESAMPLES
    seed: int = 0
    clips: tuple[str, ...] | None = None
    """Clip id of each row, if a clip may have several rows (tested with several seeds); None: one row per clip."""

    @property
    def by_group(self) -> bool:
        """Whether groups are resampled, not clips."""
        return self.groups is not None and FEWEST <= len(set(self.groups)) < self._different_clips

    @property
    def note(self) -> str:
        """Why clips are resampled; empty if groups are."""
        if self.by_group:
            return ""
        if self.groups is None:
            return "groups are unknown, so clips are resampled as if each were independent of all others"
        if len(set(self.groups)) == self._different_clips:
            return "every clip is a group of its own, so clips are resampled as if each were independent of all others"
        return (
            f"there are too few groups to resample, {len(set(self.groups))} of at least {FEWEST}, so clips "
            "are resampled; that takes them as independent, so the intervals are too narrow and ignore other groups"
        )

    @property
    def _different_clips(self) -> int:
        return len(set(self.clips)) if self.clips else len(next(iter(self.tables.values())))

    @property
    def units(self) -> int:
        """How many groups, or clips, are resampled."""
        return len(self._values)

    def as_dict(self) -> dict[str, Any]:
        """How the intervals were made, as plain JSON values; `Uncertainty.method` says it of a single one."""
        unit = "groups" if self.by_group else "clips"
        how = {
            "method": BCA,
            "method_otherwise": WILSON,
            "level": LEVEL,
            "resamples": self.resamples,
            "seed": self.seed,
            "fewest": FEWEST,
        }
        return {**how, "unit": unit, "units": self.units, "note": self.note}

    def top1(self, name: str) -> Uncertainty:
        """95 % interval of the share of correct clips, for the class frequencies of these clips."""
        return self._of_share(name, self._clips)

    def mean_class(self, name: str) -> Uncertainty:
        """95 % interval of the mean of the classes' accuracies, over the classes that have clips."""
        return self._of_share(name, self._clips > 0)

    def difference(self, name: str, other: str) -> Interval | None:
        """95 % interval of name's top-1 minus other's; None if they differ in fewer than five groups.

        As for a share, classes of a single group do not count.
        """

        def more(sums: np.ndarray) -> np.ndarray:
            return self._right(sums, name) - self._right(sums, other)

        if ((more(self._values) != 0)[:, self._several].any(axis=1)).sum() < FEWEST:
            return None
        first, labels = self.tables[name], self.tables[name].labels
        only_one = labels[first.correct() != self.tables[other].correct()]
        return self._resample(more, np.bincount(only_one, minlength=len(first.classes)), self._clips, lowest=-1)

    def _of_share(self, name: str, weights: np.ndarray) -> Uncertainty:
        def of(sums: np.ndarray) -> np.ndarray:
            return self._right(sums, name)

        right, clips = self._right(self._values, name), self._values[:, -1]
        share = float(_of_classes(right.sum(axis=0), self._clips, weights))
        squares = right.sum(axis=0)  # as 1 squared is 1
        # other classes look certain in a resample
        varied = (right.sum(axis=0) > 0) & (right.sum(axis=0) < self._clips) & self._several
        right, wrong = right[:, varied].sum(axis=1), (clips - right)[:, varied].sum(axis=1)
        enough = min((right > 0).sum(), (wrong > 0).sum()) >= FEWEST
        if interval := self._resample(of, squares, weights, lowest=0) if enough else None:
            return Uncertainty(interval, BCA)
        return Uncertainty(wilson(share, self.units), WILSON)

    def _right(self, sums: np.ndarray, name: str) -> np.ndarray:
        """Number of correct clips of one table, (..., K), out of `sums` (..., tables + 1, K)."""
        return sums[..., list(self.tables).index(name), :]

    @property
    def _several(self) -> np.ndarray:
        """(K,) whether a class has several units: of a single one only the presence varies."""
        return (self._values[:, -1] > 0).sum(axis=0) > 1

    @property
    def _clips(self) -> np.ndarray:
        """(K,) clips of each class."""
        return self._values[:, -1].sum(axis=0)

    @cached_property
    def _values(self) -> np.ndarray:
        """(units, tables + 1, K): number of correct clips of each table, then of all clips, by unit and class."""
        tables = list(self.tables.values())
        labels, k = tables[0].labels, len(tables[0].classes)
        units = self.groups if self.by_group else self.clips or range(len(labels))
        unit_of_clip = np.unique(np.asarray(units, object).astype(str), return_inverse=True)[1]
        values = np.zeros((unit_of_clip.max() + 1, len(tables) + 1, k))
        for place, counted in enumerate([*(table.correct() for table in tables), tables[0].labeled]):
            np.add.at(values[:, place], (unit_of_clip[counted], labels[counted]), 1)
        return values

    @cached_property
    def _resampled(self) -> np.ndarray:
        """(resamples, tables + 1, K): `_values` summed over units that were drawn with replacement."""
        rng, flat, sums = np.random.default_rng(self.seed), self._values.reshape(self.units, -1), []
        for start in range(0, self.resamples, 250):  # so that thousands of clips fit into memory
            drawn = rng.integers(self.units, size=(min(250, self.resamples - start), self.units))
            times = np.stack([np.bincount(row, minlength=self.units) for row in drawn])
            sums.append(times.astype(np.float64) @ flat)
        return np.concatenate(sums).reshape(-1, *self._values.shape[1:])

    def _resample(self, of, squares: np.ndarray, weights: np.ndarray, *, lowest: float) -> Interval | None:
        """The interval of a weighted mean of the classes' means; None if it does not vary from unit to unit.

        Args:
            of: what of `_values`, or of sums of them, a class's mean is of: (..., tables + 1, K) -> (..., K).
            squares: (K,) sum over a class's clips of the square of what is averaged.
            weights: (K,)
            lowest: no interval ends below.
        """

        def mean(sums: np.ndarray) -> np.ndarray:
            return _of_classes(of(sums), sums[..., -1, :], weights)

        total, clips = self._values.sum(axis=0), np.maximum(self._clips, 1)
        variances = np.maximum(squares / clips - (of(total) / clips) ** 2, 0)
        error, freedom = clustered(of(self._values), self._values[:, -1], variances, weights)
        estimate, without_each = float(mean(total)), mean(total - self._values)
        # rounded: sums in another order differ in the last bit, which is no variation
        if error < 1e-12 or np.ptp(np.round(without_each, 12)) == 0:
            return None
        resampled = mean(self._resampled)
        interval = bca(estimate, resampled, without_each)
        return widened(interval, estimate, student(freedom) * error / (Z * resampled.std()), lowest)


def interval_text(how: Mapping[str, Any]) -> str:
    """How intervals were made, from `Bootstrap.as_dict`, as the end of a sentence."""
    unit, units, few = how["unit"], how["units"], how["fewest"]
    wrong, right = ("have a wrong clip", "a right one") if unit == "groups" else ("are wrong", "right")
    otherwise = (
        f"where fewer than {few} {unit} {wrong}, or fewer than {few} {right} (counting only classes of several "
        f"{unit} with right and wrong clips)"
    )
    note = f" ({how['note']})" if how["note"] else ""
    return (
        f"{how['method']} over {units} {unit}, widened by Student's t{note}; {otherwise}, {WILSON}'s for {units} trials"
    )


def _of_classes(right: np.ndarray, clips: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of right / clips over the classes (last axis) that have clips; weights (K,)."""
    shares = (weights * right / np.maximum(clips, 1)).sum(-1)
    return shares / (weights * (clips > 0)).sum(-1)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: twice the smaller binomial tail, at most 1.

    If both tables were equally good, each would get half of the clips that exactly one of them gets right. Computed in
    integers, so exact to the last bit; without mid-p correction. 1 if there is no such clip.

    Args:
        only_first, only_second: clips that only the first, only the second table gets right.

    Raises:
        ValueError: a count is negative.

    Source: Q. McNemar, Psychometrika 12 (1947), with the exact binomial distribution in place of chi-squared.
    """
    only_first, only_second = operator.index(only_first), operator.index(only_second)  # numpy's would overflow
    if min(only_first, only_second) < 0:
        raise ValueError(f"the clips are {only_first} and {only_second}; counts are not negative")
    trials = only_first + only_second
    tail = sum(math.comb(trials, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**trials)


def discordant(first: Scores, second: Scores) -> tuple[int, int]:
    """How many clips only the first, and only the second of two joined tables gets right; a failed clip is wrong."""
    a, b = first.correct(), second.correct()
    return int((a & ~b).sum()), int((~a & b).sum())


def better(names: Sequence[str], tables: Mapping[str, Scores]) -> str:
    """The name of the table with the most correct clips; in a tie the first."""
    return max(names, key=lambda name: int(tables[name].correct().sum()))
