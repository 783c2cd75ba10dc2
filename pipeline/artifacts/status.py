"""Which artifacts exist, and whether each is whole. Imports little: `python -m pipeline doctor` must always start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline.system.errors import UserError
from pipeline.system.files import read_json, size_of

# stage -> the files of its artifacts: first the one that is written last, then others without which it is unfinished
STAGE_FILES = {
    "catalog": ("catalog.h5",),
    "frames": ("index.h5",),
    "flow": ("index.h5",),
    "train_stream": ("curve.json", "checkpoint.pt"),
    "score_stream": ("scores.h5",),
    "fuse": ("fusion.json", "average/scores.h5"),  # and other fusions if there are validation clips
    "report": ("metrics.json", "report.html"),
    "score_videos": ("scores.h5", "predictions.csv"),
    "all_splits": ("summary.json", "summary.html", "summary.md"),
    "tables": ("table.json", "table.html", "table.md"),
}

PARTIAL = "partial"  # what a table of which a row failed records as its inputs


def _lacks_rows(table: Path) -> bool:
    """Whether the folder is of a table of which a row failed."""
    try:
        return read_json(table / "table.json").get("inputs") == PARTIAL
    except (OSError, UserError):  # of another stage, or damaged, which `verify` reports
        return False


def status(artifacts: Path) -> list[dict[str, Any]]:
    """One row per artifact below `artifacts`: dataset, stage, label, digest, whether it is done, bytes, path.

    Raises:
        PermissionError: `artifacts` may not be read.
    """
    if artifacts.is_dir():
        os.scandir(artifacts).close()  # `glob` would find nothing in a folder that may not be read
    rows = []
    for folder in sorted(artifacts.glob("*/*/*-*")):
        stage = folder.parent.name
        latest = folder.is_symlink() and len(folder.readlink().parts) == 1  # a link to a sibling
        if latest or not folder.is_dir() or stage not in STAGE_FILES:
            continue
        label, _, digest = folder.name.rpartition("-")
        done = all((folder / name).is_file() for name in STAGE_FILES[stage]) and not _lacks_rows(folder)
        row = {"dataset": folder.parent.parent.name, "stage": stage, "label": label, "digest": digest}
        rows.append({**row, "state": "done" if done else "unfinished", "bytes": size_of(folder), "path": str(folder)})
    order = list(STAGE_FILES)
    return sorted(rows, key=lambda row: (row["dataset"], order.index(row["stage"]), row["label"]))
