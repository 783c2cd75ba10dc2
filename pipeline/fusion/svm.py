"""A multi-class linear SVM on both streams' scores, and the choice of its C by cross-validation over groups."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.fusion.folds import cut_folds, scored_pair
from pipeline.scores import Scores
from pipeline.system.console import some
from pipeline.system.errors import UserError
from pipeline.system.limits import usable_cores
from pipeline.system.processes import children_ignore_sigint, end_with_parent
from pipeline.system.progress import Progress

DEFAULT_C = 1.0  # if there are too few clips for cross-validation
_LEAST_SPREAD = 0.01  # of a clip's logits: a probability of the likeliest class that is one per cent above the least
_MANY = 20_000  # clips times classes from which a fit takes long enough for processes to pay off
Hyperplanes = tuple[np.ndarray, np.ndarray]  # coefficients (K, 2K) and intercepts (K,)


@dataclass(frozen=True, eq=False)
class LinearSVM:
    """A multi-class linear SVM on both streams' scores: `LinearSVM.fit(val_a, val_b).apply(a, b)`.

    A clip is represented by 2K numbers: the probabilities of the first and of the second stream, each scaled to
    Euclidean length 1. Crammer and Singer's multi-class SVM, which the paper cites, makes the margins of the classes
    comparable.

    A class without a scored validation clip cannot be learned: it is never predicted and gets probability 0. `absent`
    names such classes, which otherwise only the confusion matrix would reveal.

    Source: paper, section 5, "fusion by SVM"; K. Crammer and Y. Singer, JMLR 2 (2001). The paper leaves open whether
    scores are normalized before or after stacking; here before, so neither stream outweighs the other.
    """

    classes: tuple[str, ...]
    coefficients: np.ndarray
    """(K, 2K) float64; rows of absent classes are 0."""
    intercepts: np.ndarray
    """(K,) float64; -inf for absent classes."""
    c: float
    num_val: int
    """Number of clips it was fitted on."""
    temperature: float = 1.0
    """Divisor of the margins before their softmax; `choose_c` finds it."""

    def __post_init__(self):
        k = len(self.classes)
        shapes = self.coefficients.shape, self.intercepts.shape
        if shapes != ((k, 2 * k), (k,)):
            raise ValueError(
                f"an SVM of {k} classes has coefficients ({k}, {2 * k}) and intercepts ({k},), not {shapes}"
            )
        if not (np.isfinite(self.coefficients).all() and (self.intercepts < np.inf).all()):
            raise ValueError("the coefficients and intercepts of an SVM must be finite (or the class absent)")
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"the temperature of an SVM is {self.temperature}; it must be above 0 and finite")
        if not (self.intercepts > -np.inf).any():
            raise ValueError("an SVM without a single class predicts nothing")

    @classmethod
    def fit(cls, val_a: Scores, val_b: Scores, *, c: float = DEFAULT_C, temperature: float = 1.0) -> LinearSVM:
        """Fit on validation clips. The order of the clips does not matter; failed clips are left out.

        Args:
            val_a, val_b: tables of the validation clips, the streams in the same order as for `apply`.
            c: cost of a margin violation; smaller is smoother.
            temperature: of `apply`; it does not change the margins. `choose_c` finds both.

        Raises:
            ValueError: c is not positive and finite, or there is no labeled validation clip that both streams scored.
        """
        if not 0 < c < np.inf:
            raise ValueError(f"c is {c}; it must be above 0 and finite")
        a, b = scored_pair(val_a, val_b)
        coefficients, intercepts = _crammer_singer(_features(a, b), a.labels, len(a.classes), c)
        return cls(a.classes, coefficients, intercepts, float(c), len(a), temperature)

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes that had no validation clip, and are never predicted."""
        return tuple(name for name, bias in zip(self.classes, self.intercepts, strict=True) if bias == -np.inf)

    def margins(self, a: Scores, b: Scores) -> np.ndarray:
        """(N, K) float64 decision values in a's order of clips; NaN rows for failed clips, -inf for absent classes.

        Raises:
            UserError: the tables' classes are not those of the fit, or the tables do not join.
        """
        if a.classes != self.classes:
            raise UserError(
                f"the tables have {len(a.classes)} classes ({some(a.classes, 3)}); "
                f"the SVM was fitted on {len(self.classes)} ({some(self.classes, 3)})"
            )
        return _features(*a.join(b)) @ self.coefficients.T + self.intercepts

    def apply(self, a: Scores, b: Scores) -> Scores:
        """Fused table in a's order of clips; a is the spatial stream's, b the temporal one's.

        Its rows are the softmax of margins / temperature: monotone within a clip, so the top class is the SVM's
        decision.
        """
        margins = self.margins(a, b)
        return a.with_probabilities(_with_top(np.exp(_log_softmax(margins / self.temperature)), margins.argmax(axis=1)))

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; the intercept of an absent class is None."""
        intercepts = [None if bias == -np.inf else float(bias) for bias in self.intercepts]
        return {
            "c": self.c,
            "num_val": self.num_val,
            "temperature": self.temperature,
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
        numbers = (values[name] for name in ("c", "num_val", "temperature"))
        return cls(tuple(values["classes"]), coefficients, intercepts, *numbers)


class Choice(NamedTuple):
    """What `choose_c` chose for the SVM."""

    c: float
    temperature: float
    """By which the margins become probabilities."""
    why: dict[str, Any]
    """The reasons, as plain JSON values."""


def choose_c(val_a: Scores, val_b: Scores, grid: Sequence[float], *, folds: int = 5) -> Choice:
    """The C that does best on clips from groups that the SVM was not fitted on.

    For each fold and each C, an SVM is fitted on the other folds and judged on this one; the C with the most correct
    clips over all folds wins; in a tie, the smallest, which is the smoothest. If no cut into folds is usable (one clip
    per class), C is `DEFAULT_C`, unless the grid has a single value. The final SVM is to be fitted on all validation
    clips. Its temperature is the best one for the margins of held-out clips; without a cut, for those of the clips it
    was fitted on.

    Args:
        val_a, val_b: tables of the validation clips.
        grid: the values of C to try, above 0.
        folds: number of folds wanted, as for `cut_folds`.

    Returns:
        C, its temperature, and why: the grid, the number of correct clips for each C, the cut, and "out_of_fold_top1":
        the accuracy of the chosen C on held-out folds, over all validation clips (failed ones are wrong), slightly
        optimistic as the best of several C, None without a cut.

    Raises:
        ValueError: the grid is empty or not above 0, or no validation clip is scored.
    """
    if not len(grid) or not all(0 < c < np.inf for c in grid):
        raise ValueError(f"the grid of C is {list(grid)}; it must hold numbers above 0")
    a, b = scored_pair(val_a, val_b)
    folded, grid = cut_folds(a, folds), sorted(set(map(float, grid)))
    why = {"chosen_from": grid, **folded.as_dict()}
    if not len(folded):
        c = grid[0] if len(grid) == 1 else DEFAULT_C
        margins = LinearSVM.fit(a, b, c=c).margins(a, b)
        return Choice(c, _temperature(margins, a.labels), {**why, "right": [], "out_of_fold_top1": None})
    margins = _held_out_margins(a, b, list(folded), grid)
    right = (margins.argmax(axis=2) == a.labels).sum(axis=1).tolist()
    best = int(np.argmax(right))  # the first in a tie
    why |= {"right": right, "out_of_fold_top1": right[best] / len(val_a)}
    return Choice(grid[best], _temperature(margins[best], a.labels), why)


def _held_out_margins(
    a: Scores, b: Scores, folds: list[tuple[np.ndarray, np.ndarray]], grid: list[float]
) -> np.ndarray:
    """(C, N, K) margins of every clip by the SVM that was not fitted on its fold. Large fits run on all cores."""
    trials = [(c, *fold) for c in reversed(grid) for fold in folds]  # large C takes longest, so it comes first
    if len(a) * len(a.classes) < _MANY:
        found = [_margins(a, b, *trial) for trial in trials]
    else:
        from joblib import Parallel, delayed

        found = []
        # not threads: they would share the solver's random number generator
        pool = Parallel(usable_cores(), backend="loky", initializer=end_with_parent, return_as="generator")
        with children_ignore_sigint():
            fits = pool(delayed(_margins)(a, b, *trial) for trial in trials)
        # closed at once after Ctrl-C: joblib would go on handing over fits while Python exits, and print tracebacks
        with contextlib.closing(fits), Progress("fusion, choosing C", len(trials), "SVMs") as progress:
            for margins in fits:
                found.append(margins)
                progress.advance()
    margins = np.empty((len(grid), len(a), len(a.classes)))
    for (c, _, held), values in zip(trials, found, strict=True):
        margins[grid.index(c), held] = values
    return margins


def _margins(a: Scores, b: Scores, c: float, fitted: np.ndarray, held: np.ndarray) -> np.ndarray:
    return LinearSVM.fit(a.take(fitted), b.take(fitted), c=c).margins(a.take(held), b.take(held))


def _temperature(margins: np.ndarray, labels: np.ndarray) -> float:
    """The divisor with which the softmax of the margins (N, K) has the least cross-entropy, to within 1 %.

    The targets are (N + 1) / (N + K) for the true class and 1 / (N + K) for each other one, so N clips that are all
    correct do not give certainty. Clips of a class that the SVM does not know are left out. Margins that say nothing
    would be divided forever; the median clip keeps logits that are `_LEAST_SPREAD` apart, which float32 resolves.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (temperature scaling); J. Platt,
    Probabilistic Outputs for Support Vector Machines, 1999 (the targets).
    """
    known = np.isfinite(margins[np.arange(len(labels)), labels])
    margins, labels = margins[known], labels[known]
    finite = np.isfinite(margins)
    targets = finite / (len(labels) + finite.sum(axis=1, keepdims=True))
    targets[np.arange(len(labels)), labels] *= len(labels) + 1

    def cross_entropy(factor: float) -> float:
        return -float((targets * np.where(finite, _log_softmax(margins * factor), 0.0)).sum())

    best = 1.0
    for reach in (1e4, 2.2, 1.07):  # convex in the factor: the best lies between the neighbors of the best so far
        best = min(np.geomspace(best / reach, best * reach, 25), key=cross_entropy)
    spread = float(np.median(margins.max(axis=1) - np.where(finite, margins, np.inf).min(axis=1)))
    return float(min(1 / best, spread / _LEAST_SPREAD) if spread else 1 / best)


def _with_top(probabilities: np.ndarray, top: np.ndarray) -> np.ndarray:
    """(N, K) float32 in which the given class is the largest of its row, even if rounding made another as large."""
    rounded, rows = probabilities.astype(np.float32), np.arange(len(top))
    lost = rounded.argmax(axis=1) != top
    rounded[rows[lost], top[lost]] = np.nextafter(rounded[lost].max(axis=1, initial=0), np.float32(2))
    return rounded


def _log_softmax(values: np.ndarray) -> np.ndarray:
    from scipy.special import log_softmax

    return log_softmax(values, axis=1)


def _features(a: Scores, b: Scores) -> np.ndarray:
    """(N, 2K) float64: rows of a and of b, each of Euclidean length 1; NaN where either failed."""
    pair = [table.probabilities.astype(np.float64) for table in (a, b)]
    return np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in pair], axis=1)


def _crammer_singer(features: np.ndarray, labels: np.ndarray, num_classes: int, c: float) -> Hyperplanes:
    """Coefficients (K, 2K) and intercepts (K,); rows of classes absent from labels are 0 and -inf."""
    coefficients, intercepts = np.zeros((num_classes, features.shape[1])), np.full(num_classes, -np.inf)
    present = np.unique(labels)
    if len(present) == 1:  # nothing to separate: the only known class is always predicted
        intercepts[present] = 0.0
        return coefficients, intercepts
    rows, biases = _solve(features, labels, c)
    if len(present) == 2:  # scikit-learn returns one row, the second class against the first
        rows, biases = np.concatenate([-rows, rows]) / 2, np.concatenate([-biases, biases]) / 2
    coefficients[present], intercepts[present] = rows, biases
    return coefficients, intercepts


def _solve(features: np.ndarray, labels: np.ndarray, c: float) -> Hyperplanes:
    from sklearn.exceptions import ConvergenceWarning  # importing takes most of a second, and only fits need it
    from sklearn.svm import LinearSVC

    svm = LinearSVC(C=c, multi_class="crammer_singer", random_state=0, max_iter=20_000)
    with warnings.catch_warnings():
        # on separable scores, the solver may stop at max_iter, long after the decisions have settled
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(features, labels)
    return svm.coef_, svm.intercept_
