"""Two runs side by side, on the same clips: which settings differ, and whether their accuracies do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts.differences import differing, made_from, settings_of
from pipeline.report.uncertainty import Bootstrap, discordant, mcnemar
from pipeline.scores import Scores
from pipeline.specs import FUSIONS, STREAMS
from pipeline.system.console import aligned
from pipeline.system.errors import UserError

_ONE = "top-1"  # how a single table is called


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Compare the scores of two artifacts, clip by clip.

    Args:
        first, second: folders of reports or of fusions, whose streams and fusions are compared; or two scores files or
            folders of one.

    Returns:
        Plain JSON values. `settings`: those that differ, name -> both values as text (None: not read, or not known);
        `tables`: for each table that both have `first` and `second` (top-1, 0 to 1), `difference` (second minus first)
        with its 95 % `interval` (None if fewer than five groups tell the two apart), `only_first` and `only_second`
        (clips that only one of the two gets right), `mcnemar_p`, and `clips`; `note`: why clips were resampled, if they
        were.

    Raises:
        FileNotFoundError: a path does not exist.
        UserError: there is nothing to compare, or the tables are of different clips or classes.
    """
    paths = first.resolve(), second.resolve()  # report/latest is a link
    tables = [_tables(path) for path in paths]
    shared = [name for name in tables[0] if name in tables[1]]
    if not shared:
        has = [f"{path} has {', '.join(table)}" for path, table in zip(paths, tables, strict=True)]
        raise UserError(f"{'; '.join(has)}: no table of both; give two reports, two fusions or two scores files")
    pairs = {name: tables[0][name].join(tables[1][name]) for name in shared}
    if not pairs[shared[0]][0].labeled.any():
        raise UserError(f"{first} holds no clip with a label; there is nothing to compare")
    return {
        "first": str(paths[0]),
        "second": str(paths[1]),
        "settings": differing(*(settings_of(_artifact(path)) for path in paths)),
        "tables": {name: _row(*pair) for name, pair in pairs.items()},
        "note": Bootstrap(tables[0], pairs[shared[0]][0].groups).note,
    }


def _row(a: Scores, b: Scores) -> dict[str, Any]:
    interval = Bootstrap({"first": a, "second": b}, a.groups).difference("second", "first")
    only_first, only_second = discordant(a, b)
    return {
        "clips": len(a),
        "first": a.top1(),
        "second": b.top1(),
        "difference": b.top1() - a.top1(),
        "interval": None if interval is None else list(interval),
        "only_first": only_first,
        "only_second": only_second,
        "mcnemar_p": mcnemar(only_first, only_second),
    }


def text(found: Mapping[str, Any]) -> str:
    """What `compare` found, as lines of text."""
    lines = [f"first:  {found['first']}", f"second: {found['second']}"]
    lines += [f"  {name}: {first} -> {second}" for name, (first, second) in found["settings"].items()]
    lines += [] if found["settings"] else ["no setting is known to differ"]
    head = "", "clips", "first", "second", "difference", "95 % interval", "only first", "only second", "McNemar's p"
    lines += aligned([head, *([name, *_cells(row)] for name, row in found["tables"].items())])
    if any(row["interval"] is None for row in found["tables"].values()):
        lines.append("no interval: fewer than five groups (or clips, if there are no groups) tell the two apart")
    return "\n".join([*lines, *([f"intervals: {found['note']}"] if found["note"] else [])])


def _cells(row: Mapping[str, Any]) -> list[str]:
    interval = "" if row["interval"] is None else "{:+.1%} to {:+.1%}".format(*row["interval"])
    counts = str(row["only_first"]), str(row["only_second"])
    shares = f"{row['first']:.1%}", f"{row['second']:.1%}", f"{row['difference']:+.1%}"
    return [str(row["clips"]), *shares, interval, *counts, f"{row['mcnemar_p']:.2g}"]


def _tables(path: Path) -> dict[str, Scores]:
    """Every table of test scores of a report or a fusion, by the name of the stream or fusion; or the one of a file."""
    if path.is_file() or (path / "scores.h5").is_file():
        return {_ONE: Scores.read(path)}
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    fusions = [path] if path.parent.name == "fuse" else _of_stage(path, "fuse")
    if len(fusions) != 1:
        raise UserError(f"{path} is not the folder of a report, of a fusion or of scores")
    parts = {f"{stream}-test-": stream for stream in STREAMS}
    streams = {
        parts[start]: Scores.read(folder)
        for folder in _of_stage(fusions[0], "score_stream")
        for start in parts
        if folder.name.startswith(start)
    }
    fused = {name: Scores.read(fusions[0] / name) for name in FUSIONS if (fusions[0] / name / "scores.h5").is_file()}
    return {**{stream: streams[stream] for stream in STREAMS if stream in streams}, **fused}


def _of_stage(artifact: Path, stage: str) -> list[Path]:
    return [other for other in made_from(artifact) if other.parent.name == stage]


def _artifact(path: Path) -> Path:
    """Folder of the artifact that a file of scores lies in, or the path itself."""
    folder = path.parent if path.is_file() else path
    return folder.parent if folder.name in FUSIONS else folder
