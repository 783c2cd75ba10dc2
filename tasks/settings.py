"""Turn luigi.cfg and the command line into specs. Only this module knows about both.

A setting is looked up in this order, and the first one found wins: what the task itself changes
(`changes={"flow_method": ...}`, for a row of a table of the paper), the command line (`--flow-method`), the dataset's
section (`[dataset.demo] flow_method`), the stage's section (`[flow] method`; `[dataset]` for all datasets), the default
in `pipeline/specs/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from configparser import InterpolationError
from pathlib import Path
from types import MappingProxyType

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config

from pipeline import specs
from pipeline.console import one_line
from pipeline.files import plain_name
from pipeline.specs import STREAMS
from pipeline.specs.base import Spec, digest_of, unknown_name

SECTIONS: dict[str, type[Spec]] = {
    "run": specs.RunSpec,
    "dataset": specs.DatasetSpec,
    "demo": specs.DemoSpec,
    "frames": specs.FrameSpec,
    "flow": specs.FlowSpec,
    "stack": specs.StackSpec,
    "spatial": specs.StreamSpec,
    "temporal": specs.StreamSpec,
    "score": specs.ScoreSpec,
    "fusion": specs.FusionSpec,
    "cluster": specs.ClusterSpec,
}
PATHS = ("videos", "lists")  # settings of a dataset
NOTHING: Mapping[str, str] = MappingProxyType({})
# Luigi's own sections; luigi.cfg may contain any of them.
_OF_LUIGI = [
    "core",
    "worker",
    "scheduler",
    "retcode",
    "resources",
    "execution_summary",
    "email",
    "smtp",
    "sendgrid",
    "batch_notifier",
    "logging",
]


def _flag_family(section: str) -> str:
    """First word of a section's flags (`--flow-method`); "data" for a dataset, because `--dataset` names it."""
    return "data" if section == "dataset" else section


def _flags(section: str, spec: type[Spec]) -> type[luigi.Config]:
    """A Luigi config class whose only purpose is to add `--<section>-<setting>` to every command line."""
    shown = {}
    for name, field in spec.settings().items():
        if name != "stream":  # implied by the section
            text = f"{field.metadata['description']}; default: {field.default}"
            shown[name] = luigi.Parameter(default="", description=text.replace("%", "%%"))  # argparse formats it
    return type(_flag_family(section), (luigi.Config,), {**shown, "__module__": __name__, "__doc__": spec.__doc__})


# [run] has no flags: --dataset, --artifacts, --device and --seed are parameters of the tasks
_FLAGS = [_flags(section, spec) for section, spec in SECTIONS.items() if section != "run"]


def check(dataset: str, changes: Mapping[str, str] = NOTHING) -> None:
    """Refuse unknown or conflicting settings that a run of this dataset would use, before any work is done.

    Raises:
        ValueError: an unknown section, setting or value, or settings in conflict; the message names it.
    """
    for name in changes:
        if name not in (names := _changeable(_stage_of(name))):
            raise ValueError(unknown_name(f"setting {name} in changes", name, names))
    found = {section: resolve(section, dataset, changes) for section in SECTIONS if section not in STREAMS}
    if found["dataset"].generator and videos_on_command_line():
        others = [name for name in datasets() if not _items(f"dataset.{name}").get("generator")]
        raise ValueError(
            f"--data-videos and --data-lists name videos of your own, but those of dataset {dataset!r} are written by "
            f"the pipeline; give --dataset as well: {' or '.join(others)}"
        )
    for name in STREAMS:
        other = stream(name, dataset, 0, changes).with_dataset
        if other and other not in datasets():
            raise ValueError(unknown_name(f"[{name}] with_dataset: dataset {other!r}", other, datasets()))
    if found["stack"].direction == "bidirectional" and not found["flow"].backward:
        raise ValueError("[stack] direction is bidirectional, which needs backward flow; set [flow] backward = true")


def check_together(name: str, dataset: str, changes: Mapping[str, str] = NOTHING) -> None:
    """Refuse another data set that this one's stream cannot be trained together with.

    Raises:
        ValueError: it is this data set itself, the command line names videos (which would apply to both), or settings
            that must be equal differ.
    """
    own = stream(name, dataset, 0, changes)
    other, where = own.with_dataset, f"[{name}] with_dataset is {own.with_dataset!r}"
    if other == dataset:
        raise ValueError(
            f"{where}, which is this data set itself; name another, or set {name}_with_dataset in the section of the "
            "one data set that it is meant for"
        )
    if videos_on_command_line():
        raise ValueError(f"{where}, so --data-videos and --data-lists would name the videos of both; use luigi.cfg")
    if name == "temporal":
        flows = resolve("flow", dataset, changes), resolve("flow", other, changes)
        _refuse_difference("flow", dataset, other, *flows)
        sizes = resolve("frames", dataset, changes), resolve("frames", other, changes)
        _refuse_difference("frames", dataset, other, *sizes, ("short_side_px",))  # motion is in pixels of cached frames
    if own.with_how == "start":
        there = stream(name, other, 0, changes)
        _refuse_difference(name, dataset, other, own, there, ("network", "start", "crop_px", "flow_unit_px", "stack"))


def _refuse_difference(section: str, dataset: str, other: str, one: Spec, two: Spec, names: tuple[str, ...] = ()):
    """Refuse settings that differ between two data sets: those in `names`, or all that can affect a result."""
    for name in names or [name for name in one.settings() if name in one.identity()]:
        here, there = getattr(one, name), getattr(two, name)
        if here != there:
            raise ValueError(
                f"[{section}] {name} is {here!r} for {dataset}, but {there!r} for {other}; what is trained "
                "together must have the same"
            )


def videos_on_command_line() -> list[str]:
    """Normalised absolute paths of the videos and lists that the command line names."""
    given = _with_home(_of_command_line("dataset"))
    return [_absolute(given[name]) for name in PATHS if given.get(name)]


def mark_of(paths: Sequence[str]) -> str:
    """Suffix of a folder's name that identifies videos at these paths; "" for no paths."""
    paths = [_absolute(path) for path in paths]
    return f"-{plain_name(Path(paths[0]).name)}-{digest_of(paths)[:6]}" if paths else ""


def _absolute(path: str) -> str:
    """The normalised absolute path; links are not resolved."""
    return os.path.normpath(Path(path).absolute())


def from_command_line() -> bool:
    """Whether `luigi` runs as a command, whose user wants one line rather than a traceback."""
    return CmdlineParser.get_instance() is not None


def datasets() -> list[str]:
    """Names of the datasets with a section in the settings."""
    return sorted(
        section.removeprefix("dataset.") for section in get_config().sections() if section.startswith("dataset.")
    )


def check_dataset(name: str) -> None:
    """Refuse a dataset without a section, and a missing settings file: other settings would silently be used.

    Raises:
        FileNotFoundError: LUIGI_CONFIG_PATH names no file, or there is no luigi.cfg.
        PermissionError: one of them cannot be read.
        ValueError: the dataset has no section, or the file of LUIGI_CONFIG_PATH has no sections at all.
    """
    overlay = os.environ.get("LUIGI_CONFIG_PATH", "")
    if overlay and not Path(overlay).is_file():
        raise FileNotFoundError(f"LUIGI_CONFIG_PATH is {overlay!r}, and there is no such file")
    for path in filter(None, ("luigi.cfg", overlay)):  # Luigi silently skips what it cannot open
        if Path(path).is_file():
            text = Path(path).read_text(errors="replace")
            if path == overlay and not re.search(r"^\[", text, re.MULTILINE):
                raise ValueError(f"LUIGI_CONFIG_PATH is {overlay!r}, which holds no settings")
    # a preset alone lacks the rest, such as the exit status for failed tasks
    if not datasets() or (from_command_line() and not get_config().has_section("retcode")):
        raise FileNotFoundError(
            f"there is no luigi.cfg in {str(Path.cwd())!r}; run from the project's root, or give the path of the "
            "project's luigi.cfg as LUIGI_CONFIG_PATH"
        )
    if name not in datasets():
        raise ValueError(unknown_name(f"dataset {name!r}", name, datasets()))


def has_official_splits(dataset: str) -> bool:
    """Whether the dataset's splits are those of official lists, named by number."""
    return resolve("dataset", dataset).layout in ("ucf101", "hmdb51")


def resolve(section: str, dataset: str = "", changes: Mapping[str, str] = NOTHING, /, **values) -> Spec:
    """The settings of one section as they apply to one dataset.

    Args:
        section: a key of SECTIONS.
        dataset: name of the dataset, whose section overrides the stage's; "" for none.
        changes: settings that override all others, named as in a dataset's section.
        values: fields that are not text (the stack of a temporal stream) or that the caller sets.

    Raises:
        ValueError: an unknown section, setting or value; the message names it.
    """
    _check_sections()
    texts = _items(section)
    texts |= _of_dataset(section, dataset) | _of_command_line(section) | _of_section(section, changes)
    texts = {name: text for name, text in texts.items() if name not in values}
    if section == "dataset":
        texts = _with_home(texts)
    return SECTIONS[section].parse(texts, section=section, **values)


def stream(
    name: str, dataset: str, seed: int, changes: Mapping[str, str] = NOTHING, *, asked: bool = False
) -> specs.StreamSpec:
    """The settings of one stream; the temporal one carries its stack.

    Args:
        name: "spatial" or "temporal".
        dataset: name of the dataset.
        seed: used unless the stream has its own seed in the settings.
        changes: settings that override all others, named as in a dataset's section.
        asked: whether the user gave the seed (`--seed`), which then overrides those in luigi.cfg.
    """
    stack = resolve("stack", dataset, changes) if name == "temporal" else None
    first = _of_command_line(name) | _of_section(name, changes)
    given = _items(name) | _of_dataset(name, dataset) | first
    own = "seed" in given and not (asked and "seed" not in first)
    return resolve(name, dataset, changes, stream=name, stack=stack, **({} if own else {"seed": seed}))


def of_sections(changes: Mapping[str, str], sections: Collection[str]) -> dict[str, str]:
    """The part of `changes` that belongs to the given sections, sorted by name."""
    return {name: changes[name] for name in sorted(changes) if (_stage_of(name) or "dataset") in sections}


def _changeable(stage: str) -> list[str]:
    """The names allowed in `changes` for one stage; "" is the dataset. The demo's are not: all tasks share it."""
    if stage in ("", "demo"):
        return list(specs.DatasetSpec.settings())
    return [f"{stage}_{name}" for name in SECTIONS[stage].settings() if name != "stream"]


def _of_dataset(section: str, dataset: str) -> dict[str, str]:
    """The settings of `section` in the dataset's section."""
    return _of_section(section, _items(f"dataset.{dataset}")) if dataset else {}


def _of_section(section: str, found: Mapping[str, str]) -> dict[str, str]:
    """The settings of `section` in `found`; a stage's have its name as prefix, the dataset's own have none."""
    if section == "dataset":
        return {name: str(text) for name, text in found.items() if not _stage_of(name)}
    return {name.removeprefix(f"{section}_"): str(text) for name, text in found.items() if _stage_of(name) == section}


def _stage_of(name: str) -> str:
    """The stage whose setting `name` overrides, or "" for a setting of the dataset itself."""
    if name in specs.DatasetSpec.settings():
        return ""
    stages = [section for section in SECTIONS if section not in ("run", "dataset")]
    return next((section for section in stages if name.startswith(f"{section}_")), "")


def _with_home(texts: Mapping[str, str]) -> dict[str, str]:
    """The settings of a dataset with a leading ~/ in paths expanded: no shell does that in luigi.cfg."""
    paths = {name: text for name, text in texts.items() if name in PATHS and text.startswith("~/")}
    return {**texts, **{name: str(Path(text).expanduser()) for name, text in paths.items()}}


def _of_command_line(section: str) -> dict[str, str]:
    parser = CmdlineParser.get_instance()
    if parser is None:
        return {}
    flags = {name: f"{_flag_family(section)}_{name}" for name in SECTIONS[section].settings()}
    found = {name: getattr(parser.known_args, flag, None) for name, flag in flags.items()}
    return {name: text for name, text in found.items() if text is not None}


def _items(section: str) -> dict[str, str]:
    config = get_config()
    try:
        return dict(config.items(section)) if config.has_section(section) else {}
    except InterpolationError as error:
        what = f"[{section}] {one_line(str(error))}"
        raise ValueError(f"{what}; a percent sign is written %%, a dollar sign $$") from None


def _check_sections() -> None:
    """Refuse unknown sections and unknown settings of datasets: a misspelled name would be silently ignored."""
    for section in get_config().sections():
        if section.startswith("dataset."):
            for name in _items(section):
                if not _stage_of(name) and name not in specs.DatasetSpec.settings():
                    raise ValueError(unknown_name(f"setting [{section}] {name}", name, specs.DatasetSpec.settings()))
        elif section not in SECTIONS and section not in _OF_LUIGI:
            task = _task_named(section)
            if task is None:
                raise ValueError(unknown_name(f"section [{section}]", section, [*SECTIONS, "dataset.<name>"]))
            parameters = [name for name, _ in task.get_params()]
            for name in _items(section):
                if name.replace("-", "_") not in parameters:
                    what = f"parameter {name} of task {section}, whose settings are in sections such as [flow],"
                    raise ValueError(unknown_name(what, name, parameters))


def _task_named(name: str) -> type[luigi.Task] | None:
    """The task of this name, or None. (`data` is not one: it is the prefix of [dataset]'s flags.)"""
    register = luigi.task_register.Register
    return register.get_task_cls(name) if name != "data" and name in register.task_names() else None
