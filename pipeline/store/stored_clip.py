"""One clip of a store; each window of its images is read with one read, then decoded."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline import quantize
from pipeline.store.container import checked_attrs, crc32_of_parts, repair_command
from pipeline.system.errors import ClipError, DamagedFile, UserError
from pipeline.video import jpeg

if TYPE_CHECKING:
    from pipeline.store.reader import Store

_READ_BYTES = 8 << 20
_PATHS = {"forward": "", "backward": "backward/"}  # where a clip's group holds the images of each direction


class _Version(NamedTuple):
    """What distinguishes a file from another that took its place."""

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, file: int) -> _Version:
        """The version of an open file, given its descriptor."""
        about = os.fstat(file)
        return cls(about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)


def _read_whole(file: int, count: int, start: int) -> bytes:
    """Bytes of an open file. If a page cannot be read, Linux first gives those before it, and no error."""
    parts: list[bytes] = []
    while count and (part := os.pread(file, count, start)):
        parts.append(part)
        count, start = count - len(part), start + len(part)
    return b"".join(parts)


def _in_order(offsets: np.ndarray, nbytes: int) -> bool:
    """Whether the offsets are valid for images of this many bytes in all."""
    return len(offsets) > 0 and offsets[0] == 0 and offsets[-1] <= nbytes and bool((offsets[1:] >= offsets[:-1]).all())


class StoredClip:
    """One clip of a store. It reads only what is asked for: one read of the shard per window, then JPEG decoding.

    HDF5 keeps a clip's images in one contiguous piece of the shard, so their place is all one needs to know. Later
    windows are read from there without HDF5, with which opening one of thousands of shards takes as long as decoding a
    frame.
    """

    def __init__(self, store: Store, video_id: str):
        self._store, self.id = store, video_id
        with store.located(video_id) as group:
            where = {direction: path for direction, path in _PATHS.items() if f"{path}offsets" in group}
            self._offsets = {direction: group[f"{path}offsets"][()] for direction, path in where.items()}
            images = {direction: group[f"{path}jpeg"] for direction, path in where.items()}
            self._begins = {direction: data.id.get_offset() for direction, data in images.items()}
            ordered = (_in_order(self._offsets[direction], len(data)) for direction, data in images.items())
            if "forward" not in images or not all(ordered):
                raise store.damaged(f"clip {video_id!r}", "where its images begin and end makes no sense")
            self._version = _Version.of(group.file.id.get_vfd_handle())
            ranges = {direction: f"{path}range_px" for direction, path in where.items()}
            self.ranges_px = {direction: group[name][()] for direction, name in ranges.items() if name in group}
            """Direction -> (T - 1, 2, 2) float32, pixels: [field][x, y][minimum, maximum]; only if min-max scaled."""
            self.attrs = checked_attrs(group)
            """The clip's attributes as plain values."""
        if self.attrs.get("crc32") != store.rows[video_id]["crc32"]:  # a killed run, or a copied file
            raise DamagedFile(
                f"clip {video_id!r} of {store.folder}: its shard is not the one that the index was made from; run the "
                f"stage again, or first `{repair_command(store.folder)}`, if it finds nothing to do"
            )

    @property
    def height(self) -> int:
        """Height of the images in pixels."""
        return int(self.attrs["height"])

    @property
    def width(self) -> int:
        """Width of the images in pixels."""
        return int(self.attrs["width"])

    def __len__(self) -> int:
        """Frames T in a frames store, fields T - 1 in a flow store."""
        return (len(self._offsets["forward"]) - 1) // self._store.planes

    def __repr__(self) -> str:
        what = "frames" if self._store.kind == "frames" else "flow fields"
        return f"StoredClip({self.id!r}, {len(self)} {what} of {self.height} x {self.width})"

    @property
    def seconds(self) -> np.ndarray:
        """(T,) float64 presentation times in seconds (frames store)."""
        self._check_kind("frames", "seconds")
        with self._store.located(self.id) as group:
            return group["seconds"][()]

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

    @property
    def images_in_all(self) -> int:
        """Number of stored images of all directions."""
        return sum(map(self._count, self._offsets))

    def _count(self, direction: str) -> int:
        return len(self._offsets[direction]) - 1

    def jpegs(self, first: int = 0, last: int | None = None, *, direction: str = "forward") -> Iterator[np.ndarray]:
        """JPEG bytes of images first..last-1, (n,) uint8 each, in reads of up to 8 MiB: usually one per window."""
        count = self._count(self._known(direction))
        offsets, last = self._offsets[direction], count if last is None else last
        if not 0 <= first <= last <= count:
            raise IndexError(f"images {first} to {last} of clip {self.id!r}: needs 0 <= first <= last <= {count}")
        while first < last:
            until = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _READ_BYTES, "right")) - 1)
            until = min(until, last)
            data = self._bytes(direction, int(offsets[first]), int(offsets[until]))
            for image in range(first, until):
                yield data[offsets[image] - offsets[first] : offsets[image + 1] - offsets[first]]
            first = until

    def _bytes(self, direction: str, begin: int, end: int) -> np.ndarray:
        """Bytes begin..end-1 of a direction's images.

        Raises:
            DamagedFile: the shard has changed, or another file has taken its place.
        """
        start, path = self._begins[direction], self._store.shard_path(self.id)
        if start is None or not path.is_file():  # a tool has chunked it; or let HDF5 say what is missing
            with self._store.located(self.id) as group:
                return group[f"{_PATHS[direction]}jpeg"][begin:end]
        with self._store.noting(self.id), path.open("rb", buffering=0) as file:
            if _Version.of(file.fileno()) != self._version:
                raise DamagedFile(f"{path} has changed since clip {self.id!r} was opened; open the store again")
            return np.frombuffer(_read_whole(file.fileno(), end - begin, start + begin), np.uint8)

    def checksum(self) -> int:
        """CRC-32 over all images of the clip as they are now; `attrs["crc32"]` is that of the images as written."""
        return crc32_of_parts(
            functools.reduce(lambda crc32, data: zlib.crc32(data, crc32), self.jpegs(direction=direction), 0)
            for direction in self.directions
        )

    def images(self, first: int, last: int, *, direction: str = "forward", gray: bool = False) -> np.ndarray:
        """Stored images first..last-1, decoded: (n, H, W, 3) RGB; (n, H, W) if `gray` or planes of flow; uint8."""
        gray = gray or self.kind == "flow"
        found = self._decoded(first, last, direction=direction, gray=gray)
        return np.stack(found) if found else np.empty((0, self.height, self.width) + (() if gray else (3,)), np.uint8)

    def _decoded(self, first: int, last: int, *, direction: str, gray: bool) -> list[np.ndarray]:
        what = f"images {first} to {last - 1} of clip {self.id!r}"
        try:
            found = [jpeg.decode(data, gray=gray) for data in self.jpegs(first, last, direction=direction)]
        except ClipError as error:
            raise self._store.damaged(what, error) from error
        if len({image.shape for image in found}) > 1:
            raise self._store.damaged(what, "they differ in size")
        return found

    def frames(self, first: int, last: int) -> np.ndarray:
        """Frames first..last-1: (last-first, H, W, 3) uint8 RGB."""
        self._check("frames", first, last)
        return self.images(first, last)

    def gray(self, first: int, last: int) -> np.ndarray:
        """Luminance of frames first..last-1: (last-first, H, W) uint8.

        JPEG stores luminance as a separate plane. Reading it costs half as much as decoding color and converting to
        gray, and saves one rounding.
        """
        self._check("frames", first, last)
        return self.images(first, last, gray=True)

    def flow(self, first: int, last: int, *, backward: bool = False) -> np.ndarray:
        """Flow fields first..last-1: (last-first, 2, H, W) float32 pixels per frame, x then y, for either scaling."""
        direction = self._direction(first, last, backward)
        planes = self.images(2 * first, 2 * last, direction=direction)
        q = planes.reshape(last - first, 2, *planes.shape[1:])
        if direction in self.ranges_px:
            return quantize.minmax_to_pixels(q, self.ranges_px[direction][first:last])
        return quantize.to_pixels(q, bound_px=float(self.attrs["bound_px"]))

    def stored_flow(
        self, first: int, last: int, *, backward: bool = False, encoded: bool = False
    ) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Flow fields first..last-1 as stored: planes x y x y ...; in pixels each is plane * scale + offset.

        Returns:
            A list of 2 (last-first) planes (H, W) uint8, and their scale and offset, one float64 per plane. If
            `encoded`, the list holds the JPEG bytes of the planes instead, (n,) uint8 each.
        """
        direction = self._direction(first, last, backward)
        if encoded:
            planes = list(self.jpegs(2 * first, 2 * last, direction=direction))
        else:
            planes = self._decoded(2 * first, 2 * last, direction=direction, gray=True)
        if direction in self.ranges_px:
            return planes, *quantize.minmax_factors(self.ranges_px[direction][first:last])
        return planes, *quantize.factors(len(planes), bound_px=float(self.attrs["bound_px"]))

    def _direction(self, first: int, last: int, backward: bool) -> str:
        """The name of the direction, after checking that these fields are stored."""
        self._check("flow", first, last)
        return self._known("backward" if backward else "forward")

    def _known(self, direction: str) -> str:
        if direction in self._offsets:
            return direction
        if self.kind == "flow" and direction == "backward":
            raise UserError(
                f"{self._store.path} holds no backward flow; run the Flow stage with [flow] backward = true"
            )
        raise ValueError(f"direction is {direction!r}; {self._store.path} has {', '.join(self.directions)}")

    def _check_kind(self, kind: str, name: str) -> None:
        if self._store.kind != kind:
            raise ValueError(f"{self._store.path} is a {self._store.kind} store; it has no .{name}")

    def _check(self, kind: str, first: int, last: int) -> None:
        self._check_kind(kind, f"{kind}()")
        if not 0 <= first < last <= len(self):
            raise IndexError(f"{kind}({first}, {last}) of clip {self.id!r}: needs 0 <= first < last <= {len(self)}")
