"""Predictions of trained streams for unlabeled videos, as a CSV file with one row per video."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from pipeline.catalog import NO_VIDEO, Catalog
from pipeline.scores import Scores
from pipeline.store import Store
from pipeline.system import files
from pipeline.system.console import aligned, plain
from pipeline.system.errors import UserError

BEST = 5  # classes listed for a video, the likeliest first
KNOWN = "the streams were trained or chosen on it"
_SHOWN = 20  # rows that are printed


def write(
    path: Path,
    tables: Mapping[str, Scores],
    catalog: Catalog,
    frames: Store,
    flow: Store,
    known: Collection[str] = (),
) -> None:
    """Write `predictions.csv`: for each video, the likeliest classes and the prediction of each stream alone.

    Columns: `path` (relative to the videos' folder); `class`, `probability`, `class_2`, `probability_2` and so on, for
    at most five classes; the likeliest class of each stream and its probability; `frames`, how many were decoded;
    `note`, what is odd about a video that was scored anyway (read in part, or known to the streams); `reason`,
    why it failed: then it has no classes.

    Args:
        path: the file; it exists only once it is complete.
        tables: "fused", "spatial" and "temporal" -> their scores, over the same clips in any order.
        catalog: the clips, with their paths.
        frames, flow: stores of the videos, which know why those that failed have no score.
        known: content of the clips that a stream was trained or chosen on, as `Clip.content`.

    Raises:
        UserError: the tables do not join, or their clips are not the catalog's.
    """
    fused = tables["fused"]
    streams = {name: fused.join(table)[1] for name, table in tables.items() if name != "fused"}
    paths = {clip.id: clip.path for clip in catalog.clips}
    contents = set(known) - NO_VIDEO
    seen = {clip.id for clip in catalog.clips if clip.content in contents}
    if unknown := set(fused.video_ids) ^ set(paths):
        raise UserError(f"the scores and the catalog hold different clips, such as {min(unknown)!r}")
    best = min(BEST, len(fused.classes))
    alone = [name for stream in streams for name in (stream, f"{stream}_probability")]
    why = reasons(frames, flow)
    rows = [["path", *_named("class", "probability", best), *alone, "frames", "note", "reason"]]
    for row, video_id in enumerate(fused.video_ids):
        said = _likeliest(fused, row, best) + [cell for table in streams.values() for cell in _likeliest(table, row, 1)]
        reason = why.get(video_id, "scoring failed") if fused.failed_rows[row] else ""
        notes = [frames.odd.get(video_id, ""), KNOWN if video_id in seen else ""]
        note = "" if reason else "; ".join(filter(None, notes))
        count = str(frames.rows[video_id]["frames"])
        rows.append([paths[video_id], *([""] * len(said) if reason else said), count, note, reason])
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    files.write_text(path, text.getvalue())


def reasons(*stores: Store) -> dict[str, str]:
    """Clip id -> why it failed, according to the first store in which it failed."""
    return {video_id: reason for opened in reversed(stores) for video_id, reason in opened.failed.items()}


def shown(path: Path) -> str:
    """A `predictions.csv` as text: path, class, probability and note of the first videos, then the failed ones."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    scored, failed = ([row for row in rows if bool(row["reason"]) == wanted] for wanted in (False, True))
    lines = aligned([[row[name] for name in ("path", "class", "probability", "note")] for row in scored[:_SHOWN]])
    if len(scored) > _SHOWN:
        lines.append(f"... and {len(scored) - _SHOWN} more")
    lines += [f"{plain(row['path'])} failed: {plain(row['reason'])}" for row in failed[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"... and {len(failed) - _SHOWN} more failed")
    return "\n".join(lines)


def _named(first: str, second: str, count: int) -> list[str]:
    """Column names: class, probability, class_2, probability_2 ..."""
    numbers = ["", *(f"_{place}" for place in range(2, count + 1))]
    return [f"{name}{number}" for number in numbers for name in (first, second)]


def _likeliest(table: Scores, row: int, count: int) -> list[str]:
    """Class and probability of the `count` likeliest classes; ties keep the order of the classes."""
    values = table.probabilities[row]
    places = np.argsort(-values, kind="stable")[:count]
    return [cell for place in places for cell in (table.classes[place], f"{values[place]:.4f}")]
