"""One clip as a list or a folder tells it, before anybody has opened its video."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

PARTS = ("train", "val", "test", "unused")


@dataclass(frozen=True)
class Row:
    """One clip as its layout tells it. `part` is one of PARTS, or "" where the split is still to be drawn by group."""

    id: str
    path: str
    class_name: str
    group: str
    part: str


def folded(text: str) -> str:
    """Text without regard to case and to how accents are composed."""
    return unicodedata.normalize("NFC", text).casefold()


def safe_path(path: str, where: str) -> str:
    """Check a path that a list names.

    Args:
        path: with forward slashes.
        where: the list, for the message.

    Returns:
        The path without empty parts and `.`.

    Raises:
        ValueError: it is absolute, empty or holds `..`.
    """
    parts = path.split("/")
    if ".." in parts or path.startswith("/") or not path.strip("/. "):
        raise ValueError(f"{where}: {path!r} is not a path below the folder of the videos")
    return "/".join(part for part in parts if part not in ("", "."))
