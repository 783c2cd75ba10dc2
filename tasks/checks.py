"""Refuse settings that are unknown, wrong or in conflict, before any work is done."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import luigi
from luigi.configuration import get_config
from luigi.task_register import Register

from pipeline.artifacts.configured import preset
from pipeline.specs import STREAMS
from pipeline.specs.base import Spec, unknown_name
from pipeline.system.errors import UserError
from tasks import settings
from tasks.settings import NOTHING

# Luigi's own sections; luigi.cfg may contain any of them.
_LUIGIS_SECTIONS = [
    "core",
    "worker",
    "scheduler",
    "retcode",
    "resources",
    "execution_summary",
    "email",
    "smtp",
    "sendgrid",
    "batch-notifier",
    "logging",
    "task_history",
    "cors",
    "datadog",
    "prometheus",
    "upstream",
]
# Tasks that no other task requires; a section with the parameters of any other would reach it only where no task gives
# them, as [Flow] videos would to the flow that a training reads.
_LAST = ("AllSplits", "ExtractFeatures", "FullPipeline", "PaperTable", "ScoreVideos")


def check(dataset: str, changes: Mapping[str, str] = NOTHING) -> None:
    """Refuse unknown or conflicting settings that a run of this dataset would use, before any work is done.

    Raises:
        UserError: an unknown section, setting or value, or settings in conflict; the message names it.
    """
    if not isinstance(changes, Mapping):
        raise UserError(f'--changes is {changes!r}; it must be settings and their values, as {{"stack_length": "5"}}')
    for name in changes:
        if name not in (names := settings.changeable(settings.stage_of(name))):
            raise UserError(unknown_name(f"setting {name} in changes", name, names))
    sections = [section for section in settings.SECTIONS if section not in STREAMS]
    found = {section: settings.resolve(section, dataset, changes) for section in sections}
    if found["dataset"].generator and settings.videos_on_command_line():
        others = [name for name in settings.datasets() if not settings.items(f"dataset.{name}").get("generator")]
        raise UserError(
            f"--data-videos and --data-lists name videos of your own, but those of dataset {dataset!r} are written by "
            f"the pipeline; give --dataset as well: {' or '.join(others)}"
        )
    for name in STREAMS:
        other = settings.stream(name, dataset, changes).with_dataset
        if other and other not in settings.datasets():
            raise UserError(unknown_name(f"[{name}] with_dataset: dataset {other!r}", other, settings.datasets()))
    if found["stack"].direction == "bidirectional" and not found["flow"].backward:
        raise UserError("[stack] direction is bidirectional, which needs backward flow; set [flow] backward = true")


def for_the_start(name: str, changes: Mapping[str, str]) -> dict[str, str]:
    """Changed settings of a stream that starts from another dataset's training, as far as they apply to that one too.

    How long and which layers apply only to fine-tuning on this set.
    """
    own = {f"{name}_{setting}" for setting in ("steps", "milestones", "warmup", "train_layers", "partial_bn")}
    return {setting: text for setting, text in changes.items() if setting not in own}


def check_together(name: str, dataset: str, changes: Mapping[str, str] = NOTHING) -> None:
    """Refuse another dataset that this one's stream cannot be trained together with.

    Raises:
        UserError: it is this dataset itself, the command line names videos (which would apply to both), settings that
            must be equal differ, or the training to start from would keep layers that have learned nothing.
    """
    own = settings.stream(name, dataset, changes)
    other, where = own.with_dataset, f"[{name}] with_dataset is {own.with_dataset!r}"
    if other == dataset:
        raise UserError(
            f"{where}, which is this dataset itself; name another, or set {name}_with_dataset in the section of the "
            "one dataset that it is meant for"
        )
    if settings.videos_on_command_line():
        raise UserError(f"{where}, so --data-videos and --data-lists would name the videos of both; use luigi.cfg")
    if name == "temporal":
        flows = settings.resolve("flow", dataset, changes), settings.resolve("flow", other, changes)
        _refuse_difference("flow", dataset, other, *flows)
        sizes = settings.resolve("frames", dataset, changes), settings.resolve("frames", other, changes)
        _refuse_difference("frames", dataset, other, *sizes, ("short_side_px",))  # motion is in pixels of cached frames
    if own.starts_from_other:
        there = settings.stream(name, other, for_the_start(name, changes)).alone()
        _refuse_difference(name, dataset, other, own, there, ("network", "start", "crop_px", "flow_unit_px", "stack"))
        if there.warning:
            what = ("train_layers", "all") if there.train_layers == "last" else ("partial_bn", "false")
            raise UserError(
                f"{where} and with_how is start, but {what[0]} applies to the training of {other} too, which starts "
                f"from random weights: layers that have learned nothing would be kept; set {name}_{what[0]} = "
                f"{what[1]} in [dataset.{other}]"
            )


def _refuse_difference(
    section: str, dataset: str, other: str, one: Spec, two: Spec, names: tuple[str, ...] = ()
) -> None:
    """Refuse settings that differ between two datasets: those in `names`, or all that can affect a result."""
    for name in names or [name for name in one.settings() if name in one.identity()]:
        here, there = getattr(one, name), getattr(two, name)
        if here != there:
            raise UserError(
                f"[{section}] {name} is {here!r} for {dataset}, but {there!r} for {other}; what is trained "
                "together must have the same"
            )


def check_dataset(name: str) -> None:
    """Refuse a dataset without a section, after `check_configuration`.

    Raises:
        UserError: the dataset has no section.
    """
    check_configuration()
    if name not in settings.datasets():
        raise UserError(unknown_name(f"dataset {name!r}", name, settings.datasets()))


def check_configuration() -> None:
    """Refuse settings files that are missing or not understood: other settings would silently be used.

    Raises:
        FileNotFoundError: LUIGI_CONFIG_PATH names no file, or there is no luigi.cfg.
        PermissionError: one of them cannot be read.
        UserError: a section or a dataset's setting is unknown, luigi.cfg has no exit statuses, the file of
            LUIGI_CONFIG_PATH has no sections at all or is of TOML, or tasks are to be checked in parallel.
    """
    for variable in ("LUIGI_CONFIG_PARSER", "LUIGI_CONFIG_PATH"):
        if (given := os.environ.get(variable, "")).endswith("toml"):
            raise UserError(f"{variable} is {given!r}; settings are read from .cfg files only")
    if settings.from_command_line() and luigi.interface.core().parallel_scheduling:
        raise UserError(
            "parallel_scheduling is not possible here: Luigi would wait forever for tasks that are refused; leave "
            "it out (what is complete is found in little time, and --workers does run tasks in parallel)"
        )
    overlay = preset()
    for path in filter(None, ("luigi.cfg", overlay)):  # Luigi silently skips what it cannot open
        if Path(path).is_file():
            text = Path(path).read_text(errors="replace")  # raises if it may not be read
            if path == overlay and not re.search(r"^\[", text, re.MULTILINE):
                raise UserError(f"LUIGI_CONFIG_PATH is {overlay!r}, which holds no settings")
    # a preset alone lacks the rest, such as the exit status for failed tasks
    lacks_statuses = settings.from_command_line() and not get_config().has_section("retcode")
    if not Path("luigi.cfg").is_file() and (lacks_statuses or not settings.datasets()):
        raise FileNotFoundError(
            f"there is no luigi.cfg in {str(Path.cwd())!r}; run from the project's root, or give the path of the "
            "project's luigi.cfg as LUIGI_CONFIG_PATH"
        )
    check_sections()  # before what is missing: it may be misspelled
    if lacks_statuses:
        raise UserError("luigi.cfg has no section [retcode], without which a failed task would end with status 0")


def check_flags(words: Sequence[str]) -> None:
    """Refuse what Luigi would answer by printing its usage, and a parameter of a task that it would not get.

    Raises:
        UserError: there is a flag that the task does not have, or a word of no flag; the message says which flag it
            resembles, or that quotes are needed. Or a flag, such as --TrainStream-seed, is of a task that gets its
            parameters from the one that requires it.
    """
    found = [word for word in words if (task := _task_named(word)) and not issubclass(task, luigi.Config)]
    root = found[0] if found else ""
    known, ours = set(), set()
    for task, without_section, name, _ in Register.get_all_params():
        flags = {_flag(name if without_section else f"{task}_{name}"), *([_flag(name)] if task == root else [])}
        known |= flags
        if task == "core" or not Register.get_task_cls(task).__module__.startswith("luigi."):
            ours |= {flag for flag in flags if flag[2:3].islower()}  # not --Flow-videos, --Frames-videos ...
    for flag in (word.partition("=")[0] for word in words if re.match(r"--\w", word)):
        family, _, name = flag[2:].partition("-")
        if root and family != root and _is_ours(_task_named(family)):
            instead = f"; give --{name}" if f"--{name}" in known else ""
            raise UserError(f"flag {flag} has no effect or a wrong one: {root} gives {family} its parameters{instead}")
        if flag in known:
            continue
        meant = [name for name in sorted(ours) if name.endswith(flag[1:])]  # --spatial-steps, --temporal-steps: --steps
        if meant or not any(name.startswith(flag) for name in known):  # argparse takes abbreviations
            if misspelled := "" if root else _bare_word(words):
                raise UserError(unknown_name(f"task {misspelled!r}", misspelled, _LAST))
            near = f"flag {flag} does not exist; did you mean {' or '.join(meant[:4])}?"
            near = near if meant else unknown_name(f"flag {flag}", flag, sorted(ours)).partition(" allowed: ")[0]
            raise UserError(f"{near} `luigi --module tasks {root or 'TASK'} --help-all` lists all")
    for before, word in itertools.pairwise(words):
        takes_it = before.startswith("-") and "=" not in before
        if root and not takes_it and not word.startswith("-") and word != root:
            raise UserError(f"{word!r} belongs to no flag; a value with spaces needs quotes")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_sections() -> None:
    """Refuse unknown sections and unknown settings of datasets: a misspelled name would be silently ignored.

    Raises:
        UserError: there is such a name; the message says which, and which one it resembles.
    """
    for section in get_config().sections():
        if section.startswith("dataset."):
            for name in settings.items(section):
                if name not in (names := _names_in_a_dataset(settings.stage_of(name))):
                    raise UserError(unknown_name(f"setting [{section}] {name}", name, names))
        elif section in _LUIGIS_SECTIONS:
            _check_luigis(section)
        elif section not in settings.SECTIONS:
            task = _task_named(section)
            if task is None:
                raise UserError(unknown_name(f"section [{section}]", section, [*settings.SECTIONS, "dataset.<name>"]))
            if _is_ours(task) and section not in _LAST:
                raise UserError(
                    f"section [{section}] has no effect or a wrong one: other tasks give {section} its parameters; "
                    "settings of stages are in sections such as [flow]"
                )
            parameters = [name for name, _ in task.get_params()]
            for name in settings.items(section):
                if name.replace("-", "_") not in parameters:
                    what = f"parameter {name} of task {section}"
                    raise UserError(unknown_name(what, name, parameters))


def _names_in_a_dataset(stage: str) -> list[str]:
    """The names of a stage's settings, or of the dataset's own, in the section of a dataset."""
    if stage == "demo":
        return [f"demo_{name}" for name in settings.SECTIONS["demo"].settings()]
    return settings.changeable(stage)


def _check_luigis(section: str) -> None:
    """Refuse names that resemble a setting of Luigi's, which would be ignored; it has some that it does not declare."""
    task = _task_named(section)
    declared = [name for name, _ in task.get_params()] if task else []
    for name in settings.items(section):
        near = difflib.get_close_matches(name.replace("-", "_"), declared, 1, 0.85)
        if near and name.replace("-", "_") not in declared:
            raise UserError(f"setting [{section}] {name} does not exist; did you mean {near[0]!r}?")


def _task_named(name: str) -> type[luigi.Task] | None:
    """The task of this name, or None. (`data` is not one: it is the prefix of [dataset]'s flags.)"""
    return Register.get_task_cls(name) if name != "data" and name in Register.task_names() else None


def _is_ours(task: type[luigi.Task] | None) -> bool:
    return task is not None and task.__module__.startswith("tasks.") and not issubclass(task, luigi.Config)


def _bare_word(words: Sequence[str]) -> str:
    """The first word that is no flag and follows none, which must be meant as the task; "" if there is none."""
    pairs = itertools.pairwise(["", *words])
    return next((word for before, word in pairs if not word.startswith("-") and not before.startswith("-")), "")
