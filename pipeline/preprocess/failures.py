"""What is said of clips and shards that failed, and when there are too many of them."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline import store
from pipeline.system import files
from pipeline.system.console import plain
from pipeline.system.errors import StageFailed, with_notes
from pipeline.system.progress import say


def error_message(error: BaseException) -> str:
    """Type and message of a shard's error; for a full disk only that, since HDF5's message is several lines.

    The notes follow, such as the worker that raised it: on one of many machines a disk may not be mounted.
    """
    full = isinstance(error, OSError) and error.errno in files.NO_SPACE
    message = os.strerror(error.errno) if full else str(error)
    return with_notes(f"{type(error).__name__}: {message}", error)


def say_what_is_odd(records: list[store.Record]) -> None:
    """Report clips that are used although fewer frames decode than their video promises, as in half a download."""
    odd = [f"{plain(record.id)}: {record.reason}" for record in records if record.status == "ok" and record.reason]
    if odd:
        say(f"frames: {len(odd)} of {len(records)} clips are used but incomplete, such as {'; '.join(odd[:3])}")


def refuse_too_many(folder: Path, kind: str, records: list[store.Record], max_bad_fraction: float) -> None:
    """Say which clips failed.

    Raises:
        StageFailed: they are more than this fraction of all.
    """
    failed = [record for record in records if record.status != "ok"]
    for record in failed[:20]:
        say(f"{kind}: {plain(record.id)} failed: {record.reason}")
    if len(failed) > 20:
        say(f"{kind}: ... and {len(failed) - 20} more failed clips")
    if len(failed) > max_bad_fraction * len(records):
        names = "; ".join(f"{plain(record.id)} ({record.reason})" for record in failed[:20])
        also = "" if kind == "frames" else " (in Python: the argument of make_flow)"
        raise StageFailed(
            f"{kind}: {len(failed)} of {len(records)} clips failed, more than [frames] max_bad_fraction = "
            f"{max_bad_fraction:g}{also} allows: {names}. Fix or remove these videos, or allow a larger fraction; if "
            f"the fault was not theirs (a time limit), `{store.repair_command(folder)} --failed` "
            "retries them."
        )
