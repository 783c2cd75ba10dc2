"""Two score tables become one: the mean, a weighted mean, or a linear SVM.

Whatever is chosen here (the weight, the SVM) is chosen on validation clips. Tables are joined by clip id first. A clip
that failed in either stream has no fused score and counts as wrong: the score of one stream is never passed off as that
of both.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.scores import Scores
from pipeline.specs import FusionSpec

Planes = tuple[np.ndarray, np.ndarray]  # coefficients (K, 2K) and intercepts (K,)


def average(a: Scores, b: Scores) -> Scores:
    """Mean of both streams' probabilities, in a's order of clips.

    Source: paper, section 5, "fusion by averaging".
    """
    return weighted(a, b, 0.5)


def weighted(a: Scores, b: Scores, weight: float) -> Scores:
    """(1 - weight) a + weight b, in a's order of clips.

    Args:
        a, b: the streams' tables over the same clips, in any order.
        weight: share of b, 0..1.

    Raises:
        ValueError: if weight is outside 0..1, or the tables do not join.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; it must be in 0..1 (the share of the second table)")
    a, b = a.join(b)
    return _like(a, _mix(a, b, weight))


def choose_weight(val_a: Scores, val_b: Scores, step: float = 0.05) -> tuple[float, dict[str, Any]]:
    """The weight of b that serves best on validation clips.

    The most right clips win (a failed clip is wrong at every weight). On few clips many weights are equal: then the
    plain average is left no farther than must be, and of two weights equally far from 0.5 the one with the lower mean
    negative log likelihood of the true class wins, then the smaller. (The likelihood is not asked first: where one
    stream is sure of itself it prefers the edge of the range of equal weights, where unseen clips go wrong.)

    Args:
        val_a, val_b: tables of the validation clips.
        step: distance of the weights tried, in (0, 1]: step 0.3 tries 0, 0.3, 0.6, 0.9 and 1.

    Returns:
        The weight, and why: the weights tried, the right clips and the negative log likelihood of each.

    Raises:
        ValueError: if step is out of range, or there is no validation clip that both streams scored.
    """
    if not 0 < step <= 1:
        raise ValueError(f"step is {step}; it must be above 0 and at most 1")
    a, b = val_a.join(val_b)
    scored = _scored_rows(a, b)
    grid = [round(k * step, 9) for k in range(int(np.ceil(1 / step - 1e-9)))] + [1.0]
    trials = [_trial(_mix(a, b, weight)[scored], a.labels[scored]) for weight in grid]
    right, nll = zip(*trials, strict=True)
    weight = min(zip(right, nll, grid, strict=True), key=_rank)[-1]
    why = {"weight": weight, "weights": grid, "right": list(right), "nll": list(nll)}
    return weight, {**why, "num_val": len(a), "num_val_failed": len(a) - len(scored)}


@dataclass(frozen=True, eq=False)
class LinearSVM:
    """A multi-class linear SVM on both streams' scores: `LinearSVM.fit(val_a, val_b).apply(a, b)`.

    A clip becomes 2K numbers: each stream's probabilities, scaled to Euclidean length 1, the first stream's in front.
    Crammer and Singer's multi-class SVM, which the paper cites, makes the margins of the classes comparable.

    A class without a scored validation clip cannot be learned: it is never predicted and gets probability 0. `absent`
    names such classes, so that nobody has to find out from the confusion matrix.

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
    """Clips it was fitted on."""

    @classmethod
    def fit(cls, val_a: Scores, val_b: Scores, c: float = 1.0) -> LinearSVM:
        """Fit on validation clips. The order of the clips does not matter; failed clips are left out.

        Args:
            val_a, val_b: tables of the validation clips, the streams in the order that `apply` gets them.
            c: cost of a margin violation; smaller is smoother.

        Raises:
            ValueError: if c is not positive, or there is no validation clip that both streams scored.
        """
        if not c > 0:
            raise ValueError(f"c is {c}; it must be above 0")
        a, b = val_a.join(val_b)
        rows = sorted(_scored_rows(a, b), key=lambda row: a.video_ids[row])
        a, b = a.take(rows), b.take(rows)
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
                f"the tables have {len(a.classes)} classes {_brief(a.classes)}; "
                f"the SVM was fitted on {len(self.classes)} {_brief(self.classes)}"
            )
        return _features(*a.join(b)) @ self.coefficients.T + self.intercepts

    def apply(self, a: Scores, b: Scores) -> Scores:
        """Fused table in a's order of clips.

        Its rows are the softmax of the margins: monotone within a clip, so the top class is the SVM's decision, but no
        calibrated probability.
        """
        margins = self.margins(a, b)
        powers = np.exp(margins - margins.max(axis=1, keepdims=True))
        return _like(a, powers / powers.sum(axis=1, keepdims=True))

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
        """The SVM that `as_dict` described."""
        intercepts = [-np.inf if bias is None else bias for bias in values["intercepts"]]
        coefficients, intercepts = np.array(values["coefficients"], np.float64), np.array(intercepts, np.float64)
        return cls(tuple(values["classes"]), coefficients, intercepts, values["c"], values["num_val"])


def fuse(val: Mapping[str, Scores], test: Mapping[str, Scores], spec: FusionSpec) -> tuple[dict[str, Scores], dict]:
    """Every fusion of the test tables, with parameters chosen on the validation tables.

    Args:
        val, test: "spatial" and "temporal" -> table of that part.
        spec: the grid of weights, and C of the SVM.

    Returns:
        "average", "weighted", "svm" -> fused test table; and the parameters of each as plain JSON values, each with
        its accuracy on the validation clips: "val_top1", or "fitted_top1" of the SVM, which was fitted on them.

    Raises:
        ValueError: if a clip is in both parts, or tables do not join, or no validation clip is scored.
    """
    both = sorted(set(val["spatial"].video_ids) & set(test["spatial"].video_ids))
    if both:
        raise ValueError(f"{len(both)} clips are in the validation and in the test tables, such as {both[0]!r}")
    val_pair, test_pair = ((part["spatial"], part["temporal"]) for part in (val, test))
    weight, why = choose_weight(*val_pair, step=spec.weight_step)
    svm = LinearSVM.fit(*val_pair, c=spec.svm_c)
    fused = {"average": average(*test_pair), "weighted": weighted(*test_pair, weight), "svm": svm.apply(*test_pair)}
    parameters = {
        "average": {"weight": 0.5, "val_top1": average(*val_pair).top1()},
        "weighted": {**why, "val_top1": weighted(*val_pair, weight).top1()},
        "svm": {**svm.as_dict(), "fitted_top1": svm.apply(*val_pair).top1()},
    }
    return fused, parameters


def _like(a: Scores, probabilities: np.ndarray) -> Scores:
    return Scores(a.video_ids, probabilities, a.labels, a.classes, groups=a.groups)


def _mix(a: Scores, b: Scores, weight: float) -> np.ndarray:
    return (1 - weight) * a.probabilities.astype(np.float64) + weight * b.probabilities.astype(np.float64)


def _scored_rows(a: Scores, b: Scores) -> np.ndarray:
    rows = np.flatnonzero(~(a.failed_rows | b.failed_rows))
    if not len(rows):
        raise ValueError(
            f"none of the {len(a)} validation clips has a score of both streams; "
            "a fusion is chosen on them: raise [dataset] val_fraction, or look at the failed clips"
        )
    return rows


def _trial(probabilities: np.ndarray, labels: np.ndarray) -> tuple[int, float]:
    """Right clips and mean negative log likelihood of the true class."""
    of_truth = probabilities[np.arange(len(labels)), labels]
    return int((probabilities.argmax(axis=1) == labels).sum()), float(-np.log(np.maximum(of_truth, 1e-12)).mean())


def _rank(trial: tuple[int, float, float]) -> tuple[float, ...]:
    """Smallest for the best of (right clips, negative log likelihood, weight); rounded, so that equals are equal."""
    right, nll, weight = trial
    return -right, round(abs(weight - 0.5), 9), round(nll, 9), weight


def _features(a: Scores, b: Scores) -> np.ndarray:
    """(N, 2K) float64: rows of a and of b, each of Euclidean length 1; NaN where either failed."""
    pair = [table.probabilities.astype(np.float64) for table in (a, b)]
    return np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in pair], axis=1)


def _crammer_singer(features: np.ndarray, labels: np.ndarray, num_classes: int, c: float) -> Planes:
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


def _solve(features: np.ndarray, labels: np.ndarray, c: float) -> Planes:
    from sklearn.exceptions import ConvergenceWarning  # takes most of a second, and only a fit needs it
    from sklearn.svm import LinearSVC

    svm = LinearSVC(C=c, multi_class="crammer_singer", random_state=0, max_iter=20_000)
    with warnings.catch_warnings():
        # on separable scores the solver may stop at max_iter, long after the decisions have settled
        warnings.simplefilter("ignore", ConvergenceWarning)
        svm.fit(features, labels)
    return svm.coef_, svm.intercept_


def _brief(names: tuple[str, ...]) -> str:
    return "(" + ", ".join(map(repr, names[:3])) + (", ...)" if len(names) > 3 else ")")
