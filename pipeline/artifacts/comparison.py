"""Two runs side by side, on the same clips: which settings differ, and whether their accuracies do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts.differences import differing, made_from, settings_of
from pipeline.report.uncertainty import Bootstrap, discordant, mcnemar
from pipeline.scores import Scores
from pipeline.specs import FUSIONS, STREAMS
from pipeline.system.console import aligned
from pipeline.system.errors import UserError


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Compare the scores of two artifacts, clip by clip.

    Args:
        first, second: folders of reports or of fusions, whose streams and fusions are compared; or two scores files or
            folders of one.

    Returns:
        Plain JSON values. `settings`: those that differ, name -> both values as text (None: not read); `unknown`: the
        sections of settings of which one of the two tells nothing; `tables`: for each table that both have, the number
        of `clips` with a label, their top-1 accuracy of the `first` and the `second` (0 to 1), the `difference` (second
        minus first) with its 95 % `interval` (None if fewer than five groups tell the two apart, or if all do alike),
        `only_first` and `only_second` (clips that only one of the two gets right), `mcnemar_p`; `note`: why clips were
        resampled, not groups, if they were.

    Raises:
        FileNotFoundError: a path does not exist.
        UserError: there is nothing to compare, or the tables are of different clips or classes.
    """
    paths = _artifact(first), _artifact(second)
    tables = [_tables(path) for path in paths]
    shared = [name for name in tables[0] if name in tables[1]]
    if not shared:
        has = [f"{path} has {', '.join(table)}" for path, table in zip(paths, tables, strict=True)]
        raise UserError(f"{'; '.join(has)}: no table of both; give two reports, two fusions or two scores files")
    pairs = {name: tables[0][name].join(tables[1][name]) for name in shared}
    if not pairs[shared[0]][0].labeled.any():
        raise UserError(f"{first} holds no clip with a label; there is nothing to compare")
    paired = {name: Bootstrap({"first": a, "second": b}, a.groups or b.groups) for name, (a, b) in pairs.items()}
    settings = [settings_of(_stage_folder(path)) for path in paths]
    return {
        "first": str(paths[0]),
        "second": str(paths[1]),
        "settings": differing(*settings),
        "unknown": sorted(settings[0].keys() ^ settings[1].keys()),
        "tables": {name: _row(bootstrap) for name, bootstrap in paired.items()},
        "note": paired[shared[0]].note,
    }


def _row(paired: Bootstrap) -> dict[str, Any]:
    a, b = paired.tables["first"], paired.tables["second"]
    interval, (only_first, only_second) = paired.difference("second", "first"), discordant(a, b)
    return {
        "clips": int(a.labeled.sum()),
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
    lines += [f"one of the two does not tell its settings of {', '.join(found['unknown'])}"] if found["unknown"] else []
    head = "", "clips", "first", "second", "difference", "95 % interval", "only first", "only second", "McNemar's p"
    lines += aligned([head, *([name, *_cells(row)] for name, row in found["tables"].items())])
    intervals = [row["interval"] for row in found["tables"].values()]
    if any(intervals):
        unit = "clips" if found["note"] else "groups"
        lines.append(f"the interval draws {unit}, with classes as frequent as here; p takes clips as independent")
    if not all(intervals):
        lines.append("no interval: fewer than five groups (or clips, without groups) tell the two apart, or all alike")
    return "\n".join([*lines, *([f"intervals: {found['note']}"] if found["note"] else [])])


def _cells(row: Mapping[str, Any]) -> list[str]:
    interval = "{:+.1%} to {:+.1%}".format(*row["interval"]) if row["interval"] else ""
    counts = str(row["only_first"]), str(row["only_second"])
    shares = f"{row['first']:.1%}", f"{row['second']:.1%}", f"{row['difference']:+.1%}"
    return [str(row["clips"]), *shares, interval, *counts, f"{row['mcnemar_p']:.2g}"]


def _artifact(given: Path) -> Path:
    """The path without `latest`, which is a link, and without the name of a report's page or the like.

    Other links stay, as what an artifact was made from is named from the folder of all artifacts.
    """
    path = given.parent if given.suffix in (".json", ".html") else given
    path = path.parent / path.readlink() if path.is_symlink() else path
    return Path(os.path.normpath(path.absolute()))


def _stage_folder(path: Path) -> Path:
    """Folder of the artifact that a file of scores, or a single fusion, lies in; or the path itself."""
    folder = path.parent if path.is_file() else path
    return folder.parent if folder.name in FUSIONS else folder


def _tables(path: Path) -> dict[str, Scores]:
    """Every table of test scores of a report or a fusion, by the name of the stream or fusion; or the one of a file."""
    if path.is_file() or (path / "scores.h5").is_file():
        return {"scores": Scores.read(path)}
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    if path.parent.name not in ("report", "fuse"):
        raise UserError(f"{path} is not the folder of a report, of a fusion or of scores")
    fuses = _of_stage(path, "fuse") if path.parent.name == "report" else [path]
    files = {}
    for fuse in fuses:
        scores = _of_stage(fuse, "score_stream")
        files |= {
            stream: folder for stream in STREAMS for folder in scores if folder.name.startswith(f"{stream}-test-")
        }
        files |= {name: fuse / name for name in FUSIONS}
    found = {name: Scores.read(folder) for name, folder in files.items() if (folder / "scores.h5").is_file()}
    if not found:
        raise UserError(f"{path} was moved, or the scores that it was made from are gone; run the same command again")
    return found


def _of_stage(artifact: Path, stage: str) -> list[Path]:
    return [other for other in made_from(artifact) if other.parent.name == stage]
