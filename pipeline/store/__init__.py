"""All HDF5 code: the file formats, and how files are committed and read. See docs/format.md.

A *store* is a folder: `index.h5` (one table row per clip, one external link per usable clip) and `shards/*.h5` (JPEG
bytes and offsets). Other tables (catalog, scores) are plain named arrays. Every file has its format's name and version.
"""

from pipeline.store.catalogs import read_catalog, write_catalog
from pipeline.store.container import (
    FORMAT_VERSION,
    crc32_of_parts,
    read_arrays,
    read_attrs,
    repair_advice,
    repair_command,
    write_arrays,
)
from pipeline.store.heap import refuse_endless_heap
from pipeline.store.reader import Store, StoredClip, open_flow, open_frames, target_of
from pipeline.store.views import ClipViews, Views, ViewWriter, create_scores, read_every_view
from pipeline.store.writer import (
    ClipWriter,
    Record,
    ShardWriter,
    create_shard,
    read_records,
    shard_is_current,
    write_index,
)

__all__ = [
    "FORMAT_VERSION",
    "ClipViews",
    "ClipWriter",
    "Record",
    "ShardWriter",
    "Store",
    "StoredClip",
    "ViewWriter",
    "Views",
    "crc32_of_parts",
    "create_scores",
    "create_shard",
    "open_flow",
    "open_frames",
    "read_arrays",
    "read_attrs",
    "read_catalog",
    "read_every_view",
    "read_records",
    "refuse_endless_heap",
    "repair_advice",
    "repair_command",
    "shard_is_current",
    "target_of",
    "write_arrays",
    "write_catalog",
    "write_index",
]
