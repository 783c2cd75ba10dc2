"""`python -m pipeline`: inspect artifacts and the machine, and, through the tasks, what is still to be made.

Each command imports what it needs: `doctor` must run where packages are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.artifacts.configured import configured_artifacts, read_settings
from pipeline.artifacts.status import STAGE_FILES, status
from pipeline.system import locks
from pipeline.system.console import in_bytes, plain, print_table, print_values, some
from pipeline.system.errors import UserError, message_suffices, with_notes

ROWS_SHOWN = 20


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    given = sys.argv[1:] if argv is None else argv
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    if given[:1] == ["plan"]:  # its flags are Luigi's, unknown to this parser
        return _answered(_plan, given[1:])
    arguments = _parser().parse_args(given)
    try:
        return _answered(arguments.run, arguments)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _answered(run: Callable[..., int], *given: Any) -> int:
    """The exit status of `run`; a user's mistake is printed as one line and gives 2."""
    try:
        return run(*given)
    except BrokenPipeError:
        raise
    except Exception as error:
        if not message_suffices(error):
            raise  # a bug
        print("error:", with_notes(str(error) or type(error).__name__, error), file=sys.stderr)
        return 2


def _for_each_path(run: Callable[[Path, argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Apply `run` to every path, even if it failed for earlier ones; the exit status is the highest."""
    return lambda arguments: max([_answered(run, path, arguments) for path in arguments.paths])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("inspect", help="show what a file or an artifact's folder holds")
    command.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    command.add_argument(
        "--clip", default="", help="only this clip, not the table and the first one; --clip=NAME if it begins with -"
    )
    command.add_argument("--picture", type=Path, help="write a PNG of the clip's frames or flow here")
    command.add_argument("--all", action="store_true", help=f"every row of the table, not the first {ROWS_SHOWN}")
    command.add_argument("--json", action="store_true", help="everything, as JSON; of several paths a line each")
    command.set_defaults(run=_inspect)

    command = commands.add_parser("summary", help="the table of a report, of all splits or of the paper")
    command.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="such as data/artifacts/demo/report/latest"
    )
    command.set_defaults(run=_for_each_path(_summary))

    command = commands.add_parser("compare", help="two runs on the same clips: settings that differ, and accuracies")
    command.add_argument("first", type=Path, help="folder of a report or a fusion, or a scores file")
    command.add_argument("second", type=Path, help="likewise; differences are second minus first")
    command.add_argument("--json", action="store_true")
    command.set_defaults(run=_compare)

    command = commands.add_parser("verify", help="check every byte of stores, catalogs or scores against its checksum")
    command.add_argument("paths", type=Path, nargs="+", metavar="PATH")
    command.set_defaults(run=_for_each_path(_verify))

    command = commands.add_parser("repair", help="remove damaged shards, so that the next run makes them again")
    command.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="folder of a store")
    command.add_argument("--failed", action="store_true", help="also those with clips that failed, to try them again")
    command.set_defaults(run=_for_each_path(_repair))

    command = commands.add_parser("status", help="every artifact: stage, digest, done or not, size, what differs")
    command.add_argument("--json", action="store_true")
    _with_artifacts(command, _status)

    commands.add_parser("plan", help="what a run would make, how long it takes, how much disk it fills; plan --help")

    command = commands.add_parser("invalidate", help="remove a stage's artifacts, so that they are made again")
    command.add_argument("stage", help=f"one of {', '.join(STAGE_FILES)}")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--dataset", default="", help="of this dataset only; needed if several have such artifacts")
    which.add_argument("--all", action="store_true", help="of all datasets")
    command.add_argument("--digest", default="", help="of this one alone, as status shows it; its first digits will do")
    _with_artifacts(command, _invalidate)

    command = commands.add_parser("gc", help="list artifacts of settings no longer used, and leftovers of killed runs")
    command.add_argument("--yes", action="store_true", help="remove them; else they are listed")
    command.add_argument(
        "--old", action="store_true", help="also results that have a newer one, and what only they need"
    )
    command.add_argument("--unfinished", action="store_true", help="also what is unfinished, which a run would resume")
    _with_artifacts(command, _gc)

    command = commands.add_parser("doctor", help="what works on this machine, what does not and why, and how fast")
    command.add_argument("--seconds", type=float, default=1.5, help="for which a flow method is timed; %(default)s")
    command.add_argument("--json", action="store_true")
    _with_artifacts(command, _doctor)
    return parser


def _inspect(arguments: argparse.Namespace) -> int:
    if arguments.picture and len(arguments.paths) > 1:
        raise UserError(f"--picture is of one clip, but {len(arguments.paths)} paths are given; give one")
    return _for_each_path(_inspect_one)(arguments)


def _inspect_one(path: Path, arguments: argparse.Namespace) -> int:
    from pipeline.artifacts import inspection, pictures

    found = inspection.describe(path, clip=arguments.clip)
    if arguments.picture:
        shown = pictures.picture(path, arguments.picture, clip=arguments.clip)
        print(f"wrote {arguments.picture}: {plain(shown)}", file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(found, indent=1 if len(arguments.paths) == 1 else None))
        return 0
    print(f"{found['path']}: {found['format']}")
    if arguments.clip:
        print_table(_rows_of(found, arguments.clip))
    else:
        print_values({**found["attrs"], **found["summary"]})
        rows = found["rows"] if arguments.all else found["rows"][:ROWS_SHOWN]
        print_table(rows)
        if len(rows) < len(found["rows"]):
            print(f"... and {len(found['rows']) - len(rows)} more (--all)")
    if found["clip"]:
        print(f"\nclip {plain(found['clip']['id'])}")
        print_values(found["clip"])
    return 0


def _rows_of(found: dict[str, Any], clip: str) -> list[dict[str, Any]]:
    rows = [row for row in found["rows"] if row.get("id") == clip]
    if not rows:
        raise UserError(f"clip {clip!r} is not in {found['path']}")
    return rows


def _summary(path: Path, arguments: argparse.Namespace) -> int:
    from pipeline.report import metrics
    from pipeline.system import files

    for table in (path / name for name in ("summary.md", "table.md")):  # of AllSplits, of PaperTable
        if table.is_file():
            print(table.read_text(encoding="utf-8", errors="replace"), end="")
            return 0
    file = path / "metrics.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; `luigi --module tasks FullPipeline` makes it")
    try:
        print(metrics.headline_text(files.read_json(file)))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is not that of a report of this version; run `luigi --module tasks Report`") from None
    print(file.with_name("report.html").resolve())
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from pipeline.artifacts import comparison

    found = comparison.compare(arguments.first, arguments.second)
    print(json.dumps(found, indent=1) if arguments.json else comparison.text(found))
    return 0


def _verify(path: Path, arguments: argparse.Namespace) -> int:
    from pipeline.artifacts import damage

    faults = damage.verify(path)
    well = f"{damage.what_has_checksums(path)} is as it was written"
    print("\n".join(f"{path}: {line}" for line in faults or [well]))
    return 1 if faults else 0


def _repair(path: Path, arguments: argparse.Namespace) -> int:
    from pipeline.artifacts import damage

    folder = damage.store_folder(path).absolute()
    # the folder of all artifacts is three levels up; with links, both the path as given and the resolved one count
    above = {Path(os.path.normpath(store / "../../..")).resolve() for store in (folder, folder.resolve())}
    with contextlib.ExitStack() as stack:
        for artifacts in sorted(above):
            stack.enter_context(locks.no_run_in(artifacts))
        if (folder / locks.LOCK).exists():
            stack.enter_context(locks.nobody_else(folder))
        kind, removed, damaged = damage.repair(path, failed=arguments.failed)
    lines = [f"removed {name}; run the stage again" for name in removed] or ["nothing is damaged"]
    print("\n".join(f"{path}: {line}" for line in lines))
    if damaged:
        made = "flow, trainings and scores" if kind == "frames" else "trainings and scores"
        print(
            f"this does not remake {made} made from {some(damaged)} after the damage; "
            "`python -m pipeline invalidate STAGE --dataset NAME` removes them"
        )
    return 0


def _status(artifacts: Path, arguments: argparse.Namespace) -> int:
    from pipeline.artifacts.differences import with_settings

    rows = with_settings(status(artifacts))
    if arguments.json:
        print(json.dumps(rows, indent=1))
    elif not rows:
        print(f"nothing has been made in {artifacts}; `luigi --module tasks FullPipeline` makes the demo")
    else:
        shown = ("dataset", "stage", "label", "digest", "state")
        more = {"settings"} if any(row["settings"] for row in rows) else set()
        for row in rows:
            row["size"] = in_bytes(row["bytes"])
        print_table([{name: row[name] for name in (*shown, "size", *more)} for row in rows])
    return 0


def _with_artifacts(command: argparse.ArgumentParser, run: Callable[[Path, argparse.Namespace], int]) -> None:
    """A command that is given the folder of all artifacts, which is read from luigi.cfg unless it is an argument."""
    command.add_argument("--artifacts", type=Path, help="default: [run] artifacts of luigi.cfg, or of the preset")
    command.set_defaults(run=lambda arguments: run(arguments.artifacts or configured_artifacts(), arguments))


def _plan(argv: list[str]) -> int:
    """Replace this process by the planner, which needs Luigi; nothing in `pipeline` imports that."""
    read_settings()  # Luigi, when it is imported, would print a traceback for an error of syntax
    os.execv(sys.executable, [sys.executable, "-m", "tasks.plan", *argv])


def _invalidate(artifacts: Path, arguments: argparse.Namespace) -> int:
    from pipeline.artifacts import garbage

    chosen = {"dataset": arguments.dataset, "all_datasets": arguments.all, "digest": arguments.digest}
    with locks.no_run_in(artifacts):
        removed = garbage.invalidate(artifacts, arguments.stage, **chosen)
    print("\n".join(f"removed {folder}" for folder in removed) or f"nothing to remove in {artifacts}")
    return 0


def _gc(artifacts: Path, arguments: argparse.Namespace) -> int:
    from pipeline.artifacts import garbage

    options = {"old": arguments.old, "unfinished": arguments.unfinished}
    if arguments.yes:
        with locks.no_run_in(artifacts):
            return _remove(garbage.find(artifacts, **options))
    waste = garbage.find(artifacts, **options)
    _print_waste(waste, artifacts)
    return 0


def _print_waste(waste: list, artifacts: Path) -> None:
    print_table([{"size": in_bytes(item.bytes), "path": item.path, "reason": item.reason} for item in waste])
    room = f"{in_bytes(sum(item.bytes for item in waste))} in all; --yes removes them"
    print(room if waste else f"there is nothing to remove in {artifacts}")


def _remove(waste: list) -> int:
    from pipeline.artifacts import garbage

    freed = 0
    for item, gone in garbage.remove(waste):
        freed += item.bytes if gone else 0
        print(f"removed {item.path}" if gone else f"{item.path} is being written or read by another run, and stays")
    print(f"{in_bytes(freed)} freed")
    return 0


def _doctor(artifacts: Path, arguments: argparse.Namespace) -> int:
    from pipeline import doctor

    found = doctor.examine(artifacts, seconds=arguments.seconds)
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(doctor.lines(found)))
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
