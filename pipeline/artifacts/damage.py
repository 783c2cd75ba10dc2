"""Find damage in stores, catalogs and scores, and remove the shards that hold it."""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import store
from pipeline.artifacts.inspection import describe, file_of, kind_of
from pipeline.system.errors import DamagedFile, MachineFault, UserError, is_out_of_memory
from pipeline.video import jpeg

# errno of an OSError that a damaged file may cause: none if HDF5 raised it, EINVAL for a place that makes no sense
_OF_DAMAGE = (None, 0, errno.ENOENT, errno.EINVAL)


def is_store(path: Path) -> bool:
    """Whether a file or an artifact's folder is a store of frames or flow, whose clips have checksums.

    Raises:
        FileNotFoundError, ValueError: no such file, not HDF5, or damaged.
    """
    return kind_of(file_of(path)) in ("frames", "flow")


def what_has_checksums(path: Path) -> str:
    """What `verify` compares, in words: the clips of a store, or tables.

    Raises:
        UserError: nothing there has checksums.
    """
    if _has_several_tables(path):
        return "every table"
    return "every clip" if is_store(path) else "its table"


def _has_several_tables(path: Path) -> bool:
    """Whether it is the folder of an artifact like a fusion: HDF5 files lie below it, but another is written last."""
    if not path.is_dir() or (last := file_of(path)).suffix == ".h5":
        return False
    if not any(path.glob("*/*.h5")):
        raise UserError(f"{path} has no checksums: its stage writes {last.name} and other files that have none")
    return True


def verify(path: Path) -> list[str]:
    """Check every clip of a store: all bytes against their CRC-32, and that every image decodes. Returns the faults.

    A catalog or scores file is checked against the hash written with it, as is every one in the folder of an artifact
    of several; scores of single views against HDF5's own checksums. Raises as `is_store`, and if nothing has checksums.
    """
    if _has_several_tables(path):
        return [f"{file.relative_to(path)}: {fault}" for file in sorted(path.glob("*/*.h5")) for fault in verify(file)]
    path = file_of(path)
    if path.suffix == ".h5" and (fault := _what_raises(_refuse_endless_heap, path)):
        return [fault]
    if not is_store(path):
        fault = _what_raises(_read_all, path, cure="; delete it and run its stage again")
        return [fault] if fault else []
    return [f"{video_id}: {fault}" for video_id, fault in _damage(store.Store(path, kind_of(path))).items()]


def _read_all(path: Path) -> None:
    describe(path)
    if kind_of(path) == "scores":
        store.read_every_view(path)


def _refuse_endless_heap(path: Path) -> None:
    in_store = path.parent.name == "shards"
    store.refuse_endless_heap(
        path, store.repair_advice(path.parent.parent) if in_store else "delete it and run its stage again"
    )


def _records_of(shard: Path, kind: str = "") -> list[store.Record]:
    """The records of a shard, which is searched for what would hang HDF5 first."""
    if shard.is_file():
        _refuse_endless_heap(shard)
    return store.read_records(shard, kind or kind_of(shard))


def _damage(opened: store.Store) -> dict[str, str]:
    """Clip id -> fault, for damaged clips and for all clips whose shard cannot be read."""
    shards = {path.stem: _what_raises(_records_of, path, opened.kind) for path in opened.shard_paths()}
    faults = {video_id: shards[row["shard"]] for video_id, row in opened.rows.items()}
    for video_id in sorted(opened, key=lambda video_id: opened.rows[video_id]["shard"]):  # opens each shard once
        faults[video_id] = faults[video_id] or _what_raises(_check, opened, video_id)
    opened.close()
    return {video_id: fault for video_id, fault in faults.items() if fault}


def _what_raises(function: Callable[..., Any], *given: Any, cure: str = "") -> str:
    """The message of whatever the function raises: damaged bytes may cause anything; "" if it succeeds.

    `cure` is added unless the message already says what to do. What is this machine's fault (its disk, permissions, too
    little memory, too many open files) is raised: it may pass, and what is whole must not be repaired.
    """
    try:
        function(*given)
    except DamagedFile as error:
        return str(error)
    except Exception as error:
        if isinstance(error, MachineFault) or is_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno not in _OF_DAMAGE:
            raise
        return f"{str(error) or type(error).__name__}{cure}"
    return ""


def _check(opened: store.Store, video_id: str) -> None:
    clip = opened[video_id]  # which reads the ranges of flow, and HDF5 checks those
    sums, fault = [], ""
    if opened.kind == "frames":
        _ = clip.seconds
    for direction in clip.directions:
        sums.append(0)
        for data in clip.jpegs(direction=direction):
            sums[-1] = zlib.crc32(data, sums[-1])
            fault = fault or _what_raises(_decode, data, clip, opened.kind)
    if store.crc32_of_parts(sums) != clip.attrs["crc32"]:
        fault = "its bytes do not match their checksum"
    if fault:
        raise DamagedFile(f"{fault}; `python -m pipeline repair` this store")


def _decode(data: np.ndarray, clip: store.StoredClip, kind: str) -> None:
    image = jpeg.decode(data, gray=kind == "flow")
    if image.shape[:2] != (clip.height, clip.width):
        raise DamagedFile(f"an image is {image.shape[:2]}, its clip is {(clip.height, clip.width)}, height and width")


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
    removed: list[str]
    """Names of the removed shards, sorted, or "index" if only that was removed."""
    damaged: list[str]
    """Ids of the clips that were damaged, or not those of the index."""


def repair(path: Path, *, failed: bool = False) -> Repaired:
    """Remove damaged shards, and the index, so that the next run of the stage makes them again.

    Of an index that was made of other shards than those that are there, the shards may be whole, and stay.

    Args:
        path: the store, finished or not, or one of its shards.
        failed: also remove the shards of clips that failed (a locked file, or too short a time limit).

    Raises:
        UserError: not a store.
        OSError, MachineFault, or whatever says that memory ran out: the fault is this machine's; no shard was removed.
    """
    folder = store_folder(path)
    if any(_shards_in(folder)) and not (folder / "index.h5").is_file():
        return _repair_unfinished(folder, failed=failed)
    path = file_of(folder if path.parent.name == "shards" else path)
    if not is_store(path):
        raise UserError(
            f"{path} is a {kind_of(path)} file, no part of which can be made alone: only stores of frames and flow can "
            "be repaired; `python -m pipeline invalidate` removes a stage, so that it is made again"
        )
    opened = store.Store(path, kind_of(path))
    if others := _of_other_shards(opened):
        path.unlink()
        found = _repair_unfinished(folder, failed=failed)
        return Repaired(opened.kind, found.removed or ["index"], sorted({*found.damaged, *others}))
    damaged = list(_damage(opened))
    shards = sorted({opened.rows[video_id]["shard"] for video_id in damaged + list(opened.failed if failed else ())})
    if shards:
        path.unlink()  # first: without the index the stage is remade, whatever happens here
    for name in shards:
        (path.parent / "shards" / f"{name}.h5").unlink(missing_ok=True)
    return Repaired(opened.kind, shards, damaged)


def _of_other_shards(opened: store.Store) -> list[str]:
    """Ids of the clips that a readable shard does not have as the index says, as after a run that was killed."""
    sums: dict[tuple[str, str], int] = {}
    readable = [path for path in opened.shard_paths() if not _what_raises(_records_of, path, opened.kind)]
    for path in readable:
        sums |= {(path.stem, record.id): record.crc32 for record in store.read_records(path, opened.kind)}
    known, names = opened.rows.items(), {path.stem for path in readable}
    return [i for i, row in known if row["shard"] in names and sums.get((row["shard"], i)) != row["crc32"]]


def _repair_unfinished(folder: Path, *, failed: bool) -> Repaired:
    """`repair` a store without an index, perhaps because its stage failed after too many clips failed."""
    kind, shards, damaged = "", [], []
    for path in sorted(_shards_in(folder)):
        if _what_raises(_records_of, path):
            shards.append(path)
            continue
        kind = kind_of(path)
        opened = store.Store(path, kind)
        faults = list(_damage(opened))
        damaged += faults
        if faults or (failed and opened.failed):
            shards.append(path)
    for path in shards:
        path.unlink()
    return Repaired(kind, [path.stem for path in shards], damaged)
