"""`python -m pipeline plan [TASK] [flags]`: what a run would do and cost, without running anything.

The arguments are those of `luigi --module tasks`, and Luigi itself parses them, so every flag acts as it does there.
Tasks are visited as Luigi would visit them, but none is run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import luigi
from luigi.cmdline_parser import CmdlineParser

import tasks
from pipeline.doctor import machine
from pipeline.estimates import MOMENTS, Total, Work, total
from pipeline.system.console import in_bytes, print_table
from pipeline.system.errors import UserError
from pipeline.system.progress import duration_text
from tasks import checks, mistakes
from tasks.base import Stage
from tasks.session import writing_nothing
from tasks.states import IS_THERE, UNKNOWN, ArtifactState, ArtifactStates, before_of, folder_of

DEFAULT = "FullPipeline"


def main(argv: list[str]) -> int:
    """Print the plan; returns the exit status.

    Raises:
        SystemExit: a mistake on the command line or in luigi.cfg, as one line; or the plan cannot be printed.
    """
    own, of_luigi = _parser().parse_known_args(argv)
    words = _with_task(of_luigi)
    try:
        checks.check_flags(words)
    except UserError as error:
        _parser().error(str(error))
    try:
        with CmdlineParser.global_instance(words) as parser, writing_nothing():
            found = plan(parser.get_task_obj(), quick=own.quick)
    except Exception as error:
        if not (said := mistakes.line_unless_bug(error)):
            raise
        raise SystemExit(f"error: {said}") from None
    try:
        print(json.dumps(found, indent=1)) if own.json else _print(found)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # a broken pipe: the reader, such as `head`, has seen enough
            raise SystemExit(f"error: {error}") from None
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline plan",
        usage="%(prog)s [TASK] [--quick] [--json] [any flag of luigi --module tasks TASK]",
        description="What a run would make, how long it would take and how much disk it would fill, measured on a few "
        f"of your own videos. TASK is {DEFAULT} unless given. Nothing is made or written.",
        epilog="`luigi --module tasks TASK --help-all` lists all other flags.",
        allow_abbrev=False,  # else abbreviations (--js) would be taken for our flags
    )
    parser.add_argument("--quick", action="store_true", help="measure nothing: only what there is and what is missing")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    return parser


def _with_task(argv: list[str]) -> list[str]:
    """The arguments, with the default task if they name none. A first word that is not a flag counts as a task."""
    # not every name that Luigi knows: it treats settings as tasks, but `--dataset demo` does not name a task [demo]
    named = set(argv) & set(tasks.__all__) or (argv and not argv[0].startswith("-"))
    return argv if named else [DEFAULT, *argv]


# --- the plan


def plan(root: luigi.Task, *, quick: bool) -> dict[str, Any]:
    """Every artifact that a task needs, in the order they are made, as plain JSON values.

    Args:
        root: a stage, or a task that requires stages.
        quick: measure nothing.

    Returns:
        {"task", "rows", "total", "artifacts", "disk_free", "enough", "refused", "load", "cores", "busy"}. If quick,
        "total" and "enough" are None. "refused" lists the missing files that keep Luigi from starting.
    """
    at_first = machine.load()  # before this command adds to it
    states, walked = ArtifactStates(), artifacts_of(root)
    apart = _distinguishing_changes(walked)
    rows = [_row(task, states.of(task), changes) for task, changes in zip(walked, apart, strict=True)]
    summed = None if quick else _estimate(walked, rows, states, busy=at_first["busy"])
    artifacts = _artifacts(walked)
    free = machine.resources(artifacts)["disk_free"]
    return {
        "task": type(root).__name__,
        "rows": rows,
        "total": summed and summed.as_dict(),
        "artifacts": str(artifacts),
        "disk_free": free,
        "enough": summed and summed.most_bytes <= free,
        "refused": [note for task in walked if states.of(task).refused for note in states.of(task).notes],
        **at_first,
    }


def artifacts_of(root: luigi.Task) -> list[luigi.Task]:
    """One task per artifact, in the order of a run: each after what it reads, stores as early as possible."""
    waiting: dict[Path, luigi.Task] = {}
    reads: dict[Path, set[Path]] = {}
    _collect(root, waiting, reads, set())
    order: list[luigi.Task] = []
    while waiting:
        ready = [folder for folder in waiting if waiting.keys().isdisjoint(reads[folder])]
        first = max(ready, key=lambda folder: waiting[folder].priority)  # in a tie, the one found first
        order.append(waiting.pop(first))
    return order


def _collect(
    task: luigi.Task, found: dict[Path, luigi.Task], reads: dict[Path, set[Path]], seen: set[luigi.Task]
) -> None:
    """Add the tasks with an artifact to `found`, each after what it reads, and the folders they read to `reads`."""
    if task in seen:
        return
    seen.add(task)
    before, folder = before_of(task), folder_of(task)
    for one in before:
        _collect(one, found, reads, seen)
    if folder and folder not in found:
        found[folder], reads[folder] = task, {folder_of(one) for one in before} - {None}


def _row(task: luigi.Task, found: ArtifactState, changes: str) -> dict[str, Any]:
    stage = isinstance(task, Stage)
    notes = [changes, *found.notes, *getattr(task, "left_out", [])]
    return {
        "dataset": task.dataset_folder if stage else task.dataset,
        "stage": type(task).__name__,
        "label": task.label if stage else Path(task.folder).name,
        "digest": task.digest if stage else "",
        "path": str(folder_of(task)),
        "state": found.state,
        "bytes": found.bytes,
        "clips": found.clips,
        "seconds": None,
        "disk_bytes": None,
        "meanwhile_bytes": 0,
        "note": "; ".join(filter(None, notes)),
    }


def _distinguishing_changes(walked: list[luigi.Task]) -> list[str]:
    """For each task, those of its table row's `changes` that distinguish artifacts of the same name."""
    named = [((type(t).__name__, getattr(t, "label", "")), dict(getattr(t, "changes", {}))) for t in walked]
    alike: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for name, changes in named:
        alike[name].append(changes)
    return [
        ", ".join(f"{what} = {text}" for what, text in changes.items() if any(o.get(what) != text for o in alike[name]))
        for name, changes in named
    ]


def _estimate(walked: list[luigi.Task], rows: list[dict[str, Any]], states: ArtifactStates, *, busy: bool) -> Total:
    """Fill in the cost of each row; return the sum."""
    from tasks.costs import Costs  # imported late: it imports much, and only estimates need it

    costs, works = Costs(states.of, one_thread=busy), []
    for task, row in zip(walked, rows, strict=True):
        work = {IS_THERE: MOMENTS, UNKNOWN: Work()}.get(row["state"]) or costs.of(task)
        row |= {name: getattr(work, name) for name in ("seconds", "disk_bytes", "meanwhile_bytes")}
        row["note"] = "; ".join(filter(None, (row["note"], work.note)))
        works.append(work)
    return total(works)


def _artifacts(walked: list[luigi.Task]) -> Path:
    stages = [task for task in walked if isinstance(task, Stage)]
    return Path(stages[-1].run_spec.artifacts) if stages else Path()


# --- for people


def _print(found: dict[str, Any]) -> None:
    rows = found["rows"]
    several = len({row["dataset"] for row in rows}) > 1
    print_table([_cells(row, several=several, measured=found["total"] is not None) for row in rows])
    print("\n".join(_closing(found)))


def _cells(row: dict[str, Any], *, several: bool, measured: bool) -> dict[str, str]:
    cells = {name: row[name] for name in (["dataset"] if several else []) + ["stage", "label", "digest", "state"]}
    cells |= {"on disk": in_bytes(row["bytes"]) if row["bytes"] else "", "clips": str(row["clips"] or "")}
    if measured:
        left = row["state"] != IS_THERE
        cells |= {"time": _known(row["seconds"], _time) if left else ""}
        cells |= {"disk": _known(row["disk_bytes"], _disk) if left else ""}
    return {**cells, "note": row["note"]}


def _known(value: float | None, in_words: Callable[[float], str]) -> str:
    return "?" if value is None else in_words(value)


def _time(seconds: float) -> str:
    return "moments" if seconds < 1 else duration_text(seconds)


def _disk(count: float) -> str:
    return f"+ {in_bytes(count)}" if count else ""


def _closing(found: dict[str, Any]) -> list[str]:
    """The last lines: how many artifacts exist, free space, and the totals."""
    there, rows = sum(row["state"] == IS_THERE for row in found["rows"]), len(found["rows"])
    lines = ["", f"{found['task']}: {there} of {rows} artifacts are there"]
    free = f"{in_bytes(found['disk_free'])} are free for {found['artifacts']}"
    if found["refused"]:
        lines.append("luigi would refuse to begin, as files are missing: see the notes")
    if found["total"] is None or there == rows:
        return [*lines, free]
    return [*lines, *_totals(found, free)]


def _totals(found: dict[str, Any], free: str) -> Iterator[str]:
    summed, unknown = found["total"], found["total"]["unknown"]
    if unknown < len(found["rows"]):
        idle = "on this machine if it is otherwise idle, not counting process start and data loading"
        yield f"about {_time(summed['seconds'])} {idle}{_busy(found)}"
        more, most = in_bytes(summed["disk_bytes"]), in_bytes(summed["most_bytes"])
        yield f"{more} more on the disk, {most} at most on the way; {free}"
    if unknown:
        yield f"{unknown} artifacts could not be estimated"
    if not found["enough"]:
        yield "WARNING: there is not enough disk space"


def _busy(found: dict[str, Any]) -> str:
    if not found["busy"]:
        return ""
    load, cores = found["load"], found["cores"]
    shared = f"; but {load:.1f} processes share its {cores} cores now, so it takes longer"
    networks = any(row["stage"] in ("TrainStream", "ScoreStream") and row["seconds"] for row in found["rows"])
    return shared + f"; networks were timed on one core: up to {cores} x too long" * networks


if __name__ == "__main__":
    sys.argv[0] = "plan"  # the program name that Luigi's parser prints
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
