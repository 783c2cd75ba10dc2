"""A small report's input, whose numbers can be counted by hand."""

from unittest import mock

import numpy as np

from pipeline import report
from pipeline.fusion import average
from pipeline.report import figures
from pipeline.report.metrics import Background
from pipeline.scores import Scores

CURVE = {
    "steps": [2, 4, 6],
    "loss": [1.5, 0.7, 0.4],
    "learning_rate": [0.01, 0.01, 0.001],
    "validation": [{"step": 3, "top1": 0.5, "loss": 1.1}, {"step": 6, "top1": 0.75, "loss": 0.9}],
    "best_step": 6,
    "device": "cpu, 1 thread",
    "precision": "float32",
}


def certain(predictions, labels, classes, *, ids=None) -> Scores:
    """A table that is 0.9 sure of each prediction; -1 is a failed clip."""
    k = len(classes)
    rows = [np.full(k, np.nan) if p < 0 else np.where(np.arange(k) == p, 0.9, 0.1 / (k - 1)) for p in predictions]
    return Scores(ids or [f"clip{i}" for i in range(len(labels))], rows, labels, classes)


def arguments(labels=(0, 0, 1, 1, 2, 2), spatial=(0, 1, 1, 1, 0, -1), temporal=(0, 0, 0, 1, 2, -1), **changes) -> dict:
    """Average: clips 0 and 3 agree and are right; 1, 2, 4 disagree, so the lower class index of the two wins."""
    classes, ids = changes.pop("classes", ("x", "y", "z")), changes.pop("ids", None)
    said = {"spatial": spatial, "temporal": temporal}
    streams = {name: certain(predictions, labels, classes, ids=ids) for name, predictions in said.items()}
    fused = {"average": average(*streams.values()), "weighted": streams["temporal"], "svm": streams["spatial"]}
    fusion = {"weighted": {"weight": 0.65}, "svm": {"c": 1.0, "coefficients": [[0.5, 0.25]], "absent": []}}
    values = {
        "dataset": "toy",
        "split": "1",
        "streams": streams,
        "fused": fused,
        "fusion": fusion,
        "curves": {"spatial": CURVE, "temporal": CURVE},
        "failed": [],
        "odd": {"clip3": "68 of 444 promised frames decode"},
        "settings": {"flow": {"method": "tvl1"}, "temporal": {"seed": 7, "stack": {"length": 10}}},
        "identity": {"flow": {"version": 3, "method": "tvl1"}},
        "stages": [{"stage": "flow", "digest": "1f3a9c2e04b7"}],
        "counts": {"test": {"clips": 6, "groups": 2}},
    }
    return {**values, **changes}


def write(folder, *, drawn=False, **given) -> dict:
    """Write a report; files of its figures, which take most of the time, are empty unless they are to be `drawn`."""
    of_background = {name: given.pop(name) for name in Background.__dataclass_fields__ if name in given}
    save = figures.save if drawn else lambda figure, path: path.touch()
    with mock.patch.object(figures, "save", save):
        return report.write(folder, Background(**of_background), **given)


def grouped(*, clips=20, groups=5, wrong=1) -> dict:
    """Arguments of a report on groups of clips, the first of which are wrong in both streams."""
    labels = np.arange(clips) % 2
    said = np.where(np.arange(clips) < wrong, 1 - labels, labels)
    table = certain(said, labels, ("x", "y"))
    names = tuple(f"person{row % groups}" for row in range(clips))
    table = Scores(table.video_ids, table.probabilities, labels, table.classes, groups=names)
    tables = {"streams": {"spatial": table, "temporal": table}, "fused": {"average": table, "weighted": table}}
    return arguments(**tables, fusion={"weighted": {"weight": 0.5}})
