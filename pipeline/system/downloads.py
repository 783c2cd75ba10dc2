"""Published files of weights in torch hub's folder, whose names end in the first digits of their SHA-256.

Importing this does not import torch.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from pipeline.system.errors import UserError


def folder() -> Path:
    """The folder where torch hub keeps its downloads, by torch's own rule."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", str(Path(cache) / "torch"))).expanduser() / "hub" / "checkpoints"


def path_of(url: str) -> Path:
    """Where the file of this address lies, or will."""
    return folder() / PurePosixPath(url).name


def missing(url: str) -> str:
    """Name of the file of this address if it is not here yet; otherwise ""."""
    path = path_of(url)
    return "" if path.is_file() else path.name


def fetched(url: str) -> Path:
    """The file of this address, downloaded if it is not here yet.

    Raises:
        OSError, RuntimeError: it cannot be downloaded, or something else came.
    """
    path = path_of(url)
    if not path.is_file():
        import torch

        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), _digits(path), progress=False)
    return path


def check_content(path: Path) -> None:
    """Compare a file with the digits of SHA-256 in its name: it may have been put there by hand.

    Raises:
        UserError: the file is damaged; the message says what to do.
    """
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(wanted := _digits(path)):
        raise UserError(f"{path} is damaged: its SHA-256 begins with {found[:8]}, not {wanted}; delete it")


def _digits(path: Path) -> str:
    """The digits of SHA-256 in a file's name; "" if there are none."""
    found = re.search(r"-([0-9a-f]{8,})\.\w+$", path.name)
    return found[1] if found else ""
