"""One table over splits and seeds: `summary.json` for programs, `summary.md` to paste, `summary.html` to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report import metrics
from pipeline.report.uncertainty import Bootstrap, interval_text
from pipeline.scores import Scores
from pipeline.specs import STREAMS
from pipeline.system import files
from pipeline.system.packages import versions


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """The results of one run of the chain on its test part."""

    split: str
    seed: int | str
    streams: Mapping[str, Scores]
    """"spatial" and "temporal" -> table."""
    fused: Mapping[str, Scores]
    """Fusion -> table; "average" must be there."""
    fusion: Mapping[str, Any]
    """Parameters of each fusion, as `fusion.fuse` gives them."""
    page: str = ""
    """Address of the run's own report, relative to the summary; "" for none."""


def write(folder: str | Path, *, dataset: str, runs: Sequence[Run], **attrs: str) -> dict[str, Any]:
    """Write `summary.html`, `summary.md` and, last, `summary.json` into folder; each file is whole or absent.

    Args:
        folder: created if it does not exist.
        dataset: name, for the heading.
        runs: of the same dataset, no two of the same split and seed.
        attrs: recorded in `summary.json`.

    Returns:
        What is in `summary.json`; accuracies are shares, 0..1.

    Raises:
        ValueError: as `collect`.
    """
    from pipeline.report import page  # imports matplotlib and jinja2, which the numbers alone do not need

    folder, numbers = Path(folder), {**collect(dataset, runs), **attrs}
    files.write_text(folder / "summary.html", page.render_summary(numbers))
    files.write_text(folder / "summary.md", markdown(numbers))
    files.write_json(folder / "summary.json", numbers)
    return numbers


def collect(dataset: str, runs: Sequence[Run]) -> dict[str, Any]:
    """The content of `summary.json`.

    `runs` has one row per run. `mean` has, for each table, the mean over runs and two standard deviations (n - 1 in the
    denominator; None for a single value): between splits, of the means over seeds, and between seeds, of the means over
    splits. `pooled` counts every clip as often as it was tested; its intervals resample groups, so a clip that was
    tested with three seeds does not count as three independent clips. McNemar's test is None unless each clip was
    tested once.

    Raises:
        ValueError: there is no run, two runs have the same split and seed, classes or fusions differ, or a run lacks a
            stream or the average.
    """
    _check(runs)
    tables = [metrics.join(run.streams, run.fused) for run in runs]
    bootstrap = pool(tables)
    pooled, repeated = bootstrap.tables, len(bootstrap.clips) - len(set(bootstrap.clips))
    return {
        "dataset": dataset,
        "splits": list(dict.fromkeys(run.split for run in runs)),
        "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "tables": list(pooled),
        "runs": [_row(run, of) for run, of in zip(runs, tables, strict=True)],
        "mean": {name: _mean(runs, [of[name] for of in tables]) for name in pooled},
        "pooled": {name: metrics.summary(name, bootstrap) for name in pooled},
        "against_stream": {n: _comparison(n, bootstrap, repeated, runs) for n in pooled if n not in STREAMS},
        "clips_tested_more_than_once": repeated,
        "intervals": bootstrap.as_dict(),
        "note": _never_answered_note(runs),
        "versions": versions(),
    }


def markdown(numbers: Mapping[str, Any]) -> str:
    """As Markdown: top-1 and correct clips of each run; mean and deviation; pooled, with interval and mean class."""
    names, several = numbers["tables"], len(numbers["seeds"]) > 1
    first = ["split", *(["seed"] if several else [])]
    rows = [
        [cell(run["split"]), *([str(run["seed"])] if several else []), str(run["num_test"])]
        + [f"{run[name]['top1']:.1%} ({run[name]['correct']})" for name in names]
        for run in numbers["runs"]
    ]
    blank = [""] * (len(first) - 1)
    rows.append(["mean", *blank, "", *(f"{numbers['mean'][name]['top1']:.1%}" for name in names)])
    for kind in ("splits", "seeds"):
        if len(numbers[kind]) > 1:
            cells = [f"{numbers['mean'][name][f'top1_std_{kind}']:.1%}" for name in names]
            rows.append([f"standard deviation between {kind}", *blank, "", *cells])
    pooled = [numbers["pooled"][name] for name in names]
    rows.append(
        ["pooled", *blank, str(pooled[0]["total"]), *(f"{row['top1']:.1%} ({row['correct']})" for row in pooled)]
    )
    rows.append(["95 % interval", *blank, "", *("{:.1%} to {:.1%}".format(*row["top1_interval"]) for row in pooled)])
    rows.append(["mean class accuracy", *blank, "", *(f"{row['mean_class']:.1%}" for row in pooled)])
    heading = [*first, "clips", *names]
    lines = [" | ".join(heading), " | ".join(["---"] * len(first) + ["---:"] * (len(heading) - len(first)))]
    lines += [" | ".join(row) for row in rows]
    note = f"Top-1 and right clips. Interval: {interval_text(numbers['intervals'])}. {numbers['note']}".rstrip()
    return "\n".join([f"{cell(numbers['dataset'])}\n", *(f"| {line} |" for line in lines), f"\n{note}\n"])


def _never_answered_note(runs: Sequence[Run]) -> str:
    """A sentence on runs whose SVM cannot answer all classes; "" if there is none."""
    never = [(metrics.never_answered("svm", run.fusion), run.fused["average"]) for run in runs]
    never = [(classes, table) for classes, table in never if classes]
    if not never:
        return ""
    most, clips = max(len(classes) for classes, _ in never), sum(metrics.clips_of(*of) for of in never)
    text = metrics.never_answered_text(most, clips)
    return f"In {len(never)} of {len(runs)} runs the svm chose among fewer classes: up to {text}."


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise ValueError("there is no run to summarize")
    named = [(run.split, run.seed) for run in runs]
    if twice := [name for name in named if named.count(name) > 1]:
        raise ValueError(f"split {twice[0][0]!r} with seed {twice[0][1]} appears twice")
    first = runs[0]
    for run in runs:
        classes = {table.classes for table in (*run.streams.values(), *run.fused.values())}
        if classes != {first.streams["spatial"].classes} or list(run.fused) != list(first.fused):
            raise ValueError(f"split {run.split!r} has other classes or fusions than split {first.split!r}")


def pool(tables: Sequence[Mapping[str, Scores]]) -> Bootstrap:
    """Pool the clips of all runs into one table per name; a clip that several runs tested has one row for each.

    Args:
        tables: for each run, name -> table; the tables of a run have the same clips in the same order.
    """
    firsts = [next(iter(of.values())) for of in tables]
    ids = [video_id for first in firsts for video_id in first.video_ids]
    groups = [name for first in firsts for name in (first.groups or first.video_ids)]
    rows = [f"{k}/{video_id}" for k, first in enumerate(firsts) for video_id in first.video_ids]
    pooled = {
        name: Scores(
            rows,
            np.concatenate([of[name].probabilities for of in tables]),
            np.concatenate([of[name].labels for of in tables]),
            tables[0][name].classes,
        )
        for name in tables[0]
    }
    return Bootstrap(pooled, tuple(groups), clips=tuple(ids))


def _row(run: Run, tables: Mapping[str, Scores]) -> dict[str, Any]:
    average = tables["average"]
    return {
        "split": run.split,
        "seed": run.seed,
        "num_test": len(average),
        "num_failed": len(average.failed),
        "weight": run.fusion.get("weighted", {}).get("weight"),
        "svm_c": run.fusion.get("svm", {}).get("c"),
        "page": run.page,
        **{name: metrics.accuracies(table) for name, table in tables.items()},
    }


def _mean(runs: Sequence[Run], tables: Sequence[Scores]) -> dict[str, float | None]:
    """Mean over runs of both accuracies, and their standard deviations between splits and between seeds."""
    found: dict[str, float | None] = {}
    for name, values in (
        ("top1", [table.top1() for table in tables]),
        ("mean_class", [table.mean_class_accuracy() for table in tables]),
    ):
        found[name] = float(np.mean(values))
        for kind, keys in (("splits", [run.split for run in runs]), ("seeds", [run.seed for run in runs])):
            means = [np.mean([v for v, k in zip(values, keys, strict=True) if k == key]) for key in dict.fromkeys(keys)]
            found[f"{name}_std_{kind}"] = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return found


def _comparison(name: str, bootstrap: Bootstrap, repeated: int, runs: Sequence[Run]) -> dict[str, Any]:
    found = metrics.comparison(name, bootstrap, max(len(metrics.never_answered(name, run.fusion)) for run in runs))
    return {**found, "mcnemar_p": None} if repeated else found


def cell(text: str) -> str:
    """A name as a cell of a Markdown table, with all markup escaped."""
    escaped = "".join(f"\\{c}" if c in "\\|`*_{}[]<>#!&~" else c for c in metrics.xml_text(text))
    return " ".join(escaped.split())
