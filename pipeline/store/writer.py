"""Writing stores: clips into shards, then the index over finished shards."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from pipeline.store.container import (
    TEXT,
    crc32_of_parts,
    create,
    opened,
    put_attrs,
    put_table,
    read_attrs,
    read_table,
)
from pipeline.system.digests import digest_of
from pipeline.system.errors import DamagedFile, UserError
from pipeline.system.files import TEMPORARY

_COPY_BYTES = 8 << 20


class Record(NamedTuple):
    """The outcome of one clip: a row of `/table`, in a shard and in the index."""

    id: str
    class_name: str
    label: int
    group: str
    frames: int  # T, of the video; a flow store holds T - 1 fields
    status: str  # ok | failed
    reason: str  # why it failed, or what was odd about it
    crc32: int  # of the JPEG bytes

    def identity(self) -> tuple:
        """All but the group, which is that of the run that wrote it: no stage reads it here."""
        return (*self[:3], *self[4:])


_COLUMNS = {
    "id": TEXT,
    "class": TEXT,
    "label": "<i8",
    "group": TEXT,
    "frames": "<i8",
    "status": TEXT,
    "reason": TEXT,
    "crc32": "<u4",
}
_RECORD = np.dtype(list(_COLUMNS.items()))  # a row of a shard's table
_ROW = np.dtype([*_COLUMNS.items(), ("split", TEXT), ("shard", TEXT)])  # a row of the index's table


class _Spool:
    """Encoded images, concatenated: in memory while they are small, in a file beside the shard if a clip is long."""

    def __init__(self, folder: Path):
        name = f".spool{TEMPORARY}"
        self._file = tempfile.SpooledTemporaryFile(max_size=32 << 20, dir=folder, prefix=name)  # noqa: SIM115
        self.offsets, self.crc32 = [0], 0

    def extend(self, images: Sequence[bytes]) -> None:
        data = b"".join(images)
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self.offsets += itertools.accumulate(map(len, images[1:]), initial=self.offsets[-1] + len(images[0]))

    def store(self, group: h5py.Group) -> None:
        """Write `jpeg` (contiguous, so a window of planes is one read) in bounded pieces, and `offsets`."""
        jpeg_bytes = group.create_dataset("jpeg", shape=(self.offsets[-1],), dtype=np.uint8)
        self._file.seek(0)
        for begin in range(0, self.offsets[-1], _COPY_BYTES):
            piece = np.frombuffer(self._file.read(_COPY_BYTES), np.uint8)
            jpeg_bytes[begin : begin + len(piece)] = piece
        group.create_dataset("offsets", data=np.array(self.offsets, np.int64))
        self._file.close()


class ClipWriter:
    """Collects the images of one clip; nothing is written to the shard before `finish`."""

    def __init__(self, file: h5py.File, folder: Path, video_id: str):
        self._file, self._folder, self.id = file, folder, video_id
        self._spools: dict[str, _Spool] = {"forward": _Spool(folder)}
        self._ranges: dict[str, list[np.ndarray]] = {}

    def append(self, data: bytes, *, direction: str = "forward") -> None:
        """Add one encoded image; `direction` is "forward" (also for frames) or "backward"."""
        self.extend([data], direction=direction)

    def extend(self, images: Sequence[bytes], *, direction: str = "forward") -> None:
        """Add several encoded images, at least one; faster than one after another."""
        if direction not in self._spools:
            self._spools[direction] = _Spool(self._folder)
        self._spools[direction].extend(images)

    def append_range(self, range_px: np.ndarray, *, direction: str = "forward") -> None:
        """Add the (n, 2, 2) float32 minima and maxima of n fields, x then y (min-max scaling)."""
        self._ranges.setdefault(direction, []).append(range_px)

    def finish(self, attrs: Mapping[str, Any], seconds: list[float] | None = None) -> int:
        """Write the clip into the shard and return the CRC-32 over all its images."""
        group = self._file.create_group(f"clips/{self.id}")
        crc32 = crc32_of_parts(spool.crc32 for spool in self._spools.values())
        for direction, spool in self._spools.items():
            where = group if direction == "forward" else group.create_group(direction)
            spool.store(where)
            if direction in self._ranges:
                ranges = np.concatenate(self._ranges[direction]).astype(np.float32)
                _put_checked(where, "range_px", ranges)
        if seconds is not None:
            _put_checked(group, "seconds", np.array(seconds, np.float64))
        put_attrs(group, {**attrs, "crc32": np.uint32(crc32)})
        return crc32


def _put_checked(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """Write a small array with HDF5's own checksum, which every read verifies: `crc32` covers the images alone."""
    group.create_dataset(name, data=values, chunks=values.shape, fletcher32=True)


class ShardWriter:
    """Writes the clips of one shard, and collects their outcomes."""

    def __init__(self, file: h5py.File, folder: Path):
        self._file, self._folder = file, folder
        self.records: list[Record] = []

    def clip(self, video_id: str) -> ClipWriter:
        """Begin a clip and return its writer."""
        return ClipWriter(self._file, self._folder, video_id)

    def record(self, record: Record) -> None:
        """Add the outcome of one clip, failed ones included."""
        self.records.append(record)


@contextlib.contextmanager
def create_shard(path: Path, kind: str, attrs: Mapping[str, Any]) -> Iterator[ShardWriter]:
    """Create a shard, its table last; it exists only if the block raises no error."""
    with create(path, kind, {**attrs, "shard": path.stem}) as file:
        writer = ShardWriter(file, path.parent)
        yield writer
        put_table(file, [tuple(record) for record in writer.records], _RECORD)


def shard_is_current(path: Path, kind: str, *, digest: str, inputs: str) -> bool:
    """Whether the shard at `path` was made with these settings from these inputs."""
    if not path.is_file():
        return False
    try:
        attrs = read_attrs(path)
    except (UserError, DamagedFile):  # damaged, or of another version: it is remade
        return False
    return (attrs["format"], attrs.get("digest"), attrs.get("inputs")) == (f"two-stream-{kind}", digest, inputs)


def read_records(path: Path, kind: str) -> list[Record]:
    """The outcome of each clip in a shard."""
    with opened(path, kind) as file:
        return [Record(*row) for row in read_table(file)[1]]


def content_key(kind: str, digest: str, rows: Iterable[tuple]) -> str:
    """Content key of a store with these rows of its index, 12 hex digits.

    Equal keys mean that every clip has the same images and labels: groups, and the columns that only the index has, do
    not count.
    """
    return digest_of(kind, digest, [Record(*row[: len(_COLUMNS)]).identity() for row in rows])


def write_index(
    path: Path, kind: str, found: Iterable[tuple[Record, str]], parts: Mapping[str, str], attrs: Mapping[str, Any]
) -> None:
    """Write the index over finished shards; it exists only when the whole store does.

    Its `key` attribute is the `content_key`.

    Args:
        path: `<store>/index.h5`; the shards lie in `<store>/shards/`.
        kind: "frames" or "flow".
        found: each clip's outcome, and the name of its shard.
        parts: clip id -> train, val, test or unused, for the table.
        attrs: root attributes.
    """
    found = sorted(found, key=lambda pair: pair[0].id)
    rows = [(*record, parts.get(record.id, ""), shard) for record, shard in found]
    key = content_key(kind, attrs["digest"], rows)
    with create(path, kind, {**attrs, "key": key}) as file:
        put_table(file, rows, _ROW)
        clips = file.create_group("clips")
        for record, shard in found:
            if record.status == "ok":
                clips[record.id] = h5py.ExternalLink(f"shards/{shard}.h5", f"/clips/{record.id}")
