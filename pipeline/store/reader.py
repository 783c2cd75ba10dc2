"""Reading stores: a lazy, picklable view that reads only the windows asked for."""

from __future__ import annotations

import contextlib
import functools
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline import jpeg, quantize
from pipeline.errors import ClipError, DamagedFile
from pipeline.store.container import crc32_of_parts, open_file, plain_attrs, repair_advice, text

_OPEN_SHARDS = 32
_KNOWN_CLIPS = 4096
_READ_BYTES = 8 << 20
_PATHS = {"forward": "", "backward": "backward/"}  # where a clip's group holds the images of each direction


class StoredClip:
    """One clip of a store. It reads only what is asked for: one HDF5 read per window, then JPEG decoding."""

    def __init__(self, store: Store, video_id: str):
        self._store, self.id = store, video_id
        with store._located(video_id) as group:
            self.attrs = plain_attrs(group.attrs)
            where = {direction: path for direction, path in _PATHS.items() if f"{path}offsets" in group}
            self._offsets = {direction: group[f"{path}offsets"][()] for direction, path in where.items()}
            ranges = {direction: f"{path}range_px" for direction, path in where.items()}
            self.ranges_px = {direction: group[name][()] for direction, name in ranges.items() if name in group}
            """Direction -> (T - 1, 2, 2) float32, pixels: [field][x, y][minimum, maximum]; only if min-max scaled."""
            self.height, self.width = int(self.attrs["height"]), int(self.attrs["width"])

    def __len__(self) -> int:
        """Frames T in a frames store, fields T - 1 in a flow store."""
        return (len(self._offsets["forward"]) - 1) // self._store.planes

    def __repr__(self) -> str:
        what = "frames" if self._store.kind == "frames" else "flow fields"
        return f"StoredClip({self.id!r}, {len(self)} {what} of {self.height} x {self.width})"

    @property
    def seconds(self) -> np.ndarray:
        """(T,) float64 presentation times in seconds (frames store)."""
        with self._store._located(self.id) as group:
            return group["seconds"][()]

    @property
    def has_backward(self) -> bool:
        """Whether backward flow is stored."""
        return "backward" in self._offsets

    @property
    def kind(self) -> str:
        """Kind of the store: "frames" or "flow"."""
        return self._store.kind

    @property
    def directions(self) -> list[str]:
        """The clip's sequences of images: "forward" and, if backward flow is stored, "backward"."""
        return list(self._offsets)

    @property
    def nbytes(self) -> int:
        """Total number of JPEG bytes."""
        return int(sum(offsets[-1] for offsets in self._offsets.values()))

    def count(self, *, direction: str = "forward") -> int:
        """Number of stored images of a direction: frames, or planes of flow (two per field)."""
        return len(self._offsets[direction]) - 1

    def jpegs(self, first: int = 0, last: int | None = None, *, direction: str = "forward") -> Iterator[np.ndarray]:
        """JPEG bytes of images first..last-1, (n,) uint8 each; a read takes a few megabytes, so one reads a window."""
        offsets = self._offsets[direction]
        last = self.count(direction=direction) if last is None else last
        while first < last:
            until = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _READ_BYTES, "right")) - 1)
            until = min(until, last)
            with self._store._located(self.id) as group:
                data = group[f"{_PATHS[direction]}jpeg"][offsets[first] : offsets[until]]
            for image in range(first, until):
                yield data[offsets[image] - offsets[first] : offsets[image + 1] - offsets[first]]
            first = until

    def checksum(self) -> int:
        """CRC-32 over all images of the clip as they are now; `attrs["crc32"]` is that of the images as written."""
        return crc32_of_parts(
            functools.reduce(lambda crc32, data: zlib.crc32(data, crc32), self.jpegs(direction=direction), 0)
            for direction in self.directions
        )

    def images(self, first: int, last: int, *, direction: str = "forward", gray: bool = False) -> np.ndarray:
        """Stored images first..last-1, decoded: (n, H, W, 3) RGB; (n, H, W) if `gray` or planes of flow; uint8."""
        return np.stack(self._decoded(first, last, direction=direction, gray=gray or self.kind == "flow"))

    def _decoded(self, first: int, last: int, *, direction: str, gray: bool) -> list[np.ndarray]:
        try:
            return [jpeg.decode(data, gray=gray) for data in self.jpegs(first, last, direction=direction)]
        except ClipError as error:
            folder = self._store.folder
            raise DamagedFile(
                f"images {first} to {last - 1} of clip {self.id!r} of {folder}: {error}; {repair_advice(folder)}"
            ) from error

    def frames(self, first: int, last: int) -> np.ndarray:
        """Frames first..last-1: (last-first, H, W, 3) uint8 RGB."""
        self._check("frames", first, last)
        return self.images(first, last)

    def gray(self, first: int, last: int) -> np.ndarray:
        """Luminance of frames first..last-1: (last-first, H, W) uint8.

        JPEG stores luminance as a plane of its own. Reading that plane costs half as much as decoding colour and
        converting it to gray, and it is rounded once less.
        """
        self._check("frames", first, last)
        return self.images(first, last, gray=True)

    def flow(self, first: int, last: int, *, backward: bool = False) -> np.ndarray:
        """Flow fields first..last-1: (last-first, 2, H, W) float32 pixels per frame, x then y, whatever the scaling."""
        direction = self._direction(first, last, backward)
        planes = self.images(2 * first, 2 * last, direction=direction)
        q = planes.reshape(last - first, 2, *planes.shape[1:])
        if direction in self.ranges_px:
            return quantize.minmax_to_pixels(q, self.ranges_px[direction][first:last])
        return quantize.to_pixels(q, bound_px=float(self.attrs["bound_px"]))

    def stored_flow(
        self, first: int, last: int, *, backward: bool = False
    ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Flow fields first..last-1 as stored: planes x y x y ...; in pixels each is plane * scale + offset.

        Returns:
            A list of 2 (last-first) planes (H, W) uint8, and their scale and offset, one float64 per plane.
        """
        direction = self._direction(first, last, backward)
        planes = self._decoded(2 * first, 2 * last, direction=direction, gray=True)
        if direction in self.ranges_px:
            low, high = self.ranges_px[direction][first:last].astype(np.float64).reshape(-1, 2).T
            return planes, (high - low) / 255, low
        bound = float(self.attrs["bound_px"])
        return planes, np.full(len(planes), 2 * bound / 255), np.full(len(planes), -bound)

    def _direction(self, first: int, last: int, backward: bool) -> str:
        """The name of the direction, once it is known that these fields are stored."""
        self._check("flow", first, last)
        direction = "backward" if backward else "forward"
        if direction not in self._offsets:
            raise ValueError(
                f"{self._store.path} holds no backward flow; run the Flow stage with [flow] backward = true"
            )
        return direction

    def _check(self, kind: str, first: int, last: int) -> None:
        if self._store.kind != kind:
            raise ValueError(f"{self._store.path} is a {self._store.kind} store; it has no .{kind}()")
        if not 0 <= first < last <= len(self):
            raise IndexError(f"{kind}({first}, {last}) of clip {self.id!r}: needs 0 <= first < last <= {len(self)}")


class Store(Mapping[str, StoredClip]):
    """Read-only view of a frames or flow store, or of one shard: clip id -> StoredClip, for the clips that are ok.

    Files are opened when first needed, once per process, at most 32 shards at a time. Open files are not shared with a
    forked process and not pickled.
    """

    def __init__(self, path: Path | str, kind: str):
        self.path, self.kind, self.planes = Path(path), kind, 1 if kind == "frames" else 2
        if self.path.is_dir():
            self.path = self.path / "index.h5"
        with open_file(self.path, kind) as file:
            self.attrs = plain_attrs(file.attrs)
            names = file["table"].dtype.names
            rows = [dict(zip(names, map(text, row), strict=True)) for row in file["table"][()].tolist()]
        self.rows = {
            row["id"]: row | {"split": row.get("split", ""), "shard": row.get("shard", self.path.stem)} for row in rows
        }
        told = {video_id: row["reason"] for video_id, row in self.rows.items() if row["reason"]}
        self.failed = {video_id: row["reason"] for video_id, row in self.rows.items() if row["status"] != "ok"}
        self.odd = {video_id: reason for video_id, reason in told.items() if video_id not in self.failed}
        self._folder = self.path.parent if "shard" in self.attrs else self.path.parent / "shards"
        self._forget()

    def shard_paths(self) -> list[Path]:
        """Paths of the shards, sorted by name."""
        return [self._folder / f"{name}.h5" for name in sorted({row["shard"] for row in self.rows.values()})]

    @property
    def folder(self) -> Path:
        """Folder of the store."""
        return self._folder.parent

    def parts(self) -> dict[str, str]:
        """Clip id -> part, in the split that the store was first made for."""
        return {video_id: row["split"] for video_id, row in self.rows.items()}

    @property
    def key(self) -> str:
        """Content key, 12 hex digits: changes when any clip's images or labels do."""
        return self.attrs["key"]

    def __len__(self) -> int:
        return len(self.rows) - len(self.failed)

    def __iter__(self) -> Iterator[str]:
        return (video_id for video_id in self.rows if video_id not in self.failed)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {self.kind}, {len(self)} clips, {len(self.failed)} failed)"

    def __contains__(self, video_id: object) -> bool:
        return video_id in self.rows and video_id not in self.failed

    def __getitem__(self, video_id: str) -> StoredClip:
        if video_id not in self:
            raise KeyError(f"{video_id!r} is not in {self.path}: {self.failed.get(video_id, 'no such clip')}")
        self._own_process()
        if video_id not in self._clips:
            self._clips[video_id] = StoredClip(self, video_id)
        self._clips.move_to_end(video_id)
        while len(self._clips) > _KNOWN_CLIPS:
            self._clips.popitem(last=False)
        return self._clips[video_id]

    @contextlib.contextmanager
    def _located(self, video_id: str) -> Iterator[h5py.Group]:
        """The clip's group; an error raised while it is in use gets a note saying where.

        Raises:
            DamagedFile: something is missing in the group, or h5py fails otherwise in the file's structures.
        """
        try:
            yield self._shard(self.rows[video_id]["shard"])[f"clips/{video_id}"]
        except Exception as error:
            error.add_note(f"while reading clip {video_id!r} of {self.path} ({self.rows[video_id]['shard']})")
            if isinstance(error, (KeyError, RuntimeError)):
                what = f"clip {video_id!r} of {self.folder}: {error}"
                raise DamagedFile(f"{what}; {repair_advice(self.folder)}") from error
            raise

    def _shard(self, name: str) -> h5py.File:
        self._own_process()
        if name not in self._shards:
            self._shards[name] = open_file(self._folder / f"{name}.h5", self.kind)
        self._shards.move_to_end(name)
        while len(self._shards) > _OPEN_SHARDS:
            self._shards.popitem(last=False)[1].close()
        return self._shards[name]

    def _own_process(self) -> None:
        if self._process != os.getpid():  # forked: the parent's handles share its file positions and locks
            self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._shards: OrderedDict[str, h5py.File] = OrderedDict()
        self._clips: OrderedDict[str, StoredClip] = OrderedDict()

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        for file in self._shards.values():
            file.close()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_shards", "_clips", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def open_frames(path: Path | str) -> Store:
    """Open a frames store by its folder or its `index.h5`, or one of its shards."""
    return Store(path, "frames")


def open_flow(path: Path | str) -> Store:
    """Open a flow store by its folder or its `index.h5`, or one of its shards."""
    return Store(path, "flow")
