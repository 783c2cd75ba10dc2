"""A table of class probabilities keyed by clip id: the output of a stream, or of a fusion of streams.

A clip that could not be scored keeps its row, as NaN, and counts as wrong: an accuracy always covers every labeled
clip of the part. Two tables are joined by clip id, never by row order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import store
from pipeline.catalog import UNKNOWN
from pipeline.system.console import class_difference, counted
from pipeline.system.errors import UserError
from pipeline.system.files import inside

SUM_TOLERANCE = 1e-3  # a float32 softmax, averaged over 250 views, is within 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Probabilities of N clips over K classes. Arrays are read-only copies, so a table never changes."""

    video_ids: tuple[str, ...]
    """N different clip ids."""
    probabilities: np.ndarray
    """(N, K) float32; each row sums to 1, or is all NaN where the clip failed."""
    labels: np.ndarray
    """(N,) int64, zero-based index of the true class; -1 if unknown: such a clip counts in no accuracy."""
    classes: tuple[str, ...]
    """K different class names, in the order of the columns."""
    features: np.ndarray | None = None
    """(N, D) float32 penultimate features, or None."""
    groups: tuple[str, ...] | None = None
    """N group names (source video, person), or None."""
    source: Path | None = None
    """The file that the table was read from, and `views` reads from; None for a table in memory."""
    content: str | None = None
    """Hash of the table in that file, by which `views` knows whether it has been written again."""

    def __post_init__(self):
        for name in ("video_ids", "classes", "groups"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(map(str, value)))
        for name, dtype in (("probabilities", np.float32), ("labels", np.int64), ("features", np.float32)):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _read_only(name, value, dtype))
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        n, k = len(self.video_ids), len(self.classes)
        if self.probabilities.shape != (n, k):
            raise ValueError(f"probabilities is {self.probabilities.shape}; {n} clips and {k} classes need ({n}, {k})")
        if self.labels.shape != (n,):
            raise ValueError(f"labels is {self.labels.shape}; {n} clips need ({n},)")
        if self.features is not None and (self.features.ndim != 2 or len(self.features) != n):
            raise ValueError(f"features is {self.features.shape}; {n} clips need ({n}, D)")
        if self.groups is not None and len(self.groups) != n:
            raise ValueError(f"groups has {len(self.groups)} names; {n} clips need {n}")

    def _check_values(self) -> None:
        _refuse_duplicates("video_ids", self.video_ids)
        _refuse_duplicates("classes", self.classes)
        outside = np.flatnonzero((self.labels < UNKNOWN) | (self.labels >= len(self.classes)))
        if len(outside):
            first = outside[0]
            raise ValueError(
                f"labels: {len(outside)} lie outside 0..{len(self.classes) - 1} (-1: unknown), "
                f"the first is {self.labels[first]} of {self.video_ids[first]!r}"
            )
        p = self.probabilities
        with np.errstate(invalid="ignore"):  # infinities of both signs: a row that is rejected below
            sums = p.sum(axis=1)
        whole = (p >= 0).all(axis=1) & (abs(sums - 1) <= SUM_TOLERANCE)
        wrong = np.flatnonzero(~whole & ~np.isnan(p).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"probabilities: {len(wrong)} rows neither are probabilities that sum to 1 nor all NaN, "
                f"the first is {self.video_ids[wrong[0]]!r} with sum {sums[wrong[0]]:g}"
            )

    def __len__(self) -> int:
        return len(self.video_ids)

    def __repr__(self) -> str:
        features = "none" if self.features is None else self.features.shape
        groups = "none" if self.groups is None else len(set(self.groups))
        return (
            f"Scores(probabilities={self.probabilities.shape}, classes={len(self.classes)}, features={features}, "
            f"groups={groups}, failed={len(self.failed)})"
        )

    @classmethod
    def read(cls, path: str | Path) -> Scores:
        """Read a table written by `write`: the file, or the stage's folder that holds its `scores.h5`.

        Raises:
            ValueError: the file is damaged, or of another kind or version.
        """
        path = inside(path, "scores.h5")
        arrays, attrs = store.read_arrays(path, "scores")
        return cls(**arrays, source=path, content=attrs["content"])

    def write(self, path: str | Path, **attrs: str | int | float) -> None:
        """Write the table to an HDF5 file, atomically, with `attrs` as attributes of the file."""
        store.write_arrays(path, "scores", self.arrays(), attrs)

    def arrays(self) -> dict[str, np.ndarray | list[str]]:
        """The table as the named arrays of its file."""
        arrays = {
            "video_ids": list(self.video_ids),
            "probabilities": self.probabilities,
            "labels": self.labels,
            "classes": list(self.classes),
        }
        if self.features is not None:
            arrays["features"] = self.features
        if self.groups is not None:
            arrays["groups"] = list(self.groups)
        return arrays

    @functools.cached_property
    def views(self) -> store.Views:
        """Clip id -> probabilities and features of each of its views, read from the table's file on access.

        Raises:
            UserError: the table was not read from a file, or its file holds no views.
            DamagedFile: the file has been written again since; so says every access to its views.
        """
        if self.source is None:
            raise UserError("a table in memory has no views; read it from a file scored with [score] per_view = true")
        return store.Views(self.source, self.content)

    @property
    def failed_rows(self) -> np.ndarray:
        """(N,) bool, true where the clip has no score."""
        return np.isnan(self.probabilities).any(axis=-1)

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the clips without a score."""
        return tuple(self.video_ids[row] for row in np.flatnonzero(self.failed_rows))

    @property
    def labeled(self) -> np.ndarray:
        """(N,) bool, true where the true class is known."""
        return self.labels != UNKNOWN

    def predictions(self) -> np.ndarray:
        """(N,) int64 class index of the largest probability (the first in a tie), -1 for a failed clip."""
        return np.where(self.failed_rows, -1, np.argmax(self.probabilities, axis=1)) if len(self) else self.labels

    def correct(self) -> np.ndarray:
        """(N,) bool, true where the prediction is the label; false for failed and for unlabeled clips."""
        return (self.predictions() == self.labels) & self.labeled

    def top1(self) -> float:
        """Share of the labeled clips that are classified correctly, 0..1; NaN if there are none."""
        return float(self.correct()[self.labeled].mean()) if self.labeled.any() else float("nan")

    def per_class(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of correct clips and of all clips of each true class: two (K,) int64 arrays."""
        k = len(self.classes)
        right, labeled = self.labels[self.correct()], self.labels[self.labeled]
        return np.bincount(right, minlength=k), np.bincount(labeled, minlength=k)

    def mean_class_accuracy(self) -> float:
        """Mean of the classes' accuracies, 0..1, over the classes that have clips; NaN if none has."""
        right, clips = self.per_class()
        present = clips > 0
        return float((right[present] / clips[present]).mean()) if present.any() else float("nan")

    def confusion(self) -> np.ndarray:
        """(K, K) int64 number of clips by [true class, predicted class], without failed or unlabeled clips."""
        k, scored = len(self.classes), ~self.failed_rows & self.labeled
        cells = self.labels[scored] * k + self.predictions()[scored]
        return np.bincount(cells, minlength=k * k).reshape(k, k)

    def take(self, rows: Iterable[int] | Iterable[bool]) -> Scores:
        """The table of these rows, in this order: numbers, or a mask of all rows."""
        rows = np.asarray(list(rows))
        if rows.dtype == bool and len(rows) != len(self):
            raise ValueError(f"the mask has {len(rows)} values; the table has {len(self)} rows")
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        features = None if self.features is None else self.features[rows]
        groups = None if self.groups is None else tuple(self.groups[row] for row in rows)
        ids = tuple(self.video_ids[row] for row in rows)
        kept = {"features": features, "groups": groups, "source": self.source, "content": self.content}
        return Scores(ids, self.probabilities[rows], self.labels[rows], self.classes, **kept)

    def with_probabilities(self, probabilities: np.ndarray) -> Scores:
        """The same clips with other probabilities (N, K), and without features, which belong to the old ones."""
        return Scores(self.video_ids, probabilities, self.labels, self.classes, groups=self.groups)

    def join(self, other: Scores) -> tuple[Scores, Scores]:
        """Both tables with the same clip in each row: this one unchanged, the other in this one's order.

        Raises:
            UserError: classes, clip ids, or labels differ; the message says how many and which.
        """
        if self.classes != other.classes:
            raise UserError(f"the tables have {class_difference(self.classes, other.classes)}")
        rows = {video_id: row for row, video_id in enumerate(other.video_ids)}
        missing = [video_id for video_id in self.video_ids if video_id not in rows]
        extra = sorted(set(rows) - set(self.video_ids))
        if missing or extra:
            raise UserError(
                f"the tables hold different clips: {counted(missing)} only in the first, "
                f"{counted(extra)} only in the second; both must be of the same part of the same catalog"
            )
        joined = other.take(rows[video_id] for video_id in self.video_ids)
        differ = np.flatnonzero(joined.labels != self.labels)
        if len(differ):
            raise UserError(f"the tables disagree on the label of {counted([self.video_ids[row] for row in differ])}")
        return self, joined


def _read_only(name: str, value, dtype) -> np.ndarray:
    array = np.array(value, dtype)  # a copy: the caller may still change its own array
    if dtype is np.int64 and not np.array_equal(array, np.asarray(value)):
        raise ValueError(f"{name} holds values that are not whole numbers")
    array.setflags(write=False)
    return array


def _refuse_duplicates(name: str, values: tuple[str, ...]) -> None:
    seen: set[str] = set()
    repeated = [value for value in values if value in seen or seen.add(value)]
    if repeated:
        raise ValueError(f"{name}: {counted(repeated)} occur more than once")
