"""Files of tensors, written whole or not at all, and read without executing code that they may hold; true float32."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import DamagedFile
from pipeline.files import commit, file_hash


def save_tensors(path: Path, values: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values, whole or not at all."""
    with commit(path) as temporary:
        torch.save(values, temporary)


def read_tensors(path: Path | str, *, mmap: bool = False) -> Any:
    """Read what `torch.save` wrote, onto the CPU; with `mmap` a tensor is read when it is used.

    Raises:
        OSError, MemoryError: it cannot be read now, and nothing is known about its content.
        DamagedFile: its content is no dict of tensors and plain values.
    """
    try:
        # older files are no zip files, which torch cannot map
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except Exception as error:  # whatever an unpickler or the reader of a zip file may raise
        file_hash(Path(path))  # a failing disk looks like damage to torch, and damage like a failing disk: this tells
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            raise MemoryError(f"there is not enough memory to read {path}") from error
        raise DamagedFile(
            f"{path} cannot be loaded with weights_only=True ({type(error).__name__}): it is damaged, or holds "
            "something else"
        ) from error


@contextlib.contextmanager
def true_float32() -> Iterator[None]:
    """Within the block a GPU multiplies and convolves in true float32, not in TF32, which has a 10-bit mantissa.

    torch uses TF32 for convolutions by default, and for matrices if the user, or an environment variable, asked for it.
    """
    libraries = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [library.allow_tf32 for library in libraries]
    try:
        for library in libraries:
            library.allow_tf32 = False
        yield
    finally:
        for library, allowed in zip(libraries, before, strict=True):
            library.allow_tf32 = allowed
