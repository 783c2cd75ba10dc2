"""Inspect artifacts: a file's content, and one clip in detail."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import store
from pipeline.artifacts.status import STAGE_FILES
from pipeline.scores import Scores
from pipeline.store import motion
from pipeline.system.errors import UserError, message_suffices
from pipeline.system.files import read_json

# files of ours without checksums, by suffix
_OTHER_FILES = {
    ".pt": "weights or a training under way, saved by torch",
    ".json": "plain text",
    ".html": "a page for a browser",
    ".md": "plain text",
    ".csv": "plain text",
}


def describe(path: Path, *, clip: str = "") -> dict[str, Any]:
    """What a file contains, as plain JSON values.

    Args:
        path: an HDF5 or JSON file of ours, or the folder of an artifact.
        clip: id of the clip shown in detail; "" for the first that is ok.

    Returns:
        {"path", "format", "attrs", "summary": {...}, "rows": [...], "clip": {...} or None}.

    Raises:
        FileNotFoundError, ValueError: no such file, or not one of ours; or no such clip (`UserError`).
    """
    path = file_of(path)
    if path.suffix == ".json":
        kind, attrs, (summary, rows, shown) = path.name, {}, (read_json(path), [], None)
    else:
        _refuse_other_files(path)
        attrs = store.read_attrs(path)
        kind = attrs.pop("format").removeprefix("two-stream-")
        about = {"catalog": _catalog, "scores": _scores}.get(kind)
        summary, rows, shown = about(path) if about else _store(path, kind, clip)
    return {"path": str(path), "format": kind, "attrs": attrs, "summary": summary, "rows": rows, "clip": shown}


def file_of(path: Path) -> Path:
    """The file to inspect: in an artifact's folder, the file that its stage writes last; else the path itself."""
    if not path.is_dir():
        return store.target_of(path)
    found = [path / name for name in dict.fromkeys(names[0] for names in STAGE_FILES.values())]
    for file in found:
        if file.is_file():
            return file
    if (path / "shards").is_dir():
        raise FileNotFoundError(f"{path} has no index.h5 yet; run its stage, which keeps the shards that are right")
    raise FileNotFoundError(
        f"{path} holds none of {', '.join(file.name for file in found)}; give a file or an artifact's folder"
    )


def _catalog(path: Path) -> tuple[dict, list, None]:
    catalog = store.read_catalog(path)
    parts = Counter(clip.part for clip in catalog.clips)
    summary = {
        "clips": len(catalog.clips),
        "classes": list(catalog.classes),
        "split": catalog.split_name,
        "parts": dict(parts),
    }
    rows = [
        {n: getattr(clip, n) for n in ("id", "class_name", "label", "group", "part", "bytes", "path")}
        for clip in catalog.clips
    ]
    return {**summary, "absent": list(catalog.absent)}, rows, None


def _scores(path: Path) -> tuple[dict, list, None]:
    scores = Scores.read(path)
    summary = {"clips": len(scores.video_ids), "failed": list(scores.failed)}
    accuracy = {"top1": scores.top1(), "mean_class": scores.mean_class_accuracy()}
    summary |= {name: None if np.isnan(share) else share for name, share in accuracy.items()}  # JSON knows no NaN
    summary["classes"] = list(scores.classes)
    best = np.nan_to_num(scores.probabilities).max(1)
    rows = [
        {
            "id": i,
            "class": scores.classes[label] if label >= 0 else "",
            "said": scores.classes[said] if said >= 0 else "failed",
            "probability": round(float(p), 4),
        }
        for i, label, said, p in zip(scores.video_ids, scores.labels, scores.predictions(), best, strict=True)
    ]
    return summary, rows, None


def _store(path: Path, kind: str, clip: str) -> tuple[dict, list, dict | None]:
    opened = store.Store(path, kind)
    rows = list(opened.rows.values())
    size = sum(file.stat().st_size for file in opened.shard_paths() if file.is_file())
    summary = {"clips": len(opened), "failed": len(opened.failed), "frames": sum(row["frames"] for row in rows)}
    summary |= {"shards": len(opened.shard_paths()), "bytes": size, **(_motion(opened) if kind == "flow" else {})}
    first = clip or next(iter(opened), "")
    return summary, rows, _clip(clip_named(opened, first)) if first else None


def clip_named(opened: store.Store, name: str) -> store.StoredClip:
    """The clip whose id a user gave.

    Raises:
        UserError: there is no such clip, or it has failed; the message says which.
    """
    try:
        return opened[name]
    except KeyError as error:
        raise UserError(error.args[0]) from None


def _motion(opened: store.Store) -> dict[str, Any]:
    """How far things move, or why that could not be measured; a damaged store is still shown."""
    try:
        found = motion.sample(opened)
    except Exception as error:
        if not message_suffices(error):
            raise
        return {"motion": f"not measured: {error}"}
    return {f"motion_{name}": round(value, 4) for name, value in found._asdict().items()} if found else {}


def _clip(clip: store.StoredClip) -> dict[str, Any]:
    """One clip in detail: attributes, length, bytes, and time range (frames) or motion (flow)."""
    about = {"id": clip.id, **clip.attrs, "length": len(clip), "jpeg_bytes": clip.nbytes}
    if clip.kind == "frames":
        return about | {"first_seconds": float(clip.seconds[0]), "last_seconds": float(clip.seconds[-1])}
    return about | motion.of_clip(clip) | {"has_backward": "backward" in clip.directions}


def _refuse_other_files(path: Path) -> None:
    """Refuse our files that are not HDF5, which must not be reported as damaged."""
    if path.is_file() and path.suffix in _OTHER_FILES:
        raise UserError(
            f"{path} is no HDF5 file but {_OTHER_FILES[path.suffix]}; this command reads .h5 files and "
            "artifacts' folders"
        )


def kind_of(path: Path) -> str:
    """The kind of an HDF5 file: frames, flow, catalog or scores."""
    _refuse_other_files(path)
    return store.read_attrs(path)["format"].removeprefix("two-stream-")
