"""Which settings tell artifacts of one name apart: their folders differ by a digest, which nobody can read."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import store


def with_settings(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `inspection.status`, each with `settings`: those that differ between stores or trainings of one name.

    "" where there is one of a name only, or none of its settings can be read; the settings of the stages before are not
    among them. To read those of trainings imports torch, but no weights are read.
    """
    rows, alike = [dict(row, settings="") for row in rows], defaultdict(list)
    for row in rows:
        alike[row["dataset"], row["stage"], row["label"]].append(row)
    for same in alike.values():
        known = [(row, found) for row in same if len(same) > 1 and (found := _settings(row))]
        names = dict.fromkeys(name for _, found in known for name in found)
        differ = [name for name in names if len({found.get(name) for _, found in known}) > 1]
        for row, found in known:
            row["settings"] = ", ".join(f"{name} {found[name]}" for name in differ if name in found)
    return rows


def _settings(row: dict[str, Any]) -> dict[str, str]:
    """Name -> value as text, of a store or a training; none if it has none, is unfinished or damaged."""
    try:
        if row["stage"] in ("frames", "flow"):
            return _flat(json.loads(store.read_attrs(Path(row["path"]) / "index.h5")["spec"]))
        if row["stage"] == "train_stream" and row["state"] == "done":
            from pipeline.checkpoint import settings_in

            return _flat(settings_in(Path(row["path"]) / "checkpoint.pt"))
    except (ImportError, OSError, ValueError, KeyError):
        pass
    return {}


def _flat(settings: dict[str, Any], before: str = "") -> dict[str, str]:
    """Settings within settings get the name before theirs, as on the command line: `stack_length`."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}_")
        else:
            flat[before + name] = value if isinstance(value, str) else json.dumps(value)
    return flat
