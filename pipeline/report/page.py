"""The HTML pages. All text is escaped; a page loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.report import figures, metrics
from pipeline.report.metrics import Background
from pipeline.report.paper import MEAN_OVER_SPLITS
from pipeline.report.uncertainty import FEWEST, WILSON
from pipeline.scores import Scores
from pipeline.specs import STREAMS
from pipeline.specs.base import flattened

LABELS = {
    "spatial": "Spatial stream",
    "temporal": "Temporal stream",
    "average": "Fused: average",
    "weighted": "Fused: weighted",
    "svm": "Fused: SVM",
}
_KINDS = {"top1": "top-1", "mean_class": "mean class"}  # of accuracy
ROWS_SHOWN = 60  # a longer list of clips is collapsed
GROUPS_SHOWN = 12  # the same of groups
_MOST_NAMES = 12  # in a sentence
FEW_CLIPS = 100  # one of fewer validation clips is more than one per cent


def render(tables: Mapping[str, Scores], numbers: Mapping, drawn: Mapping[str, Figure], background: Background) -> str:
    """The page of a report as HTML.

    Args:
        tables: as `metrics.join` gives them.
        numbers: as `metrics.collect` gives them.
        drawn: as `figures.draw` gives them.
        background: as `report.write` got it.
    """
    template, rows = _environment().get_template("page.html"), headline(tables, numbers)
    return template.render(
        numbers=numbers,
        labels=LABELS,
        headline=rows,
        by_wilson=_by_wilson(rows),
        resampled=any(row[f"{kind}_interval_method"] != WILSON for row in rows for kind in _KINDS),
        against={name: row["against_stream"] for name, row in numbers["fused"].items()},
        chance=chance(tables["average"]),
        figures={name: Markup(figures.inline(figure, name)) for name, figure in drawn.items()},
        pairs=metrics.confused_pairs(tables["average"]),
        misclassified=metrics.misclassified(tables),
        groups=sorted(numbers["per_group"].items(), key=lambda item: (item[1]["average"], item[0])),
        failures=metrics.failures(tables, background.failed),
        rows_shown=ROWS_SHOWN,
        groups_shown=GROUPS_SHOWN,
        cell_counts=figures.CELL_COUNTS,
        fusion=_fusion_rows(numbers["fusion"]),
        c_was_chosen=len(numbers["fusion"].get("svm", {}).get("choice", {}).get("right", ())) > 1,
        few_to_choose_on=_few_to_choose_on(numbers),
        settings={stage: list(flattened(values)) for stage, values in background.settings.items()},
        stage_columns=_columns(numbers["stages"]),
        count_columns=_columns(numbers["counts"].values()),
        group_names={part: _listed(names) for part, names in numbers["groups"].items()},
    )


def render_summary(numbers: Mapping[str, Any]) -> str:
    """The page over several splits and seeds, as HTML; `numbers` as `summary.collect` gives them."""
    failed = sum(run["num_failed"] for run in numbers["runs"])
    pooled = numbers["pooled"]
    by_wilson = [LABELS.get(name, name) for name in pooled if pooled[name]["top1_interval_method"] == WILSON]
    shown = {"numbers": numbers, "labels": LABELS, "failed": failed}
    shown |= {"by_wilson": by_wilson, "resampled": len(by_wilson) < len(pooled)}
    return _environment().get_template("summary.html").render(shown)


def render_table(numbers: Mapping[str, Any]) -> str:
    """The page that compares a table of the paper with ours, as HTML; `numbers` as `tables.collect` gives them."""
    measured = [row for row in numbers["rows"] if row["state"] == "measured"]
    by_wilson = [row["words"] for row in measured if row["interval"]["method"] == WILSON]
    shown = {"numbers": numbers, "MEAN_OVER_SPLITS": MEAN_OVER_SPLITS}
    shown |= {"by_wilson": by_wilson, "resampled": len(by_wilson) < len(measured)}
    return _environment().get_template("table.html").render(shown)


def headline(tables: Mapping[str, Scores], numbers: Mapping) -> list[dict[str, Any]]:
    """One row per table: name, whether it is a stream, note, and its `metrics.summary`."""
    notes = {name: _note(name, numbers["fusion"].get(name, {})) for name in tables}
    return [
        {
            "name": name,
            "stream": name in STREAMS,
            "note": notes[name],
            **(numbers[name] if name in STREAMS else numbers["fused"][name]),
        }
        for name in tables
    ]


def _by_wilson(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which rows of the headline have an interval of Wilson's, not a bootstrap's, and for which accuracy."""
    found = []
    for row in rows:
        of = [words for kind, words in _KINDS.items() if row[f"{kind}_interval_method"] == WILSON]
        if of:
            found.append(LABELS.get(row["name"], row["name"]) + ("" if len(of) == len(_KINDS) else f" ({of[0]})"))
    return found


def _few_to_choose_on(numbers: Mapping) -> bool:
    """Whether the validation part has too few groups to resample, or fewer than `FEW_CLIPS` clips."""
    val = numbers["counts"].get("val")
    return val is not None and (val["groups"] < FEWEST or val["clips"] < FEW_CLIPS)


def verdict(against: Mapping[str, Any]) -> str:
    """A comparison in plain words. A difference is clear only if its interval and McNemar's test, if it applies, agree.

    Without an interval (fewer than five groups tell the tables apart) there is no clear difference, however small p is:
    the test assumes independent clips, and those of one group are not.
    """
    interval, p = against["difference_interval"], against["mcnemar_p"]
    if not against["only_fusion"] + against["only_stream"]:
        return "right on the same clips"
    if interval is None or interval[0] <= 0 <= interval[1] or (p or 0) >= 0.05:
        return "no clear difference"
    if against["difference"] < 0:
        return "the stream is better"
    return "fusion is better" + ", choosing among fewer classes" * bool(against["never_answers"])


def chance(table: Scores) -> dict[str, float]:
    """Accuracies of a constant prediction: the largest class's share of the clips, and 1 / classes that have clips."""
    clips = table.per_class()[1]
    return {"top1": float(clips.max() / clips.sum()), "mean_class": float(1 / (clips > 0).sum())}


def _note(name: str, parameters: Mapping[str, Any]) -> str:
    if name == "weighted" and "weight" in parameters:
        return f"temporal weight {parameters['weight']:g}"
    if name == "svm" and "c" in parameters:
        unknown = len(metrics.never_answered(name, {name: parameters}))
        never = f"; never answers {unknown} class{'es' * (unknown > 1)}" if unknown else ""
        return f"linear, C = {parameters['c']:g}{never}"
    return {"spatial": "single frames", "temporal": "optical flow", "average": "mean of both"}.get(name, "")


def _fusion_rows(parameters: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Fusion -> (parameter, value) pairs, without lists, which are in metrics.json, except an SVM's absent classes."""
    return {
        name: [(path, value) for path, value in flattened(values) if path == "absent" or not isinstance(value, list)]
        for name, values in parameters.items()
    }


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _columns(rows) -> list[str]:
    """Keys of all rows, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: metrics.xml_text(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    environment.filters["points"] = lambda share: f"{100 * share:+.1f}".replace("-", "\u2212")
    environment.filters["p_value"] = _p_value
    environment.filters["verdict"] = verdict
    environment.filters["address"] = lambda path: "./" + quote(metrics.xml_text(path))  # "./": never a scheme
    environment.filters["plain"] = _plain
    return environment


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def _plain(value: Any) -> str:
    """A setting as a person writes it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e5 else str(value)
