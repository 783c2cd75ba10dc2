"""What is printed for people: tables, sizes, names that may hold anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """As wide as its cells, which are shown whole; a reason or a note may be a sentence, and comes last."""
    if not rows:
        return
    names = sorted(rows[0], key=lambda name: name in ("reason", "note"))
    cells = [names] + [[plain(str(row[name])) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def plain(text: str) -> str:
    """On one line: what cannot be printed is escaped, since a file's name may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def in_bytes(count: float) -> str:
    """A number of bytes for people: 17 B, 3.4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
