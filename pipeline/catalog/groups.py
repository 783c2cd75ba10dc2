"""The groups of clips: clips of one source video, or of one person, which belong to one part of a split."""

from __future__ import annotations

import re
from dataclasses import replace

from pipeline.catalog.rows import ListedClip, composed, path_id
from pipeline.specs import DatasetSpec
from pipeline.system.console import some
from pipeline.system.errors import UserError


def grouped(rows: list[ListedClip], spec: DatasetSpec) -> list[ListedClip]:
    """The rows, those without a group in the group that the pattern finds in the path, or else in one of their own.

    Raises:
        UserError: the pattern finds no group in a path.
    """
    if not spec.group_pattern:
        return [row if row.group else replace(row, group=path_id(row.path)) for row in rows]
    found = {row.path: re.search(spec.group_pattern, row.path) for row in rows if not row.group}
    if lost := [path for path, match in found.items() if not (match and match["group"])]:
        raise UserError(
            f"[dataset] group_pattern {spec.group_pattern!r} finds no group in {len(lost)} of {len(found)} paths: "
            f"{some(lost, 3)}"
        )
    return [row if row.group else replace(row, group=composed(found[row.path]["group"])) for row in rows]


def refuse_torn_groups(name: str, rows: list[ListedClip]) -> None:
    """Refuse groups that the list of this name spreads over several parts.

    Raises:
        UserError: there are such groups; the message names them.
    """
    parts: dict[str, set[str]] = {}
    for row in rows:
        parts.setdefault(row.group, set()).update({row.part} - {"unused"})
    torn = sorted(group for group, of in parts.items() if len(of) > 1)
    if torn:
        raise UserError(
            f"{name}: {len(torn)} groups have clips in more than one of train, val and test: {some(torn)}; a group (a "
            "person, a source video) belongs to one part; correct the split column, or name no groups"
        )
