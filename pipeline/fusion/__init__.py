"""Fuse two score tables into one by the mean, a weighted mean, or a linear SVM.

Every choice here (the weight, the SVM and its C) is made on validation clips, which the streams did not train on, and
judged by folds of groups. Tables are first joined by clip id. A clip that failed in either stream has no fused score
and counts as wrong: one stream's score is never passed off as that of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.fusion.folds import Folds, cut_folds, scored_pair
from pipeline.fusion.svm import LinearSVM, choose_c
from pipeline.scores import Scores
from pipeline.specs import FusionSpec
from pipeline.system import files
from pipeline.system.errors import UserError

FORMAT, FORMAT_VERSION = "two-stream-fusion", 2


@dataclass(frozen=True)
class Weighted:
    """The fusion (1 - weight) a + weight b; `Weighted(0.5)` is the average."""

    weight: float

    def __post_init__(self):
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; it must be in 0..1 (the share of the second table)")

    def apply(self, a: Scores, b: Scores) -> Scores:
        """Fused table in a's order of clips; a is the spatial stream's, b the temporal one's.

        Raises:
            UserError: the tables do not join.
        """
        a, b = a.join(b)
        return a.with_probabilities(_mix(a, b, self.weight))


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
        ValueError: weight is outside 0..1, or the tables do not join.
    """
    return Weighted(weight).apply(a, b)


def choose_weight(val_a: Scores, val_b: Scores, step: float = 0.05, *, folds: int = 5) -> tuple[float, dict[str, Any]]:
    """The weight of b that does best on validation clips.

    The weight with the most correct clips wins (a failed clip is wrong at every weight). With few clips, many weights
    tie; then the one nearest to 0.5, the plain average, wins; of two equally near, the one with the lower mean negative
    log likelihood of the true class, then the smaller. (The likelihood does not come first: if one stream is very
    confident, it prefers the edge of the range of tied weights, where unseen clips go wrong.)

    Nothing is fitted for a given weight, so its correct clips summed over held-out folds are those of all validation
    clips, whatever the cut. The folds show what the choice is worth: each judges the weight that the others choose.

    Args:
        val_a, val_b: tables of the validation clips.
        step: spacing of the weights tried, in (0, 1]: step 0.3 tries 0, 0.3, 0.6, 0.9 and 1.
        folds: number of folds wanted, as for `cut_folds`.

    Returns:
        The weight, and the reasons as plain JSON values: the weights tried, with the number of correct clips and the
        mean negative log likelihood of each; the cut, the weight chosen without each fold, and "out_of_fold_top1", the
        accuracy of these weights on the held-out folds (None without a cut).

    Raises:
        ValueError: step is out of range, or there is no labeled validation clip that both streams scored.
    """
    if not 0 < step <= 1:
        raise ValueError(f"step is {step}; it must be above 0 and at most 1")
    a, b = scored_pair(val_a, val_b)
    grid = [round(k * step, 9) for k in range(int(np.ceil(1 / step - 1e-9)))] + [1.0]
    right, nll = (np.stack(rows) for rows in zip(*(_trial(a, b, weight) for weight in grid), strict=True))
    weight, folded = grid[_best(right, nll, grid)], cut_folds(a, folds, by_class=False)
    chosen, hits = _without_each_fold(right, nll, grid, folded)
    return weight, {
        "weight": weight,
        "weights": grid,
        "right": right.sum(axis=1).tolist(),
        "nll": nll.mean(axis=1).tolist(),
        "num_val": len(val_a),
        "num_val_failed": len(val_a) - len(a),
        **folded.as_dict(),
        "weights_without_fold": chosen,
        "out_of_fold_top1": hits / len(val_a) if len(folded) else None,
    }


def fuse(val: Mapping[str, Scores], test: Mapping[str, Scores], spec: FusionSpec) -> tuple[dict[str, Scores], dict]:
    """Every fusion of the test tables, with parameters chosen on the validation tables.

    Args:
        val, test: "spatial" and "temporal" -> table of that part.
        spec: the grid of weights, the SVM's C or the grid it is chosen from, and the number of folds.

    Returns:
        "average", "weighted", "svm" -> fused test table; and the parameters of each as plain JSON values, from which
        `from_parameters` recreates the fusions. Each has its accuracy on the validation clips: "val_top1", or
        "fitted_top1" for the SVM, which was fitted on them. Without validation clips, there is only the average.

    Raises:
        ValueError: a clip is in both parts, tables do not join, or no validation clip is scored.
    """
    if not any(map(len, val.values())):
        only = Weighted(0.5).apply(test["spatial"], test["temporal"])
        return {"average": only}, {"average": {"weight": 0.5, "val_top1": None}}
    both = sorted(set(val["spatial"].video_ids) & set(test["spatial"].video_ids))
    if both:
        raise ValueError(f"{len(both)} clips are in the validation and in the test tables, such as {both[0]!r}")
    val_pair, test_pair = ((part["spatial"], part["temporal"]) for part in (val, test))
    weight, why = choose_weight(*val_pair, step=spec.weight_step, folds=spec.folds)
    choice = choose_c(*val_pair, [spec.svm_c] if spec.svm_c else spec.svm_c_grid, folds=spec.folds)
    svm = LinearSVM.fit(*val_pair, c=choice.c, temperature=choice.temperature)
    why_c = {"note": "given by [fusion] svm_c"} if spec.svm_c else choice.why
    fusions = {"average": Weighted(0.5), "weighted": Weighted(weight), "svm": svm}
    on_val = {name: fusion.apply(*val_pair).top1() for name, fusion in fusions.items()}
    parameters = {
        "average": {"weight": 0.5, "val_top1": on_val["average"]},
        "weighted": {**why, "val_top1": on_val["weighted"]},
        "svm": {**svm.as_dict(), "choice": why_c, "fitted_top1": on_val["svm"]},
    }
    return {name: fusion.apply(*test_pair) for name, fusion in fusions.items()}, parameters


def from_parameters(parameters: Mapping[str, Any]) -> dict[str, Weighted | LinearSVM]:
    """The fusions that `fuse` chose: name -> object whose `.apply(spatial, temporal)` fuses any two tables.

    Raises:
        UserError: parameters are missing or do not describe a fusion.
    """
    try:
        svm = {"svm": LinearSVM.from_dict(parameters["svm"])} if "svm" in parameters else {}
        means = ["average", *(["weighted"] if "weighted" in parameters else [])]
        return {**{name: Weighted(parameters[name]["weight"]) for name in means}, **svm}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"these are not parameters of the fusions average, weighted and svm: {error!r}") from None


def write(path: Path | str, parameters: Mapping[str, Any], **attrs: Any) -> None:
    """Write `fusion.json`: the parameters that `fuse` returned, and `attrs`."""
    heading = {"format": FORMAT, "format_version": FORMAT_VERSION, "order": ["spatial", "temporal"]}
    files.write_json(path, {**heading, **attrs, "parameters": parameters})


def read(path: Path | str) -> dict[str, Weighted | LinearSVM]:
    """The fusions of a `fusion.json`, or of the folder that holds it, ready for other clips of the same classes.

        fusion.read("fusion.json")["svm"].apply(spatial, temporal)

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not a fusion.json, is damaged, or is of another version.
    """
    return from_parameters(read_parameters(path))


def read_parameters(path: Path | str) -> dict[str, Any]:
    """The parameters that `write` wrote: "average", and, if they were chosen, "weighted" and "svm".

    Raises:
        FileNotFoundError, UserError: as for `read`.
    """
    path = files.inside(path, "fusion.json")
    found = files.read_json(path)
    said = (found.get("format"), found.get("format_version"))
    if said != (FORMAT, FORMAT_VERSION):
        raise UserError(f"{path} is {said[0]} version {said[1]}, not {FORMAT} version {FORMAT_VERSION}; run Fuse again")
    return found.get("parameters") or {}


def _mix(a: Scores, b: Scores, weight: float) -> np.ndarray:
    return (1 - weight) * a.probabilities.astype(np.float64) + weight * b.probabilities.astype(np.float64)


def _trial(a: Scores, b: Scores, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each clip is correct, and the negative log likelihood of its true class: two (N,) arrays."""
    probabilities = _mix(a, b, weight)
    of_truth = probabilities[np.arange(len(a)), a.labels]
    top = probabilities.astype(np.float32).argmax(axis=1)  # as in the table, where rounding may make a tie
    return top == a.labels, -np.log(np.maximum(of_truth, 1e-12))


def _best(right: np.ndarray, nll: np.ndarray, grid: list[float]) -> int:
    """Index in the grid of the best weight on these clips; right and nll are (weights, clips)."""
    sums, means = right.sum(axis=1), nll.mean(axis=1)
    ranks = [(-sums[i], round(abs(w - 0.5), 9), round(means[i], 9), w) for i, w in enumerate(grid)]  # ties stay ties
    return ranks.index(min(ranks))


def _without_each_fold(right: np.ndarray, nll: np.ndarray, grid: list[float], folds: Folds) -> tuple[list[float], int]:
    """The weight chosen without each fold, and the total number of clips these get right on their folds."""
    best = [_best(right[:, fitted], nll[:, fitted], grid) for fitted, _ in folds]
    hits = sum(int(right[place, held].sum()) for place, (_, held) in zip(best, folds, strict=True))
    return [grid[place] for place in best], hits
