"""Score tables -> plain numbers: the content of `metrics.json`, and the lists of clips on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.report import uncertainty
from pipeline.report.uncertainty import Bootstrap
from pipeline.scores import Scores
from pipeline.specs import FUSIONS, STREAMS
from pipeline.specs.base import flattened
from pipeline.system.errors import UserError
from pipeline.system.packages import versions


@dataclass(frozen=True, kw_only=True)
class Background:
    """What the stages before the report leave, apart from the scores."""

    fusion: Mapping[str, Any]
    """Parameters of each fusion, as `fusion.fuse` gives them. Lists of lists (the SVM's coefficients) are left out of
    the page and of the metrics."""
    curves: Mapping[str, Mapping[str, Any]]
    """Stream -> its training curve, as `curve.json` has it; one may be absent."""
    failed: Sequence[Mapping[str, str]]
    """`id`, `stage` and `reason` of every failed clip, whatever its part."""
    odd: Mapping[str, str]
    """Clip id -> what is odd about a clip that is still used (fewer frames than its header promises)."""
    settings: Mapping[str, Mapping[str, Any]]
    """Stage -> its settings, as `Spec.as_dict` gives them."""
    identity: Mapping[str, Mapping[str, Any]]
    """Of these stages, the settings that can change their artifacts, as `Spec.identity_with_paths` gives them."""
    stages: Sequence[Mapping[str, Any]]
    """One row per stage, with `stage`, `digest` and any further columns."""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Part -> numbers of `clips` and `groups`, as `Catalog.counts` gives them."""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Part -> names of its groups, as `Catalog.groups` gives them."""
    absent: Sequence[str] = ()
    """Listed videos that were not there, as `Catalog.absent` has them: no accuracy covers them."""
    command: str = ""
    """The command that made the report."""


def headline_text(numbers: Mapping[str, Any]) -> str:
    """The headline of `metrics.json` as lines of text: top-1 with its interval and mean class accuracy, in per cent."""
    fused = numbers["fused"]
    rows = {name: numbers[name] for name in STREAMS}
    rows |= {f"fused, {name}": fused[name] for name in FUSIONS if name in fused}
    heading = f"{numbers['dataset']}, split {numbers['split']}: {numbers['num_test']} test clips"
    if absent := numbers["absent"]:
        heading += f"; {len(absent)} listed videos, of any part, are absent and in no figure"
    lines = [f"{'':16} {'top-1':>7} {'95 % interval':>16} {'mean class':>11}"]
    for name, row in rows.items():
        interval = "{:.1%} to {:.1%}".format(*row["top1_interval"])
        lines.append(f"{name:16} {row['top1']:7.1%} {interval:>16} {row['mean_class']:11.1%}")
    if unknown := never_answered("svm", numbers["fusion"]):
        lost = sum(numbers["per_class"][name]["clips"] for name in unknown)
        text = never_answered_text(len(unknown), lost)
        lines.append(f"the svm chose among {len(numbers['classes']) - len(unknown)} classes: {text}")
    if note := numbers["intervals"]["note"]:
        lines.append(f"intervals: {note}")
    return "\n".join([heading, *lines])


def join(streams: Mapping[str, Scores], fused: Mapping[str, Scores]) -> dict[str, Scores]:
    """All tables by name, streams first, with their clips in the order of the spatial stream's clips.

    Raises:
        ValueError: if a stream or the average is absent, tables do not join, or there is no clip.
    """
    absent = [name for name in (*STREAMS, "average") if name not in {**streams, **fused}]
    if absent:
        raise ValueError(
            f"the report needs the scores of {', '.join(absent)}; it got {', '.join([*streams, *fused]) or 'none'}"
        )
    first = streams["spatial"]
    if not len(first):
        raise UserError("the test part has no clips; there is nothing to report")
    ordered = {name: streams[name] for name in STREAMS} | dict(fused)
    return {name: first.join(table)[1] for name, table in ordered.items()}


def collect(tables: Mapping[str, Scores], background: Background, *, dataset: str, split: str) -> dict:
    """The content of `metrics.json`: plain JSON values, accuracies as shares 0..1. Arguments as `report.write`'s."""
    average = tables["average"]
    bootstrap = Bootstrap(tables, average.groups)
    fusions = [name for name in tables if name not in STREAMS]
    return {
        "dataset": dataset,
        "split": split,
        "num_test": len(average),
        "num_failed": len(average.failed),
        "num_failed_all_parts": len({row["id"] for row in background.failed} | set(average.failed)),
        "absent": list(background.absent),
        "odd": dict(background.odd),
        **{name: summary(name, bootstrap) for name in STREAMS},
        "fused": {
            n: {
                **summary(n, bootstrap),
                "against_stream": comparison(n, bootstrap, len(never_answered(n, background.fusion))),
            }
            for n in fusions
        },
        "intervals": bootstrap.as_dict(),
        "classes": list(average.classes),
        "per_class": per_class(tables),
        "per_group": per_group(tables),
        "agreement": agreement(tables),
        "fusion": _without_matrices(background.fusion),
        "training": {name: _training_facts(curve) for name, curve in background.curves.items()},
        "settings": {stage: dict(values) for stage, values in background.identity.items()},
        "seeds": {path: value for path, value in flattened(background.settings) if path.endswith("seed")},
        "counts": {part: dict(row) for part, row in background.counts.items()},
        "groups": {part: list(names) for part, names in background.groups.items()},
        "stages": [dict(row) for row in background.stages],
        "versions": versions(),
        "command": background.command,
    }


def summary(name: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """Accuracies of one table with their 95 % intervals."""
    table, top1, mean_class = bootstrap.tables[name], bootstrap.top1(name), bootstrap.mean_class(name)
    return {
        **accuracies(table),
        "total": len(table),
        "top1_interval": list(top1.interval),
        "mean_class_interval": list(mean_class.interval),
        "top1_interval_method": top1.method,
        "mean_class_interval_method": mean_class.method,
    }


def accuracies(table: Scores) -> dict[str, float]:
    """Both accuracies of a table, and its number of correct clips."""
    return {"top1": table.top1(), "mean_class": table.mean_class_accuracy(), "correct": int(table.correct().sum())}


def never_answered(name: str, fusion: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a fusion cannot answer, as they have no validation clip; `fusion` as `Background.fusion`."""
    return tuple(fusion.get(name, {}).get("absent", ()))


def clips_of(classes: Sequence[str], table: Scores) -> int:
    """How many clips of a table are of these classes."""
    return int(sum(table.per_class()[1][table.classes.index(name)] for name in classes))


def never_answered_text(classes: int, clips: int) -> str:
    """What it means for an accuracy that a fusion cannot answer some classes, which have this many test clips."""
    which = f"{classes} {'has' if classes == 1 else 'have'} no validation clip and cannot be answered"
    if clips:
        return f"{which}, so that {clips} test clips count as wrong; on the others the task is easier"
    return f"{which}; without test clips of these either, the task is easier than that of the others"


def comparison(name: str, bootstrap: Bootstrap, never: int) -> dict[str, Any]:
    """Compare a fusion with the better stream on the same clips: the difference in top-1, and McNemar's test.

    `never` is the number of classes that the fusion cannot answer: see `never_answered_text`.
    """
    tables = bootstrap.tables
    stream = uncertainty.better(STREAMS, tables)
    only_fusion, only_stream = uncertainty.discordant(tables[name], tables[stream])
    interval = bootstrap.difference(name, stream)
    return {
        "stream": stream,
        "difference": tables[name].top1() - tables[stream].top1(),
        "difference_interval": None if interval is None else list(interval),
        "only_fusion": only_fusion,
        "only_stream": only_stream,
        "mcnemar_p": uncertainty.mcnemar(only_fusion, only_stream),
        "never_answers": never,
    }


def per_class(tables: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """Class -> number of its test clips, and accuracy of each table (None for a class without test clips)."""
    right = {name: table.per_class()[0] for name, table in tables.items()}
    clips = tables["average"].per_class()[1]
    return {
        name: {"clips": int(clips[k]), **{t: float(right[t][k] / clips[k]) if clips[k] else None for t in tables}}
        for k, name in enumerate(tables["average"].classes)
    }


def per_group(tables: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """Group -> number of its test clips and accuracy of each table; {} if groups are unknown or of one clip each."""
    groups = np.array(tables["average"].groups or (), dtype=object)
    names = sorted(set(groups))
    if len(names) == len(groups):
        return {}
    right, found = {name: table.correct() for name, table in tables.items()}, {}
    for name in names:
        here = groups == name
        found[name] = {"clips": int(here.sum()), **{t: float(right[t][here].mean()) for t in tables}}
    return found


def agreement(tables: Mapping[str, Scores]) -> dict[str, dict[str, int]]:
    """How the streams complement each other: by which stream is right, all clips, and those the average gets right."""
    spatial, temporal, fused = (tables[name].correct() for name in (*STREAMS, "average"))
    cells = {
        "both": spatial & temporal,
        "only_spatial": spatial & ~temporal,
        "only_temporal": ~spatial & temporal,
        "neither": ~spatial & ~temporal,
    }
    return {name: {"clips": int(cell.sum()), "fused_right": int((cell & fused).sum())} for name, cell in cells.items()}


def confused_pairs(table: Scores, most: int = 12) -> list[dict[str, Any]]:
    """The pairs (true class, predicted class) with the most clips, largest first, at most `most` of them."""
    matrix, clips = table.confusion(), table.per_class()[1]
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:most]
    cells = [np.unravel_index(cell, matrix.shape) for cell in order]
    return [
        {
            "truth": table.classes[i],
            "predicted": table.classes[j],
            "clips": int(matrix[i, j]),
            "share": float(matrix[i, j] / clips[i]),
        }
        for i, j in cells
        if matrix[i, j]
    ]


def misclassified(tables: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Scored test clips that the average gets wrong, sorted by true class and id, with the streams' predictions."""
    average = tables["average"]
    rows = np.flatnonzero(~average.correct() & ~average.failed_rows)
    said = {name: table.predictions() for name, table in tables.items()}
    found = [
        {
            "id": average.video_ids[row],
            "truth": average.classes[average.labels[row]],
            "predicted": average.classes[said["average"][row]],
            "p_predicted": float(average.probabilities[row].max()),
            "p_truth": float(average.probabilities[row, average.labels[row]]),
            **{name: tables[name].classes[said[name][row]] for name in STREAMS},
        }
        for row in rows
    ]
    return sorted(found, key=lambda row: (row["truth"], row["id"]))


def first_reasons(stages: Mapping[str, Mapping[str, str]]) -> list[dict[str, str]]:
    """Every failed clip once, with the first stage in which it failed; the later stages cannot process it either.

    Args:
        stages: name -> clip id -> reason, in the order of the chain.

    Returns:
        `id`, `stage` and `reason` of each.
    """
    first: dict[str, dict[str, str]] = {}
    for stage, failed in stages.items():
        for video_id, reason in failed.items():
            first.setdefault(video_id, {"id": video_id, "stage": stage, "reason": reason})
    return list(first.values())


def failures(tables: Mapping[str, Scores], failed: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Every failed clip with `stage`, `reason` and whether it is a test clip; also those that no stage explains."""
    tested = set(tables["average"].video_ids)
    silent = sorted(set(tables["average"].failed) - {row["id"] for row in failed})
    unexplained = [{"id": name, "stage": "score", "reason": "no score, and no stage gave a reason"} for name in silent]
    rows = [{**row, "test": row["id"] in tested} for row in (*failed, *unexplained)]
    return sorted(rows, key=lambda row: (not row["test"], row["id"]))


def xml_text(text: Any) -> str:
    """Text that all our files can hold: control characters and undecodable bytes become U+FFFD."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(text))


def _training_facts(curve: Mapping[str, Any]) -> dict[str, Any]:
    """What the curve knows: steps, the step whose weights were kept and its validation accuracy, where and how."""
    best, how = curve["best_step"], {"device": curve["device"], "precision": curve["precision"]}
    at_best = [row["top1"] for row in curve["validation"] if row["step"] == best]
    last = curve["steps"][-1]
    return {"last_step": last, "best_step": best, "val_top1": at_best[0] if at_best else None, **how}


def _without_matrices(value: Any) -> Any:
    """Plain values without lists of lists: the SVM's 2 K^2 coefficients belong beside the fused scores, not here."""
    if not isinstance(value, Mapping):
        return value
    matrices = {name for name, v in value.items() if isinstance(v, list) and v and isinstance(v[0], list)}
    return {name: _without_matrices(v) for name, v in value.items() if name not in matrices}
