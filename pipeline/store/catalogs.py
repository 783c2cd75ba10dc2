"""The catalog as a file: one array per field of `Clip`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalog import Catalog, Clip
from pipeline.store.container import read_arrays, write_arrays
from pipeline.system.files import inside

_COLUMN_OF = {"part": "split"}  # fields of `Clip` named differently in a file


def write_catalog(path: Path | str, catalog: Catalog, **attrs: Any) -> None:
    """Write a catalog: one array per field of `Clip`."""
    columns: dict[str, Any] = {}
    for field in Clip.__dataclass_fields__:
        values = [getattr(clip, field) for clip in catalog.clips]
        name = _COLUMN_OF.get(field, field)
        columns[name] = np.array(values, np.int64) if field in ("label", "bytes", "mtime_ns") else values
    columns |= {"classes": catalog.classes, "absent": catalog.absent}
    keys = {"split_name": catalog.split_name, "videos_key": catalog.videos_key, "key": catalog.key}
    write_arrays(path, "catalog", columns, {**attrs, **keys})


def read_catalog(path: Path | str) -> Catalog:
    """Read a catalog; `path` is the file, or the stage's folder that holds its `catalog.h5`."""
    arrays, attrs = read_arrays(inside(path, "catalog.h5"), "catalog")
    classes, absent = tuple(arrays.pop("classes")), tuple(arrays.pop("absent"))
    columns = [values.tolist() if isinstance(values, np.ndarray) else values for values in arrays.values()]
    field_of = {column: field for field, column in _COLUMN_OF.items()}
    fields = [field_of.get(name, name) for name in arrays]
    clips = tuple(Clip(**dict(zip(fields, row, strict=True))) for row in zip(*columns, strict=True))
    return Catalog(clips=clips, classes=classes, split_name=attrs["split_name"], absent=absent)
