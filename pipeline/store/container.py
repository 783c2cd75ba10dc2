"""The pipeline's HDF5 files: format name and version, written whole or not at all; named arrays."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import socket
import zlib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.store.heap import refuse_endless_heap
from pipeline.system.errors import DamagedFile, MachineFault, UserError, is_out_of_memory
from pipeline.system.files import commit, nameless_file

FORMAT_VERSION = 1
TEXT = h5py.string_dtype("utf-8")
_READ_WHOLE = 64 << 20  # bytes
_ATTRS_CRC32, _TABLE_CRC32 = "attrs_crc32", "table_crc32"
# HDF5 would keep small writes, and chunks (rdcc_nbytes), until an array is closed, where failures go unreported
_UNBUFFERED = "two-stream-unbuffered"
h5py.register_driver(_UNBUFFERED, lambda access: access.set_sieve_buf_size(0))


@contextlib.contextmanager
def create(path: Path | str, kind: str, attrs: Mapping[str, Any]) -> Iterator[h5py.File]:
    """Create a file of format `two-stream-<kind>`; it exists only if the block ends without an error."""
    with commit(path) as temporary, _named_fault_of_disk(Path(path)):
        file = h5py.File(temporary, "w", driver=_UNBUFFERED, rdcc_nbytes=0)
        try:
            file.attrs["format"] = f"two-stream-{kind}"
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs.update(attrs)
            yield file
            file.flush()  # after this, closing writes next to nothing
            os.fsync(file.id.get_vfd_handle())  # NFS reports a full disk or quota now, to this descriptor alone
        except BaseException:
            _give_up(file)
            raise
        file.close()


def _give_up(file: h5py.File) -> None:
    """Close a file whose content is no longer wanted, discarding what HDF5 has not written yet.

    On a full disk it could not be closed: every array would print a traceback, and the process would crash on exit.
    """
    nowhere = nameless_file()
    os.dup2(nowhere, file.id.get_vfd_handle())
    os.close(nowhere)
    with contextlib.suppress(OSError, RuntimeError):
        file.close()


@contextlib.contextmanager
def opened(path: Path | str, kind: str | None) -> Iterator[h5py.File]:
    """`open_file` for the block; any error that h5py raises in it because the file is damaged becomes DamagedFile."""
    with open_file(path, kind) as file, _named_damage(Path(path)):
        yield file


@contextlib.contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    try:
        yield
    # depends on which HDF5 structure is damaged
    except (OSError, RuntimeError, TypeError, KeyError, UnicodeDecodeError) as error:
        refuse_fault_of_machine(path, error)
        advice = _repair_of(path) or _deletion_of(path)
        raise DamagedFile(f"{path} is damaged ({error}); {advice}") from error


@contextlib.contextmanager
def _named_fault_of_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _refuse_fault_of_disk(path, error)
        raise


def refuse_fault_of_machine(path: Path, error: Exception) -> None:
    """Raise an error of h5py's that does not mean damage, although h5py reports it like damage.

    Raises:
        OSError: the error is from the disk. It says what matters, instead of HDF5's six lines.
        MachineFault: memory could not be allocated.
    """
    _refuse_fault_of_disk(path, error)
    if is_out_of_memory(error):
        raise MachineFault(
            f"there is too little memory to read {path} ({error}); if there is plenty, the file is damaged: "
            f"{_deletion_of(path)}"
        ) from error


def _refuse_fault_of_disk(path: Path, error: Exception) -> None:
    """Raise the disk error hidden in an h5py error: h5py puts errno only into the text of its message."""
    found = re.search(r"file (?:read|write) failed: .*\berrno = (\d+)", str(error), re.DOTALL)
    if found and (number := int(found[1])):
        raise OSError(number, os.strerror(number), str(path)) from None
    if getattr(error, "errno", None):
        raise error


def open_file(path: Path | str, kind: str | None) -> h5py.File:
    """Open a file for reading; reject a format that this code does not know, with a message that says what to do."""
    path = Path(path)
    if not path.is_file():
        if path.parent.name == "shards" and not path.parent.is_dir():  # a disk is not mounted: repair would not help
            raise MachineFault(
                f"{path} does not exist on {socket.gethostname()}, nor does its folder; every worker must see the same "
                f"files under the same paths (if they are gone for good, delete {path.parent.parent / 'index.h5'} too, "
                "and run the stage again)"
            )
        advice = _repair_of(path) or "`python -m pipeline status` shows what has been made"
        raise FileNotFoundError(f"{path} does not exist; {advice}")
    # not a shard, nor scores of single views, of which little may be read; `verify` and `repair` search any file
    if path.parent.name != "shards" and path.stat().st_size <= _READ_WHOLE:
        refuse_endless_heap(path, _deletion_of(path))
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        refuse_fault_of_machine(path, error)  # no permission, or locked: the file need not be damaged
        advice = _repair_of(path) or _deletion_of(path)
        raise DamagedFile(f"{path} is no HDF5 file, or a damaged one ({error}); {advice}") from None
    try:
        _check_format(path, file, kind)
    except BaseException:
        file.close()
        raise
    return file


def _check_format(path: Path, file: h5py.File, kind: str | None) -> None:
    with _named_damage(path):
        about = plain_attrs(file.attrs)
    found, version = about.get("format", "no format attribute"), about.get("format_version", 0)
    if not fnmatchcase(str(found), wanted := f"two-stream-{kind or '*'}"):
        raise UserError(f"{path} holds {found!r}, not {wanted!r}; give the path of the right artifact")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}; this code reads {FORMAT_VERSION}: "
            "update the code, or make the artifact again"
        )


def crc32_of_parts(sums: Iterable[int]) -> int:
    """The checksum of a clip: CRC-32 over the little-endian CRC-32s of its sequences of images."""
    return zlib.crc32(b"".join(each.to_bytes(4, "little") for each in sums))


def repair_advice(folder: Path) -> str:
    """What to do about damage to the store at `folder`, for messages."""
    return f"`{repair_command(folder)}` removes its shard; run the stage again, which makes it again"


def repair_command(folder: Path) -> str:
    """The command that removes what is damaged in the store at `folder`, for messages."""
    return f"python -m pipeline repair {shlex.quote(str(folder))}"


def _repair_of(path: Path) -> str:
    """What to do about a damaged or missing shard; "" for other files.

    Deleting the shard alone does not help: the stage looks only at the index.
    """
    if path.parent.name != "shards":
        return ""
    return repair_advice(path.parent.parent)


def _deletion_of(path: Path) -> str:
    if path.parent.name == "shards":
        return f"delete it, then `{repair_command(path.parent.parent)}`, and run its stage again"
    if path.suffix != ".h5":
        return "our HDF5 files end in .h5"
    if (path.parent.parent / "fusion.json").is_file():  # the file that Fuse looks at
        return f"delete the folder {path.parent.parent} and run Fuse again"
    return "delete it and run its stage again"


def read_attrs(path: Path | str) -> dict[str, Any]:
    """The root attributes of any file of the pipeline, as plain values."""
    with opened(path, None) as file:
        return plain_attrs(file.attrs)


def plain_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as plain Python values."""
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in attrs.items()}


def put_attrs(group: h5py.Group, attrs: Mapping[str, Any]) -> None:
    """Write attributes, and their checksum as one more; for `checked_attrs`."""
    group.attrs.update(attrs)
    group.attrs[_ATTRS_CRC32] = np.uint32(_crc32_of(plain_attrs(attrs)))


def checked_attrs(group: h5py.Group) -> dict[str, Any]:
    """The attributes of a group as plain values.

    Raises:
        RuntimeError: they are not those that were written.
    """
    attrs = plain_attrs(group.attrs)
    if attrs.pop(_ATTRS_CRC32, None) != _crc32_of(attrs):
        raise RuntimeError("its attributes are not those that were written")
    return attrs


def put_table(file: h5py.File, rows: Iterable[tuple], columns: np.dtype) -> None:
    """Write `/table`, and its checksum as a root attribute; for `read_table`."""
    table = np.array(list(rows), columns)
    file.create_dataset("table", data=table)
    file.attrs[_TABLE_CRC32] = np.uint32(_crc32_of([columns.names, *_plain_rows(table)]))


def read_table(file: h5py.File) -> tuple[tuple[str, ...], list[tuple]]:
    """The names of the columns of `/table`, and its rows.

    Raises:
        RuntimeError: as `checked_attrs`, of the table.
    """
    names, rows = file["table"].dtype.names, _plain_rows(file["table"][()])
    if file.attrs.get(_TABLE_CRC32) != _crc32_of([names, *rows]):
        raise RuntimeError("its table is not the one that was written")
    return names, rows


def _plain_rows(table: np.ndarray) -> list[tuple]:
    """Rows of plain Python values; h5py reads text as bytes."""
    return [tuple(cell.decode() if isinstance(cell, bytes) else cell for cell in row) for row in table.tolist()]


def _crc32_of(values: Any) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def write_arrays(path: Path | str, kind: str, arrays: Mapping[str, Any], attrs: Mapping[str, Any]) -> None:
    """Write named arrays (numpy, or lists of str) as one file of format `two-stream-<kind>`."""
    with create(path, kind, attrs) as file:
        put_arrays(file, arrays)


def put_arrays(file: h5py.File, arrays: Mapping[str, Any]) -> None:
    """Write named arrays (numpy, or lists of str) into an open file, and their hash as its attribute `content`."""
    file.attrs["content"] = _arrays_hash(arrays)
    for name, values in arrays.items():
        if isinstance(values, np.ndarray):
            file.create_dataset(name, data=values)
        else:
            file.create_dataset(name, data=np.array(list(values), dtype=object), dtype=TEXT)


def _arrays_hash(arrays: Mapping[str, Any]) -> str:
    """16 hex digits of BLAKE2b over names and values."""
    digest = hashlib.blake2b(digest_size=8)
    for name, values in sorted(arrays.items()):
        plain = values.tobytes() if isinstance(values, np.ndarray) else json.dumps(list(values)).encode()
        digest.update(f"{name} {len(plain)} ".encode() + plain)
    return digest.hexdigest()


def read_arrays(path: Path | str, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what `write_arrays` wrote: (arrays, attributes). Texts come back as lists of str; groups are not read.

    Raises:
        DamagedFile: also if the arrays do not match the hash written with them.
    """
    path = Path(path)
    with opened(path, kind) as file:
        arrays = {
            name: list(data.asstr()[()]) if h5py.check_string_dtype(data.dtype) else data[()]
            for name, data in file.items()
            if isinstance(data, h5py.Dataset)
        }
        attrs = plain_attrs(file.attrs)
    if attrs.get("content") != _arrays_hash(arrays):
        raise DamagedFile(f"{path} is damaged (its arrays are not those that were written); {_deletion_of(path)}")
    return arrays, attrs
