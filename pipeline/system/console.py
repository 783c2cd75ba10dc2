"""Text for people: tables, sizes, and names that may contain any character."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_LIST_SHOWN = 12


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table. Cells are never cut; the columns "reason" and "note", which may hold sentences, come last."""
    if rows:
        names = sorted(rows[0], key=lambda name: name in ("reason", "note"))
        print("\n".join(aligned([names, *([str(row[name]) for name in names] for row in rows)])))


def print_values(values: dict[str, Any]) -> None:
    """Print a line for each value, with its name."""
    for name, value in values.items():
        print(f"  {name:16} {plain(_in_short(value))}")


def _in_short(value: Any) -> str:
    """A value on one line; a long list, such as the loss curve, is shortened to its ends (`--json` has all of it)."""
    if isinstance(value, list) and len(value) > _LIST_SHOWN:
        return f"{_json(value[:3])[:-1]}, ..., {_json(value[-3:])[1:]} ({len(value)} in all)"
    if isinstance(value, (dict, list)):
        return _json(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # names as they are, in any script


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row of cells, with the columns aligned."""
    cells = [list(map(plain, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def plain(text: str) -> str:
    """The text on one line, with unprintable characters escaped: a file name may contain any character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Another program's message on one line: white space becomes single spaces, unprintable characters are escaped."""
    return plain(" ".join(text.split()))


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, for a message: 'a', 'b', 'c', ..."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


def counted(names: Sequence[str]) -> str:
    """How many names, and the first few of them: 4 ('a', 'b', 'c', ...)."""
    return f"{len(names)} ({some(names, 3)})" if names else "0"


def class_difference(first: Sequence[str], second: Sequence[str]) -> str:
    """How two lists of classes differ: in different classes, or in their order."""
    only_first, only_second = (sorted(set(a) - set(b)) for a, b in ((first, second), (second, first)))
    if only_first or only_second:
        return f"different classes: {counted(only_first)} only in the first, {counted(only_second)} only in the second"
    place = next(k for k, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])
    return (
        f"their classes in different orders; class {place} is {first[place]!r} in the first, {second[place]!r} in the "
        "second"
    )


def in_bytes(count: float) -> str:
    """A number of bytes as text: 17 B, 3.4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
