"""Files of tensors, written whole or not at all, read without executing their code; torch's threads; true float32."""

from __future__ import annotations

import contextlib
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.system.digests import file_hash
from pipeline.system.errors import DamagedFile, is_out_of_memory
from pipeline.system.files import MAY_PASS, commit
from pipeline.system.limits import usable_cores


def save_tensors(path: Path, values: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values, whole or not at all."""
    # an open file, since torch would store the name of a path: so equal values give equal bytes
    with commit(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(values, file)
        except RuntimeError as error:
            # torch then complains of a short file, which hides what ended the write (Ctrl-C, a full disk)
            hidden = error.__context__
            while hidden is not None and not isinstance(hidden, (KeyboardInterrupt, OSError)):
                hidden = hidden.__context__
            raise hidden or error from None


def read_tensors(path: Path | str, *, mmap: bool = False) -> Any:
    """Read what `torch.save` wrote, onto the CPU; with `mmap` a tensor is read when it is used.

    Raises:
        OSError, MemoryError: the file cannot be read now; this says nothing about its content.
        DamagedFile: its content is not tensors and plain values.
    """
    try:
        # torch cannot map older files, which are not zip files
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except Exception as error:  # whatever an unpickler or zip reader may raise
        if isinstance(error, OSError) and error.errno in MAY_PASS:  # it may have passed, and nothing is damaged
            error.add_note(f"while reading {path}")
            raise
        file_hash(Path(path))  # torch confuses damage and a failing disk: raises for the latter
        if is_out_of_memory(error):
            raise MemoryError(f"there is not enough memory to read {path}") from error
        raise DamagedFile(
            f"{path} cannot be loaded with weights_only=True ({type(error).__name__}): it is damaged, or holds "
            "something else"
        ) from error


def limit_threads() -> None:
    """Limit torch to `usable_cores` threads, unless OMP_NUM_THREADS sets the number.

    In a container it would start one for each core of the machine, and they would wait for one another.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


@contextlib.contextmanager
def true_float32() -> Iterator[None]:
    """Within the block a GPU multiplies and convolves in true float32, not in TF32, which has a 10-bit mantissa.

    torch uses TF32 for convolutions by default, and for matrices if the user or an environment variable asked for it.
    The settings apply to the whole process: with blocks in several threads, the last one to end restores them.
    """
    with _IN_TRUE_FLOAT32.lock:
        _IN_TRUE_FLOAT32.blocks += 1
        if _IN_TRUE_FLOAT32.blocks == 1:
            _IN_TRUE_FLOAT32.restore.enter_context(_without_tf32())
    try:
        yield
    finally:
        with _IN_TRUE_FLOAT32.lock:
            _IN_TRUE_FLOAT32.blocks -= 1
            if _IN_TRUE_FLOAT32.blocks == 0:
                _IN_TRUE_FLOAT32.restore.close()


class _Blocks:
    """The number of open `true_float32` blocks, and what restores the settings after them."""

    def __init__(self):
        self.lock, self.blocks, self.restore = threading.Lock(), 0, contextlib.ExitStack()


_IN_TRUE_FLOAT32 = _Blocks()


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    # torch has two interfaces for this; both are set, because either may have been used, and the older one cannot be
    # read while they differ
    libraries = torch.backends.cudnn, torch.backends.cuda.matmul
    operations = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    allowed = [_allows_tf32(library) for library in libraries]
    precisions = [operation.fp32_precision for operation in operations]
    try:
        _set("allow_tf32", libraries, [False, False])
        _set("fp32_precision", operations, ["ieee"] * 3)
        yield
    finally:
        _set("allow_tf32", libraries, allowed)
        _set("fp32_precision", operations, precisions)


def _allows_tf32(library: Any) -> bool | None:
    try:
        return library.allow_tf32
    except RuntimeError:  # the newer interface was used
        return None


def _set(name: str, holders: Sequence[Any], values: Sequence[Any]) -> None:
    for holder, value in zip(holders, values, strict=True):
        if value is not None:
            setattr(holder, name, value)
