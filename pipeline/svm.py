"""A multi-class linear SVM on both streams' scores, and the choice of its C by cross-validation over groups."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.console import some
from pipeline.folds import cut_folds, scored_pair
from pipeline.scores import Scores

DEFAULT_C = 1.0  # if there are too few clips for cross-validation
Hyperplanes = tuple[np.ndarray, np.ndarray]  # coefficients (K, 2K) and intercepts (K,)


@dataclass(frozen=True, eq=False)
class LinearSVM:
    """A multi-class linear SVM on both streams' scores: `LinearSVM.fit(val_a, val_b).apply(a, b)`.

    A clip is represented by 2K numbers: the probabilities of the first and of the second stream, each scaled to
    Euclidean length 1. Crammer and Singer's multi-class SVM, which the paper cites, makes the margins of the classes
    comparable.

    A class without a scored validation clip cannot be learned: it is never predicted and gets probability 0. `absent`
    names such classes, which otherwise only the confusion matrix would show.

    Source: paper, section 5, "fusion by SVM"; K. Crammer and Y. Singer, JMLR 2 (2001). The paper leaves open whether
    the scores are normalised before or after stacking; here before, so that neither stream outweighs the other.
    """

    classes: tuple[str, ...]
    coefficients: np.ndarray
    """(K, 2K) float64; rows of absent classes are 0."""
    intercepts: np.ndarray
    """(K,) float64; -inf for absent classes."""
    c: float
    num_val: int
    """Number of clips that it was fitted on."""

    def __post_init__(self):
        k = len(self.classes)
        shapes = self.coefficients.shape, self.intercepts.shape
        if shapes != ((k, 2 * k), (k,)):
            raise ValueError(
                f"an SVM of {k} classes has coefficients ({k}, {2 * k}) and intercepts ({k},), not {shapes}"
            )
        if not (np.isfinite(self.coefficients).all() and (self.intercepts < np.inf).all()):
            raise ValueError("the coefficients and intercepts of an SVM must be finite (or the class absent)")
        if not (self.intercepts > -np.inf).any():
            raise ValueError("an SVM without a single class predicts nothing")

    @classmethod
    def fit(cls, val_a: Scores, val_b: Scores, c: float = DEFAULT_C) -> LinearSVM:
        """Fit on validation clips. The order of the clips does not matter; failed clips are left out.

        Args:
            val_a, val_b: tables of the validation clips, the streams in the order that `apply` gets them.
            c: cost of a margin violation; smaller is smoother.

        Raises:
            ValueError: if c is not positive, or there is no validation clip that both streams scored.
        """
        if not 0 < c < np.inf:
            raise ValueError(f"c is {c}; it must be above 0 and finite")
        a, b = scored_pair(val_a, val_b)
        coefficients, intercepts = _crammer_singer(_features(a, b), a.labels, len(a.classes), c)
        return cls(a.classes, coefficients, intercepts, float(c), len(a))

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes that had no validation clip, and are never predicted."""
        return tuple(name for name, bias in zip(self.classes, self.intercepts, strict=True) if bias == -np.inf)

    def margins(self, a: Scores, b: Scores) -> np.ndarray:
        """(N, K) float64 decision values in a's order of clips; NaN rows for failed clips, -inf for absent classes.

        Raises:
            ValueError: if the tables have other classes than those of the fit, or do not join.
        """
        if a.classes != self.classes:
            raise ValueError(
                f"the tables have {len(a.classes)} classes ({some(a.classes, 3)}); "
                f"the SVM was fitted on {len(self.classes)} ({some(self.classes, 3)})"
            )
        return _features(*a.join(b)) @ self.coefficients.T + self.intercepts

    def apply(self, a: Scores, b: Scores) -> Scores:
        """Fused table in a's order of clips.

        Its rows are the softmax of the margins: monotone within a clip, so the top class is the SVM's decision, but
        they are not calibrated probabilities.
        """
        margins = self.margins(a, b)
        powers = np.exp(margins - margins.max(axis=1, keepdims=True))
        return a.with_probabilities(powers / powers.sum(axis=1, keepdims=True))

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; the intercept of an absent class is None."""
        intercepts = [None if bias == -np.inf else float(bias) for bias in self.intercepts]
        return {
            "c": self.c,
            "num_val": self.num_val,
            "classes": list(self.classes),
            "absent": list(self.absent),
            "coefficients": self.coefficients.tolist(),
            "intercepts": intercepts,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LinearSVM:
        """The SVM that `as_dict` described; it gives the same margins to the last bit.

        Raises:
            ValueError: the values are not those of one SVM.
        """
        intercepts = [-np.inf if bias is None else bias for bias in values["intercepts"]]
        coefficients, intercepts = np.array(values["coefficients"], np.float64), np.array(intercepts, np.float64)
        return cls(tuple(values["classes"]), coefficients, intercepts, values["c"], values["num_val"])


def choose_c(val_a: Scores, val_b: Scores, grid: Sequence[float], *, folds: int = 5) -> tuple[float, dict[str, Any]]:
    """The C that is best on clips of groups that the SVM was not fitted on.

    For each fold and each C an SVM is fitted on the other folds and judged on this one; the C with the most correct
    clips over all folds wins, in a tie the smallest, which is the smoothest. If no cut into folds is usable (one clip
    per class), C is `DEFAULT_C`. The SVM that is used is then fitted on all validation clips.

    Args:
        val_a, val_b: tables of the validation clips.
        grid: the values of C to try, above 0.
        folds: number of folds wanted, as for `cut_folds`.

    Returns:
        C, and the reasons as plain JSON values: the grid, the number of correct clips for each C, the cut, and
        "out_of_fold_top1": the accuracy of the chosen C on held-out folds, over all validation clips (failed ones are
        wrong). It is a little too good, being the best of several C; None without a cut.

    Raises:
        ValueError: the grid is empty or not above 0, or no validation clip is scored.
    """
    if not len(grid) or not all(0 < c < np.inf for c in grid):
        raise ValueError(f"the grid of C is {list(grid)}; it must hold numbers above 0")
    a, b = scored_pair(val_a, val_b)
    folded, grid = cut_folds(a, folds), sorted(set(map(float, grid)))
    why = {"chosen_from": grid, **folded.as_dict()}
    if not len(folded):
        return DEFAULT_C, {**why, "right": [], "out_of_fold_top1": None}
    right = [sum(_right(a, b, fitted, held, c) for fitted, held in folded) for c in grid]
    c = grid[int(np.argmax(right))]  # the first in a tie
    return c, {**why, "right": right, "out_of_fold_top1": max(right) / len(val_a)}


def _right(a: Scores, b: Scores, fitted: np.ndarray, held: np.ndarray, c: float) -> int:
    svm = LinearSVM.fit(a.take(fitted), b.take(fitted), c)
    return int((svm.margins(a.take(held), b.take(held)).argmax(axis=1) == a.labels[held]).sum())


def _features(a: Scores, b: Scores) -> np.ndarray:
    """(N, 2K) float64: rows of a and of b, each of Euclidean length 1; NaN where either failed."""
    pair = [table.probabilities.astype(np.float64) for table in (a, b)]
    return np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in pair], axis=1)


def _crammer_singer(features: np.ndarray, labels: np.ndarray, num_classes: int, c: float) -> Hyperplanes:
    """Coefficients (K, 2K) and intercepts (K,); rows of classes absent from labels are 0 and -inf."""
    coefficients, intercepts = np.zeros((num_classes, features.shape[1])), np.full(num_classes, -np.inf)
    present = np.unique(labels)
    if len(present) == 1:  # nothing to separate: the one class that is known is always predicted
        intercepts[present] = 0.0
        return coefficients, intercepts
    rows, biases = _solve(features, labels, c)
    if len(present) == 2:  # scikit-learn gives one row, the second class against the first
        rows, biases = np.concatenate([-rows, rows]) / 2, np.concatenate([-biases, biases]) / 2
    coefficients[present], intercepts[present] = rows, biases
    return coefficients, intercepts


def _solve(features: np.ndarray, labels: np.ndarray, c: float) -> Hyperplanes:
    from sklearn.exceptions import ConvergenceWarning  # importing takes most of a second, and only a fit needs it
    from sklearn.svm import LinearSVC

    svm = LinearSVC(C=c, multi_class="crammer_singer", random_state=0, max_iter=20_000)
    with warnings.catch_warnings():
        # on separable scores the solver may stop at max_iter, long after the decisions have settled
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(features, labels)
    return svm.coef_, svm.intercept_
