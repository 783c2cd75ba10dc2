"""Reading stores: a lazy, picklable view that reads only the requested windows."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

from pipeline.store.container import (
    open_file,
    opened,
    plain_attrs,
    read_table,
    refuse_fault_of_machine,
    repair_advice,
)
from pipeline.store.stored_clip import StoredClip
from pipeline.store.writer import content_key
from pipeline.system.errors import DamagedFile

_OPEN_SHARDS = 32
_KNOWN_CLIPS, _KNOWN_IMAGES = 16384, 12 << 20  # of clips read before, the places of images are kept: at most 100 MB


class Store(Mapping[str, StoredClip]):
    """Read-only view of a frames or flow store, or of one shard: clip id -> StoredClip, for the clips that are ok.

    Each process opens files when first needed, at most 32 shards at a time. Open files are neither shared with a forked
    process nor pickled. Threads may share a store: opening clips takes turns, reading and decoding images does not.
    """

    def __init__(self, path: Path | str, kind: str):
        self.path, self.kind, self.planes = target_of(Path(path)), kind, 1 if kind == "frames" else 2
        if self.path.is_dir():
            self.path = self.path / "index.h5"
        with opened(self.path, kind) as file:
            self.attrs = plain_attrs(file.attrs)
            names, found = read_table(file)
            rows = [dict(zip(names, row, strict=True)) for row in found]
            for row in rows:  # a shard does not have these columns
                row.setdefault("split", "")
                row.setdefault("shard", self.path.stem)
            self.rows = {row["id"]: row for row in rows}
            self.failed = {row["id"]: row["reason"] for row in rows if row["status"] != "ok"}
            self.odd = {row["id"]: row["reason"] for row in rows if row["status"] == "ok" and row["reason"]}
            if "shard" not in self.attrs and self.key != content_key(kind, self.attrs["digest"], found):
                raise RuntimeError("its key is not that of its table")
        folder = self.path.parent.absolute()  # the working folder may change
        self._folder = folder if "shard" in self.attrs else folder / "shards"
        self._forget()

    def shard_paths(self) -> list[Path]:
        """Paths of the shards, sorted by name."""
        return [self._folder / f"{name}.h5" for name in sorted({row["shard"] for row in self.rows.values()})]

    def shard_path(self, video_id: str) -> Path:
        """Path of the shard that holds the clip."""
        return self._folder / f"{self.rows[video_id]['shard']}.h5"

    @property
    def folder(self) -> Path:
        """Folder of the store."""
        return self._folder.parent

    def parts(self) -> dict[str, str]:
        """Clip id -> part, in the split for which the store was first made."""
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
        with self._in_turn():
            if video_id not in self._clips:
                self._clips[video_id] = StoredClip(self, video_id)
                self._images += self._clips[video_id].images_in_all
            self._clips.move_to_end(video_id)
            while len(self._clips) > 1 and (len(self._clips) > _KNOWN_CLIPS or self._images > _KNOWN_IMAGES):
                self._images -= self._clips.popitem(last=False)[1].images_in_all
            return self._clips[video_id]

    @contextlib.contextmanager
    def located(self, video_id: str) -> Iterator[h5py.Group]:
        """The clip's group; an error raised while it is in use gets a note saying where. Other threads wait meanwhile.

        Raises:
            DamagedFile: something is missing from the group, or h5py fails otherwise on the file's structures.
            OSError: from the disk.
        """
        with self._in_turn(), self.noting(video_id):
            shard = self._shard(self.rows[video_id]["shard"])
            try:
                yield shard[f"clips/{video_id}"]
            except (OSError, KeyError, RuntimeError, UnicodeDecodeError) as error:
                refuse_fault_of_machine(self.shard_path(video_id), error)
                raise self.damaged(f"clip {video_id!r}", error) from error

    def damaged(self, what: str, why: object) -> DamagedFile:
        """The error that says that something in this store is damaged, why, and what to do."""
        return DamagedFile(f"{what} of {self.folder}: {why}; {repair_advice(self.folder)}")

    @contextlib.contextmanager
    def noting(self, video_id: str) -> Iterator[None]:
        """Within the block any error gets a note: which clip was read, of which store and shard."""
        try:
            yield
        except Exception as error:
            error.add_note(f"while reading clip {video_id!r} of {self.path} ({self.rows[video_id]['shard']})")
            raise

    def _shard(self, name: str) -> h5py.File:
        if name not in self._shards:
            self._shards[name] = open_file(self._folder / f"{name}.h5", self.kind)
        self._shards.move_to_end(name)
        while len(self._shards) > _OPEN_SHARDS:
            self._shards.popitem(last=False)[1].close()
        return self._shards[name]

    def _in_turn(self) -> threading.RLock:
        """The lock of this process's open files: a thread that opens a shard may close that of another."""
        if self._process != os.getpid():  # forked: handles share the parent's file positions and locks
            self._forget()
        return self._lock

    def _forget(self) -> None:
        self._shards: OrderedDict[str, h5py.File] = OrderedDict()
        self._clips: OrderedDict[str, StoredClip] = OrderedDict()
        self._images = 0  # of these clips
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; they are reopened when needed."""
        with self._in_turn():
            for file in self._shards.values():
                file.close()
            self._shards.clear()
            self._clips.clear()
            self._images = 0

    def __getstate__(self) -> dict[str, Any]:
        own = "_shards", "_clips", "_images", "_process", "_lock"
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def target_of(path: Path) -> Path:
    """The path, or where it leads if it is a link from elsewhere to an index: the shards lie beside that.

    A shard that is a link, as to a cache where it has another name, stays what it is.
    """
    if not path.is_symlink() or not path.is_file() or path.with_name("shards").is_dir():
        return path
    target = path.resolve()
    return target if target.with_name("shards").is_dir() else path


def open_frames(path: Path | str) -> Store:
    """Open a frames store by its folder or its `index.h5`, or one of its shards."""
    return Store(path, "frames")


def open_flow(path: Path | str) -> Store:
    """Open a flow store by its folder or its `index.h5`, or one of its shards."""
    return Store(path, "flow")
