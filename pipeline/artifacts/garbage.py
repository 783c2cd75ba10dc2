"""What may be removed to free disk space: artifacts of abandoned settings, remains of killed runs, what a user names.

Every artifact lists the artifacts it was made from in `made_from.json`. By default, the newest artifact of each name,
every result, everything unfinished, and all that these were made from are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts.differences import made_from
from pipeline.artifacts.status import STAGE_FILES, status
from pipeline.specs.base import unknown_name
from pipeline.system import files, locks
from pipeline.system.errors import UserError

_RESULTS = ("report", "score_videos", "all_splits", "tables")


class Waste(NamedTuple):
    """An artifact or a file that may be removed."""

    path: Path
    artifact: Path
    """The artifact's folder: `path` itself, or the folder that contains the file."""
    bytes: int
    reason: str


def find(artifacts: Path, *, old: bool = False, unfinished: bool = False) -> list[Waste]:
    """Everything below `artifacts` that may be removed, in the order of `status`; removes nothing.

    An artifact may be removed if there is a newer one of the same dataset, stage and label, and nothing that is kept
    was made from it.

    Args:
        artifacts: folder of all artifacts.
        old: include results (reports, tables, predictions, features) that have a newer version, and what only they
            need.
        unfinished: include unfinished artifacts, such as a resumable training or a store's finished shards.

    Raises:
        UserError: a kept artifact has no valid record of what it was made from.
    """
    rows = {Path(row["path"]).relative_to(artifacts).as_posix(): row for row in status(artifacts)}
    begun = [name for name, row in rows.items() if row["state"] == "unfinished"]
    results = [name for name, row in rows.items() if row["stage"] in _RESULTS] + _features(artifacts, rows)
    newest = _newest(artifacts, {name: row for name, row in rows.items() if name not in begun})
    roots = {*newest, *([] if old else results), *begun}
    kept = _reachable(artifacts, rows, roots - set(begun) if unfinished else roots)
    waste = []
    for name, row in rows.items():
        folder = Path(row["path"])
        if name in kept:
            left = [(path, "half written") for path in files.find_temporaries(folder)]
            if row["stage"] == "train_stream" and row["state"] == "done":  # it was killed after its last file
                left += [(path, "of a training that is done") for path in sorted(folder.glob("resume.pt*"))]
            for path, reason in left:
                with contextlib.suppress(FileNotFoundError):  # finished meanwhile
                    waste.append(Waste(path, folder, path.stat().st_size, reason))
        else:
            reason = (
                "begun, and not ended" if name in begun else "there is a newer one, and no result was made from this"
            )
            waste.append(Waste(folder, folder, row["bytes"], reason))
    return waste


def remove(waste: Iterable[Waste]) -> Iterator[tuple[Waste, bool]]:
    """Remove what `find` returned; yields each item and whether it was removed: what another run uses stays."""
    for item in waste:
        if item.path == item.artifact:
            yield item, locks.remove_artifact(item.path, first=STAGE_FILES[item.path.parent.name][0])
            continue
        with locks.try_exclusive_lock(item.artifact) as free:
            if free:
                item.path.unlink(missing_ok=True)
        yield item, free


def _features(artifacts: Path, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Names of the scores that `ExtractFeatures` made: it alone scores a training part, and the others with it."""
    scores = {name: frozenset(made_from(artifacts / name)) for name in rows if rows[name]["stage"] == "score_stream"}
    # the label of scores is <stream>-<part>-<split>
    of_training_parts = {read for name, read in scores.items() if "train" in rows[name]["label"].split("-")[1:2]}
    return [name for name, read in scores.items() if read in of_training_parts]


def _newest(artifacts: Path, rows: dict[str, dict[str, Any]]) -> set[str]:
    """Names of the artifacts finished last, one per dataset, stage and label."""
    newest: dict[tuple[str, ...], tuple[int, str]] = {}
    for name, row in rows.items():
        key = (row["dataset"], row["stage"], row["label"])
        ended = (artifacts / name / STAGE_FILES[row["stage"]][0]).stat().st_mtime_ns
        newest[key] = max(newest.get(key, (0, "")), (ended, name))
    return {name for _, name in newest.values()}


def _reachable(artifacts: Path, rows: dict[str, dict[str, Any]], roots: Iterable[str]) -> set[str]:
    """Names of the roots and of everything they were made from."""
    kept: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in kept or name not in rows:
            continue
        kept.add(name)
        record = artifacts / name / files.MADE_FROM
        if rows[name]["state"] == "unfinished" and not record.exists():  # nothing read yet: the record is written first
            continue
        try:
            waiting += files.read_made_from(record.parent)
        except (OSError, UserError):
            raise UserError(
                f"{record} is missing or damaged, so what was used for it is unknown and nothing can safely be "
                "removed; run the command that made it again to write that file, or delete the folder "
                f"{record.parent} if you can spare it"
            ) from None
    return kept


def invalidate(artifacts: Path, stage: str, *, dataset="", all_datasets=False, digest="") -> list[Path]:
    """Remove every artifact of a stage, so that the next run makes it again. Returns the folders removed.

    Args:
        artifacts: folder of all artifacts.
        stage: name of the stage's folder.
        dataset: only artifacts of this dataset; may be "" if only one dataset has artifacts of the stage. "folder" will
            do for folder-videos-1a2b3c, whose videos the command line named, if there are no others.
        all_datasets: artifacts of all datasets.
        digest: only artifacts whose digest, as `status` shows it, begins with this; "" for all.

    Raises:
        UserError: there is no such stage, dataset or digest, or it is ambiguous; or one of the artifacts is being
            written, for example by a program that calls the stage's function.
    """
    if stage not in STAGE_FILES:
        raise UserError(unknown_name(f"stage {stage!r}", stage, STAGE_FILES))
    rows = status(artifacts)
    known = {row["dataset"] for row in rows}
    if known and dataset not in {"", *known}:
        named = [name for name in known if name.startswith(f"{dataset}-")]
        if len(named) != 1:
            raise UserError(unknown_name(f"dataset {dataset!r} in {artifacts}", dataset, known))
        dataset = named[0]
    rows = [row for row in rows if row["stage"] == stage and dataset in ("", row["dataset"])]
    concerned = sorted({row["dataset"] for row in rows})
    if len(concerned) > 1 and not all_datasets:
        raise UserError(
            f"{len(concerned)} datasets have artifacts of stage {stage}: {', '.join(concerned)}; "
            "give --dataset NAME, or --all for all of them"
        )
    wanted = [row for row in rows if row["digest"].startswith(digest)]
    if rows and not wanted:
        raise UserError(unknown_name(f"digest {digest!r} of stage {stage}", digest, {row["digest"] for row in rows}))
    if digest and len(meant := {row["digest"] for row in wanted}) > 1:
        raise UserError(f"{len(meant)} digests of stage {stage} begin with {digest!r}: {', '.join(sorted(meant))}")
    folders = [Path(row["path"]) for row in wanted]
    for folder in folders:  # all stay if one of them is being written or read
        with locks.nobody_else(folder):
            pass
    return [folder for folder in folders if locks.remove_artifact(folder, first=STAGE_FILES[stage][0])]
