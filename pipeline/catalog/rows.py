"""One clip as a split list or a folder describes it, before its video is opened."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.system.errors import UserError

PARTS = ("train", "val", "test", "unused")


@dataclass(frozen=True)
class ListedClip:
    """One clip as its layout describes it. `part` is one of PARTS, or "" if it is yet to be drawn by group."""

    id: str
    path: str
    class_name: str
    group: str
    part: str


def path_id(path: str) -> str:
    """Id of a clip, made from its path: `walk/daria.avi` -> `walk__daria`."""
    return str(PurePosixPath(path).with_suffix("")).replace("/", "__")


def composed(text: str) -> str:
    """The text with its accents composed: two spellings of a person's name must not become two groups."""
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """Normalize a text so that letter case and the Unicode composition of accents do not matter."""
    return composed(text).casefold()


def safe_path(path: str, where: str) -> str:
    """Check a path that a list names.

    Args:
        path: the path, with forward slashes.
        where: name of the list, for the message.

    Returns:
        The path without empty parts and `.`.

    Raises:
        UserError: the path is absolute, empty or holds `..`.
    """
    parts = path.split("/")
    if ".." in parts or path.startswith("/") or not path.strip("/. "):
        raise UserError(f"{where}: {path!r} must be relative to the folder of the videos, and lie below it")
    return "/".join(part for part in parts if part not in ("", "."))


def text_of(file: Path) -> str:
    """The text of a list.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name} is not UTF-8 ({error.reason}, byte {error.start}); save it as UTF-8") from None
