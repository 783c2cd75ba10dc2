"""Which settings distinguish artifacts of the same name, whose folders differ only by an unreadable digest."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.specs.base import flattened


def with_settings(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `status.status`, each with `settings`: those that differ between stores or trainings of one name.

    `settings` is "" if the name is unique or the settings cannot be read; settings of earlier stages are not included.
    Reading a training's settings imports torch but reads no weights.
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
    """The settings of a store or training, name -> value as text; {} for other, unfinished or damaged artifacts."""
    try:
        if row["stage"] in ("frames", "flow"):
            return _flat(json.loads(store.read_attrs(Path(row["path"]) / "index.h5")["spec"]))
        if row["stage"] == "train_stream" and row["state"] == "done":
            from pipeline.networks.checkpoint import settings_in

            return _flat(settings_in(Path(row["path"]) / "checkpoint.pt"))
    except (ImportError, OSError, ValueError, KeyError):
        pass
    return {}


def _flat(settings: dict[str, Any]) -> dict[str, str]:
    """Flatten nested settings: the outer name becomes a prefix, as on the command line (`stack_length`)."""
    found = ((path.replace(".", "_"), value) for path, value in flattened(settings))
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found}
