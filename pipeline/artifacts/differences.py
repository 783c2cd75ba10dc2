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

_OF_ONE_RUN = ("frames", "flow", "train_stream", "score_stream", "fuse", "report", "score_videos")

Settings = dict[str, dict[str, str]]
"""Section of luigi.cfg -> the name of each flag, such as `temporal_dropout`, -> its value as text."""


def with_settings(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `status.status`, each with `settings`: those that differ between artifacts of one name, as text.

    `settings` is "" if the name is unique, or if nothing differs in what `settings_of` finds. Reading a training's
    settings imports torch but reads no weights.
    """
    rows, alike, cache = [dict(row, settings="") for row in rows], defaultdict(list), {}
    for row in rows:
        alike[row["dataset"], row["stage"], row["label"]].append(row)
    for same in alike.values():
        found = [settings_of(Path(row["path"]), cache) if len(same) > 1 else {} for row in same]
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
        told = [found[section] for found in settings if section in found]
        for name in dict.fromkeys(name for values in told for name in values):
            if len({values.get(name) for values in told}) > 1:
                differ[name] = [found.get(section, {}).get(name) for found in settings]
    return differ


def settings_of(artifact: Path, cache: dict[Path, Settings] | None = None) -> Settings:
    """The settings that an artifact depends on, its own and those of the stages before it, as their digests cover them.

    Args:
        artifact: its folder. Sections are left out whose artifacts are in progress, damaged or removed, or were made
            before they recorded settings; nothing is known of catalogs, and of tables over several runs.
        cache: what was found before, by folder; what is found is added.
    """
    cache = {} if cache is None else cache
    if artifact.parent.name not in _OF_ONE_RUN:
        return {}
    if artifact not in cache:
        own = _recorded(artifact)
        before = {} if artifact.parent.name == "report" and own else _before(artifact, cache)  # a report records all
        cache[artifact] = before | own
    return cache[artifact]


def _before(artifact: Path, cache: dict[Path, Settings]) -> Settings:
    found: Settings = {}
    # of two datasets trained together, the settings of this one count
    for other in sorted(made_from(artifact), key=lambda other: other.parents[1] == artifact.parents[1]):
        if other.parent.name != artifact.parent.name:  # else a training that it starts from: `start` names it
            found |= settings_of(other, cache)
    return found


def made_from(artifact: Path) -> list[Path]:
    """Folders of the artifacts that one was made from; [] if that is not recorded."""
    try:
        names = files.read_made_from(artifact)
    except (OSError, ValueError):
        return []
    return [artifact.parents[2] / name for name in names] if len(artifact.parents) > 2 else []


def _recorded(artifact: Path) -> Settings:
    """The settings that an artifact itself records; {} if it is in progress or damaged."""
    stage = artifact.parent.name
    file = artifact / STAGE_FILES[stage][0]
    if not file.is_file():
        return {}
    try:
        if stage in ("frames", "flow"):
            return _by_flag({stage: json.loads(store.read_attrs(file)["spec"])})
        if stage == "train_stream":
            from pipeline.networks.checkpoint import settings_in

            spec = settings_in(artifact / "checkpoint.pt")
            return _by_flag({spec.stream: spec.identity_with_paths()})
        if stage == "score_stream":
            return _by_flag({"score": json.loads(store.read_attrs(file)["spec"])})
        if stage == "fuse":
            return _by_flag({"fusion": files.read_json(file)["spec"]})
        if stage == "report":
            return _by_flag(files.read_json(file)["settings"])
    # HDF5 may take damage for a lack of memory, which is a RuntimeError here
    except (ImportError, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _by_flag(sections: Mapping[str, Mapping[str, Any]]) -> Settings:
    return {section: dict(_flags(section, values)) for section, values in sections.items()}


def _flags(section: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Flag and text of each setting, `stack_length` for `temporal.stack.length`; `version` is the algorithm's."""
    for path, value in flattened(settings):
        name = path.replace(".", "_")
        flag = name if path.startswith("stack.") else f"{'data' if section == 'dataset' else section}_{name}"
        yield flag, value if value and isinstance(value, str) else json.dumps(value)
