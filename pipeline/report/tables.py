"""A table of the paper beside ours: `table.json` for programs, `table.md` to paste, `table.html` to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report import metrics
from pipeline.report.paper import MEAN_OVER_SPLITS, SETS, TEST_CLIPS, Row, Table
from pipeline.report.summary import cell, pool
from pipeline.report.uncertainty import BCA, Bootstrap, interval_text
from pipeline.scores import Scores
from pipeline.system import files
from pipeline.system.packages import versions


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """The scores of a row for one split and seed on its test part."""

    split: str
    seed: int | str
    scores: Scores
    made: str = ""
    """Path of the scores file."""
    never_answers: Sequence[str] = ()
    """Classes that the row's fusion cannot answer, as they have no validation clip."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """A row and its result: its trials, or why there are none."""

    row: Row
    trials: Sequence[Trial] = ()
    reason: str = ""
    """Why the row was not run or failed; "" if all trials are there."""
    failed: bool = False
    changes: Mapping[str, str] = field(default_factory=dict)
    """The settings that the row changed."""
    setup: str = ""
    """What distinguishes its trainings from those of other rows, in words."""

    @property
    def state(self) -> str:
        """ "measured", "failed", "published" (nothing of ours to run) or "not run"."""
        if self.trials and not self.reason:
            return "measured"
        return "failed" if self.failed else "not run" if self.row.score else "published"


def write(
    folder: str | Path,
    *,
    table: Table,
    dataset: str,
    results: Sequence[Result],
    on: str = "",
    pooled: bool = False,
    setup: Mapping[str, str] | None = None,
    **attrs: str,
) -> dict[str, Any]:
    """Write `table.html`, `table.md` and, last, `table.json` into folder; each file is whole or absent.

    Args:
        folder: created if it does not exist.
        table, dataset: the table that is shown, and the name of our dataset.
        results: one per row, in the table's order.
        on: which of the paper's datasets this is, as `paper.measured_on` says; "" for another.
        pooled: whether clips of all splits count alike (every group left out in turn), instead of every split alike.
        setup: the settings that all rows have in common, name -> text.
        attrs: recorded in `table.json`.

    Returns:
        What is in `table.json`; accuracies are shares, 0..1.
    """
    from pipeline.report import page  # imports matplotlib and jinja2, which the numbers alone do not need

    folder, numbers = Path(folder), {**collect(table, dataset, results, on=on, pooled=pooled, setup=setup), **attrs}
    files.write_text(folder / "table.html", page.render_table(numbers))
    files.write_text(folder / "table.md", markdown(numbers))
    files.write_json(folder / "table.json", numbers)
    return numbers


def collect(
    table: Table,
    dataset: str,
    results: Sequence[Result],
    *,
    on: str = "",
    pooled: bool = False,
    setup: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of `table.json`; arguments as `write`'s.

    A seed's accuracy is the mean over its splits, or that of all their clips if they are pooled; `top1` is the mean
    over seeds, `top1_lowest` and `top1_highest` are those of single seeds. The interval resamples groups of the clips
    of all splits and seeds. `difference` is our top-1 minus the paper's, if both are on the same clips.
    """
    rows = [_row(table, result, on, pooled) for result in results]
    measured = [row for row in rows if row["state"] == "measured"]
    trials = [trial for result in results for trial in result.trials]
    return {
        "table": table.name,
        "title": table.title,
        "dataset": dataset,
        "sets": {name: SETS[name] for name in SETS if any(name in row["paper"] for row in rows)},
        "compared_with": SETS[on] if any(row["difference"] is not None for row in measured) else "",
        "splits": list(dict.fromkeys(trial.split for trial in trials)),
        "seeds": list(dict.fromkeys(trial.seed for trial in trials)),
        # the two streams may have seeds of their own, and each row still be a single training
        "several_seeds": any(len({trial["seed"] for trial in row["trials"]}) > 1 for row in rows),
        "accuracy": "of the clips of all splits" if pooled else MEAN_OVER_SPLITS,
        "intervals": measured[0]["interval"] | {"top1": None, "method": BCA} if measured else None,
        "setup": dict(setup or {}),
        "note": table.note,
        "no_difference": list(dict.fromkeys(row["no_difference"] for row in measured if row["no_difference"])),
        "rows": rows,
        "versions": versions(),
    }


def _row(table: Table, result: Result, on: str, pooled: bool) -> dict[str, Any]:
    row = result.row
    found = {
        "key": row.key,
        "words": row.words,
        "score": row.score,
        "changes": dict(result.changes),
        "setup": "; ".join(text for text in (result.setup, _never_answered_note(result.trials)) if text),
        "state": result.state,
        "reason": result.reason,
        "paper": {name: round(figure / 100, 4) for name, figure in row.paper.items()},
        **dict.fromkeys(("top1", "top1_lowest", "top1_highest", "mean_class", "interval", "clips", "difference")),
        "no_difference": "",
        "trials": [_trial(trial) for trial in result.trials],
    }
    if result.state != "measured":
        return found
    seeds = [[t for t in result.trials if t.seed == s] for s in dict.fromkeys(t.seed for t in result.trials)]
    top1 = [_accuracy(of, Scores.top1, pooled) for of in seeds]
    bootstrap = _pool(result.trials)
    uncertain = bootstrap.top1("row")
    why = _not_comparable(table, result, on)
    return found | {
        "top1": float(np.mean(top1)),
        "top1_lowest": min(top1),
        "top1_highest": max(top1),
        "mean_class": float(np.mean([_accuracy(of, Scores.mean_class_accuracy, pooled) for of in seeds])),
        "interval": {"top1": list(uncertain.interval), **bootstrap.as_dict(), "method": uncertain.method},
        "clips": len(set(bootstrap.clips)),
        "difference": None if why else float(np.mean(top1)) - found["paper"][on],
        "no_difference": why,
    }


def _never_answered_note(trials: Sequence[Trial]) -> str:
    most = max((len(trial.never_answers) for trial in trials), default=0)
    clips = sum(metrics.clips_of(trial.never_answers, trial.scores) for trial in trials)
    return f"chose among fewer classes: up to {metrics.never_answered_text(most, clips)}" if most else ""


def _trial(trial: Trial) -> dict[str, Any]:
    table = trial.scores
    return {
        "split": trial.split,
        "seed": trial.seed,
        **metrics.accuracies(table),
        "clips": len(table),
        "failed": len(table.failed),
        "made": trial.made,
    }


def _accuracy(trials: Sequence[Trial], of, pooled: bool) -> float:
    """The accuracy of one seed: over the clips of all splits, or the mean over splits."""
    if pooled:
        return of(_pool(trials).tables["row"])
    return float(np.mean([of(trial.scores) for trial in trials]))


def _pool(trials: Sequence[Trial]) -> Bootstrap:
    return pool([{"row": trial.scores} for trial in trials])


def _not_comparable(table: Table, result: Result, on: str) -> str:
    """Why our accuracy and the paper's are on different clips; "" if they are on the same."""
    if on not in result.row.paper:
        return "another dataset than the paper's"
    splits = list(dict.fromkeys(trial.split for trial in result.trials))
    wanted = sorted(TEST_CLIPS[on]) if table.split == "all" else [table.split]
    if sorted(splits) != wanted:
        return f"split {', '.join(splits)}; the paper's figures are of split {', '.join(wanted)}"
    for trial in result.trials:
        clips, wanted = len(trial.scores), TEST_CLIPS[on][trial.split]
        if clips != wanted:
            return f"split {trial.split} has {clips} test clips; that of {SETS[on]} has {wanted}"
    return ""


def markdown(numbers: Mapping[str, Any]) -> str:
    """The table as Markdown, in per cent; a row that has no figure says why."""
    several = numbers["several_seeds"]
    heading = ["setting", *(f"paper, {name}" for name in numbers["sets"].values()), "ours"]
    heading += [*(["lowest to highest"] if several else []), "95 % interval", "mean class", "clips", "difference", ""]
    lines = [heading, ["---", *["---:"] * (len(heading) - 2), "---"]]
    for row in numbers["rows"]:
        cells = [cell(row["words"])]
        cells += [f"{100 * row['paper'][name]:.1f}" if name in row["paper"] else "-" for name in numbers["sets"]]
        cells += _figures(row, several)
        why = f"{row['state']}: {row['reason']}"
        remark = {"measured": row["setup"], "published": row["reason"]}.get(row["state"], why)
        lines.append([*cells, cell(remark)])
    title = f"Table {numbers['table']}. {numbers['title']}: {cell(numbers['dataset'])}"
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{title}\n\n{body}\n\n{note(numbers)}\n"


def _figures(row: Mapping[str, Any], several: bool) -> list[str]:
    if row["state"] != "measured":
        return [""] * (6 if several else 5)
    spread = [f"{100 * row['top1_lowest']:.1f} to {100 * row['top1_highest']:.1f}"] if several else []
    interval = "{:.1f} to {:.1f}".format(*(100 * end for end in row["interval"]["top1"]))
    difference = "" if row["difference"] is None else f"{100 * row['difference']:+.1f}"
    mean_class = f"{100 * row['mean_class']:.1f}"
    return [f"{100 * row['top1']:.1f}", *spread, interval, mean_class, str(row["clips"]), difference]


def note(numbers: Mapping[str, Any]) -> str:
    """One paragraph of Markdown that explains the figures."""
    splits, seeds, how = numbers["splits"], numbers["seeds"], numbers["intervals"]
    if how is None:
        return "No row was measured."
    of = f"split {splits[0]}" if len(splits) == 1 else f"{numbers['accuracy']} {', '.join(splits)}"
    if len(splits) > 1 and numbers["accuracy"] == MEAN_OVER_SPLITS:
        of += " (the interval is that of all their clips together)"
    mean = "mean of " if numbers["several_seeds"] else ""
    of += f"; {mean}seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    if len(seeds) > 1 and not numbers["several_seeds"]:
        of += ", one for each row"
    why = "; ".join(numbers["no_difference"])
    paper = f" The paper's figures are for orientation where no difference is given: {cell(why)}." if why else ""
    training = numbers["setup"].get("training", "")
    more = "".join(f" {text}" for text in (training and f"Training: {cell(training)}.", numbers["note"]) if text)
    common = "; ".join(f"{name}: {text}" for name, text in numbers["setup"].items() if name != "training")
    more += f" All rows: {cell(common)}." if common else ""
    return f"Top-1 in per cent, {cell(of)}; a failed clip counts as wrong. Interval: {interval_text(how)}.{paper}{more}"
