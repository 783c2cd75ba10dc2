"""Inspect artifacts: a file's content, one clip in detail, the state of all artifacts, damage."""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import jpeg, motion, store
from pipeline.errors import DamagedFile
from pipeline.files import read_json, size_of
from pipeline.scores import Scores

# the file that each stage writes last; without it the artifact is unfinished
LAST_FILES = {
    "catalog": "catalog.h5",
    "frames": "index.h5",
    "flow": "index.h5",
    "train_stream": "curve.json",
    "score_stream": "scores.h5",
    "fuse": "fusion.json",
    "report": "metrics.json",
    "score_videos": "scores.h5",
    "all_splits": "summary.json",
    "tables": "table.json",
}
ALSO_NEEDED = {
    "train_stream": ("checkpoint.pt",),
    "fuse": ("average/scores.h5",),  # and others if there are validation clips
    "report": ("report.html",),
    "score_videos": ("predictions.csv",),
    "all_splits": ("summary.html", "summary.md"),
    "tables": ("table.html", "table.md"),
}

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
        FileNotFoundError, ValueError: no such file, or not one of ours.
        KeyError: no such clip.
    """
    path = file_of(path)
    if path.suffix == ".json":
        return {
            "path": str(path),
            "format": path.name,
            "attrs": {},
            "summary": read_json(path),
            "rows": [],
            "clip": None,
        }
    _refuse_other_files(path)
    attrs = store.read_attrs(path)
    kind = attrs.pop("format").removeprefix("two-stream-")
    about = {"catalog": _catalog, "scores": _scores}.get(kind)
    summary, rows, shown = about(path) if about else _store(path, kind, clip)
    return {"path": str(path), "format": kind, "attrs": attrs, "summary": summary, "rows": rows, "clip": shown}


def file_of(path: Path) -> Path:
    """The file to inspect: in an artifact's folder, the file that its stage writes last; else the path itself."""
    if not path.is_dir():
        return path
    found = [path / name for name in dict.fromkeys(LAST_FILES.values())]
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
    return summary, rows, _clip(opened[first]) if first else None


def _motion(opened: store.Store) -> dict[str, Any]:
    """How far things move, or why that could not be measured; a damaged store is still shown."""
    try:
        found = motion.sample(opened)
    except (OSError, ValueError) as error:
        return {"motion": f"not measured: {error}"}
    return {f"motion_{name}": round(value, 4) for name, value in found._asdict().items()} if found else {}


def _clip(clip: store.StoredClip) -> dict[str, Any]:
    """One clip in detail: attributes, length, bytes, and time range (frames) or motion (flow)."""
    about = {"id": clip.id, **clip.attrs, "length": len(clip), "jpeg_bytes": clip.nbytes}
    if clip.kind == "frames":
        return about | {"first_seconds": float(clip.seconds[0]), "last_seconds": float(clip.seconds[-1])}
    return about | motion.of_clip(clip) | {"has_backward": clip.has_backward}


def _refuse_other_files(path: Path) -> None:
    """Refuse our non-HDF5 files, which must not be reported as damaged."""
    if path.is_file() and path.suffix in _OTHER_FILES:
        raise ValueError(
            f"{path} is no HDF5 file but {_OTHER_FILES[path.suffix]}; this kind has no checksums, so it cannot "
            "be verified"
        )


def _kind(path: Path) -> str:
    """The kind of an HDF5 file: frames, flow, catalog or scores."""
    _refuse_other_files(path)
    return store.read_attrs(path)["format"].removeprefix("two-stream-")


def is_store(path: Path) -> bool:
    """Whether a file or an artifact's folder is a store of frames or flow, whose clips have checksums.

    Raises:
        FileNotFoundError, ValueError: no such file, not HDF5, or damaged.
    """
    return _kind(file_of(path)) in ("frames", "flow")


def verify(path: Path) -> list[str]:
    """Check every clip of a store: all bytes against their CRC-32, and that every image decodes. Returns the faults.

    A catalog or scores file is checked against the hash written with it. Raises as `is_store`.
    """
    path = file_of(path)
    if not is_store(path):
        fault = _what_raises(describe, path, cure="; delete it and run its stage again")
        return [fault] if fault else []
    return [f"{video_id}: {fault}" for video_id, fault in _damage(store.Store(path, _kind(path))).items()]


def _damage(opened: store.Store) -> dict[str, str]:
    """Clip id -> fault, for damaged clips and for all clips whose shard cannot be read."""
    shards = {path.stem: _what_raises(store.read_records, path, opened.kind) for path in opened.shard_paths()}
    faults = {video_id: shards[row["shard"]] for video_id, row in opened.rows.items()}
    for video_id in sorted(opened, key=lambda video_id: opened.rows[video_id]["shard"]):  # opens each shard once
        faults[video_id] = faults[video_id] or _what_raises(_check, opened, video_id)
    opened.close()
    return {video_id: fault for video_id, fault in faults.items() if fault}


def _what_raises(function: Callable[..., Any], *given: Any, cure: str = "") -> str:
    """The message of whatever the function raises: damaged bytes may cause anything; "" if it succeeds.

    `cure` is added unless the message already says what to do.
    """
    try:
        function(*given)
    except (PermissionError, BlockingIOError):  # not damage
        raise
    except DamagedFile as error:
        return str(error)
    except Exception as error:
        return f"{str(error) or type(error).__name__}{cure}"
    return ""


def _check(opened: store.Store, video_id: str) -> None:
    clip, sums, fault = opened[video_id], [], ""
    for direction in clip.directions:
        sums.append(0)
        for data in clip.jpegs(direction=direction):
            sums[-1] = zlib.crc32(data, sums[-1])
            fault = fault or _what_raises(functools.partial(jpeg.decode, gray=True), data)
    if store.crc32_of_parts(sums) != clip.attrs["crc32"]:
        fault = "its bytes do not match their checksum"
    if fault:
        raise DamagedFile(f"{fault}; `python -m pipeline repair` this store")


def store_folder(path: Path) -> Path:
    """The folder of a store, given the folder itself, its index, or one of its shards.

    Raises:
        FileNotFoundError: no such file, or a folder without an artifact.
    """
    folder = path.parent.parent if path.parent.name == "shards" else path
    return folder if folder.is_dir() and any(_shards_in(folder)) else file_of(folder).parent


def _shards_in(folder: Path) -> Iterator[Path]:
    return (folder / "shards").glob("*.h5")


class Repaired(NamedTuple):
    """What `repair` removed, and which clips were damaged."""

    kind: str
    """frames or flow."""
    shards: list[str]
    """Names of the removed shards, sorted."""
    damaged: list[str]
    """Ids of the clips that were damaged."""


def repair(path: Path, *, failed: bool = False) -> Repaired:
    """Remove damaged shards, and the index, so that the next run of the stage makes them again.

    Args:
        path: the store, finished or not, or one of its shards.
        failed: also remove the shards of clips that failed (a locked file, or too short a time limit).

    Raises:
        ValueError: not a store.
    """
    folder = store_folder(path)
    if any(_shards_in(folder)) and not (folder / "index.h5").is_file():
        return _repair_unfinished(folder, failed=failed)
    path = file_of(folder if path.parent.name == "shards" else path)
    if not is_store(path):
        raise ValueError(
            f"{path} is a {_kind(path)} file, of which no part can be made alone: only stores of frames and flow can "
            "be repaired; `python -m pipeline invalidate` removes a stage, so that it is made again"
        )
    opened = store.Store(path, _kind(path))
    damaged = list(_damage(opened))
    shards = sorted({opened.rows[video_id]["shard"] for video_id in damaged + list(opened.failed if failed else ())})
    if shards:
        path.unlink()  # first: without the index the stage is remade, whatever happens here
    for name in shards:
        (path.parent / "shards" / f"{name}.h5").unlink(missing_ok=True)
    return Repaired(opened.kind, shards, damaged)


def _repair_unfinished(folder: Path, *, failed: bool) -> Repaired:
    """`repair` a store without an index, perhaps because its stage failed after too many clips failed."""
    kind, shards, damaged = "", [], []
    for path in sorted(_shards_in(folder)):
        if _what_raises(_kind, path) or _what_raises(store.read_records, path, kind := _kind(path)):
            shards.append(path)
            continue
        opened = store.Store(path, kind)
        faults = list(_damage(opened))
        damaged += faults
        if faults or (failed and opened.failed):
            shards.append(path)
    for path in shards:
        path.unlink()
    return Repaired(kind, [path.stem for path in shards], damaged)


def status(artifacts: Path) -> list[dict[str, Any]]:
    """One row per artifact below `artifacts`: dataset, stage, label, digest, whether it is done, bytes, path."""
    rows = []
    for folder in sorted(artifacts.glob("*/*/*-*")):
        stage = folder.parent.name
        latest = folder.is_symlink() and len(folder.readlink().parts) == 1  # a link to a sibling
        if latest or not folder.is_dir() or stage not in LAST_FILES:
            continue
        label, _, digest = folder.name.rpartition("-")
        done = all((folder / name).is_file() for name in (LAST_FILES[stage], *ALSO_NEEDED.get(stage, ())))
        row = {"dataset": folder.parent.parent.name, "stage": stage, "label": label, "digest": digest}
        rows.append({**row, "state": "done" if done else "unfinished", "bytes": size_of(folder), "path": str(folder)})
    order = list(LAST_FILES)
    return sorted(rows, key=lambda row: (row["dataset"], order.index(row["stage"]), row["label"]))
