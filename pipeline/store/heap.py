"""Where HDF5 keeps texts: a block of zeros there would hang its library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.system.errors import DamagedFile

_MARK, _VERSION = b"GCOL", b"\x01\0\0\0"
_HEAD, _ALIGNED = 16, 8  # bytes of the head of a collection, and of an object; objects end at multiples of 8
_BLOCK = 1 << 22


def refuse_endless_heap(path: Path, advice: str) -> None:
    """Refuse a file in which HDF5 would look for a text forever; the whole file is read.

    Texts lie in *global heap collections*: objects one after another, each with its size in its head. Object 0 is free
    space, whose size includes the head. HDF5 goes on by these sizes, so where a power cut or a failing disk left zeros,
    it stays at an object 0 of size 0, in native code that hears neither Ctrl-C nor SIGTERM.

    Raises:
        DamagedFile: with `advice`.
        OSError: the file cannot be read.

    Source: HDF5 File Format Specification 3.0, section III.E, Disk Format: Level 1E - Global Heap.
    """
    size_of_file = path.stat().st_size
    with path.open("rb") as file:
        for place in _places_of_mark(file):
            head = _read(file, place, _HEAD)
            size = int.from_bytes(head[8:], "little")
            if head[4:8] != _VERSION or place + size > size_of_file:
                continue  # four bytes of something else
            if _is_endless(_read(file, place, size)):
                raise DamagedFile(f"{path} is damaged (zeros among its texts, after byte {place}); {advice}")


def _places_of_mark(file: BinaryIO) -> Iterator[int]:
    start = 0
    while len(block := _read(file, start, _BLOCK)) >= len(_MARK):
        found = block.find(_MARK)
        while found >= 0:
            yield start + found
            found = block.find(_MARK, found + 1)
        start += len(block) - len(_MARK) + 1  # the mark may lie across two blocks


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _is_endless(collection: bytes) -> bool:
    place = _HEAD
    while place + _HEAD <= len(collection):
        index = int.from_bytes(collection[place : place + 2], "little")
        size = int.from_bytes(collection[place + 8 : place + _HEAD], "little")
        if index:
            size = _HEAD + -(-size // _ALIGNED) * _ALIGNED
        if not size:
            return True
        place += size
    return False
