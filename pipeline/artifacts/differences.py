"""Which settings distinguish artifacts of the same name, whose folders differ only by an unreadable digest."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.artifacts.status import STAGE_FILES
from pipeline.specs.base import flattened
from pipeline.system import files

_ELSEWHERE = ("run", "cluster")  # sections of what changes no result

Settings = dict[str, dict[str, str]]
"""Section -> the name of each flag, such as `temporal_dropout`, -> its value as text."""


def with_settings(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `status.status`, each with `settings`: those that differ between artifacts of one name, as text.

    `settings` is "" if the name is unique, or if nothing differs in what `settings_of` knows. Reading a training's
    settings imports torch but reads no weights.
    """
    rows, alike, known = [dict(row, settings="") for row in rows], defaultdict(list), {}
    for row in rows:
        alike[row["dataset"], row["stage"], row["label"]].append(row)
    for same in alike.values():
        found = [settings_of(Path(row["path"]), known) if len(same) > 1 else {} for row in same]
        differ = differing(*found)
        for k, row in enumerate(same):
            row["settings"] = ", ".join(
                f"{name} {values[k]}" for name, values in differ.items() if values[k] is not None
            )
    return rows


def differing(*settings: Settings) -> dict[str, list[str | None]]:
    """Name -> value in each, of the settings that differ; None: not read there, or nothing is known of its section."""
    differ = {}
    for section in dict.fromkeys(section for found in settings for section in found):
        known = [found[section] for found in settings if section in found]
        for name in dict.fromkeys(name for values in known for name in values):
            if len({values.get(name) for values in known}) > 1:
                differ[name] = [found.get(section, {}).get(name) for found in settings]
    return differ


def settings_of(artifact: Path, known: dict[Path, Settings] | None = None) -> Settings:
    """The settings that an artifact depends on: its own, and those of all that it was made from.

    Args:
        artifact: its folder. Sections are left out whose artifacts are in progress, damaged or removed, or were made
            before they recorded settings.
        known: what was found before, by folder; what is found is added.
    """
    known = {} if known is None else known
    if artifact not in known:
        found: Settings = {}
        # of two datasets trained together, the settings of this one count
        for other in sorted(made_from(artifact), key=lambda other: other.parents[1] == artifact.parents[1]):
            found |= settings_of(other, known)
        own = _own(artifact)
        # a report tells every setting, those that change nothing included
        known[artifact] = own | found if artifact.parent.name == "report" else found | own
    return known[artifact]


def made_from(artifact: Path) -> list[Path]:
    """Folders of the artifacts that one was made from; [] if that is not recorded."""
    try:
        names = files.read_made_from(artifact)
    except (OSError, ValueError):
        return []
    return [artifact.parents[2] / name for name in names]


def _own(artifact: Path) -> Settings:
    stage, file = artifact.parent.name, artifact / STAGE_FILES.get(artifact.parent.name, ("",))[0]
    try:
        if stage in ("frames", "flow"):
            return _flags({stage: json.loads(store.read_attrs(file)["spec"])})
        if stage == "train_stream" and file.exists():  # else it is in progress
            from pipeline.networks.checkpoint import settings_in

            settings = settings_in(artifact / "checkpoint.pt")
            return _flags({settings["stream"]: settings})
        if stage == "score_stream":
            return _flags({"score": json.loads(store.read_attrs(file)["spec"])})
        if stage == "fuse":
            return _flags({"fusion": files.read_json(file)["spec"]})
        if stage == "report":
            return _flags(files.read_json(file)["settings"])
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _flags(sections: Mapping[str, Mapping[str, Any]]) -> Settings:
    return {name: dict(_named(name, values)) for name, values in sections.items() if name not in _ELSEWHERE}


def _named(section: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name of its flag and text of each setting: `stack_length` for `temporal.stack.length`."""
    for path, value in flattened(settings):
        name = path.replace(".", "_")
        flag = name if path.startswith("stack.") else f"{'data' if section == 'dataset' else section}_{name}"
        yield flag, value if isinstance(value, str) else json.dumps(value)
