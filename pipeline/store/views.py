"""Scores and features of every single view, beside the means in a scores file; written and read clip by clip."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from pipeline.store.container import create, opened, put_arrays
from pipeline.system.errors import DamagedFile, UserError

_GROUP = "views"


class ViewWriter:
    """Writes a scores file: the views first and the table last."""

    def __init__(self, file: h5py.File, clips: int, views: int):
        self._file, self._shape = file, (clips, views)
        self._clip: dict[str, np.ndarray] = {}  # the views of one clip so far

    def put(self, place: int, first: int, probabilities: np.ndarray, features: np.ndarray) -> None:
        """Take some views of one clip, in their order; the last of them writes all.

        Args:
            place: row of the clip in the table.
            first: index of the first of these views among all the clip's views.
            probabilities, features: (n, K) and (n, D) float32, of n views.
        """
        for name, values in (("probabilities", probabilities), ("features", features)):
            (clips, views), width = self._shape, values.shape[1]
            if name not in self._clip:
                self._clip[name] = np.empty((views, width), np.float32)
                one_clip = {"chunks": (1, views, width), "fletcher32": True, "fillvalue": np.float32(np.nan)}
                self._file.create_dataset(f"{_GROUP}/{name}", (clips, views, width), np.float32, **one_clip)
            self._clip[name][first : first + len(values)] = values
            if first + len(values) == views:  # for a part of them, HDF5 would read and write the whole clip
                self._file[f"{_GROUP}/{name}"][place] = self._clip[name]

    def put_table(self, arrays: Mapping[str, Any]) -> None:
        """Write the table itself, named arrays as for `write_arrays`."""
        put_arrays(self._file, arrays)


@contextlib.contextmanager
def create_scores(path: Path | str, attrs: Mapping[str, Any], *, clips: int, views: int) -> Iterator[ViewWriter]:
    """Create a scores file of `clips` rows with `views` views each; it exists only if the block raises no error."""
    with create(path, "scores", {**attrs, "views": views}) as file:
        yield ViewWriter(file, clips, views)


class ClipViews(NamedTuple):
    """Scores and features of one clip's views: frame by frame, and within a frame crop by crop."""

    probabilities: np.ndarray
    """(views, K) float32; a view that could not be read is NaN."""
    features: np.ndarray
    """(views, D) float32."""


class Views(Mapping[str, ClipViews]):
    """The views in a scores file: clip id -> ClipViews, one clip in memory at a time."""

    def __init__(self, path: Path | str, content: str | None = None):
        """Read the ids only; `content` is the hash of the table that the views belong to, if that has been read.

        Raises:
            UserError: the file holds clips, but no views.
            DamagedFile: it holds another table; reading a clip's views raises it, too, from then on.
        """
        self.path, self._content = Path(path), content
        with self._opened() as file:
            self._content = file.attrs.get("content")
            self._rows = {video_id: row for row, video_id in enumerate(file["video_ids"].asstr()[()])}
            if self._rows and _GROUP not in file:
                if "views" in file.attrs:
                    raise UserError(f"{self.path} holds no views, because none of its clips could be scored")
                raise UserError(f"{self.path} holds no views; score again with [score] per_view = true")

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, video_id: str) -> ClipViews:
        row = self._rows[video_id]
        with self._opened() as file:
            return ClipViews(*(file[f"{_GROUP}/{name}"][row] for name in ClipViews._fields))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[h5py.File]:
        with opened(self.path, "scores") as file:
            if self._content not in (None, file.attrs.get("content")):  # its rows may be of other clips
                raise DamagedFile(f"{self.path} has been written again since it was read; read it again")
            yield file


def read_every_view(path: Path | str) -> None:
    """Read all views of a scores file, if it has any: HDF5 compares those of each clip with their checksum.

    Raises:
        DamagedFile: some of them are not what was written.
    """
    with opened(path, "scores") as file:
        for array in file.get(_GROUP, {}).values():
            for row in range(len(array)):
                _ = array[row]
