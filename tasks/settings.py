"""Turn luigi.cfg and the command line into specs. Only this module reads both; `checks.py` refuses what is wrong.

A setting is looked up in this order, and the first one found wins: what the task itself changes
(`changes={"flow_method": ...}`, for a row of a table of the paper), the command line (`--flow-method`), the dataset's
section (`[dataset.demo] flow_method`), the stage's section (`[flow] method`; `[dataset]` for all datasets), the default
in `pipeline/specs/`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from configparser import InterpolationError
from pathlib import Path
from types import MappingProxyType
from typing import Any

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import LuigiConfigParser, get_config

from pipeline import specs
from pipeline.specs.base import Spec
from pipeline.system.console import one_line
from pipeline.system.digests import digest_of
from pipeline.system.errors import UserError
from pipeline.system.files import plain_name, with_home

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


def videos_on_command_line() -> list[str]:
    """Normalized absolute paths of the videos and lists that the command line names."""
    given = _with_home("dataset", _of_command_line("dataset"))
    return [_absolute(given[name]) for name in PATHS if given.get(name)]


def mark_of_command_line(dataset: str) -> str:
    """The mark of the videos that the command line names, for the name of the dataset's folder; "" if it names none."""
    paths, spec = videos_on_command_line(), resolve("dataset", dataset)
    unlabelled = spec.layout == "unlabelled"
    if unlabelled and not paths and _of_command_line("dataset").get("layout"):
        paths = [spec.videos]
    return mark_of(paths, unlabelled=unlabelled) if paths else ""


def mark_of(paths: Sequence[str], *, unlabelled: bool) -> str:
    """Suffix of a folder's name that identifies videos at these paths.

    Without labels the same videos have other ids, so stores of both kinds in one folder would replace each other.
    """
    paths = [_absolute(path) for path in paths]
    use = ["unlabelled"] if unlabelled else []
    return f"-{plain_name(Path(paths[0]).name)}-{digest_of([*paths, *use])[:6]}"


def _absolute(path: str) -> str:
    """The normalized absolute path; links are not resolved."""
    return os.path.normpath(Path(path).absolute())


def from_command_line() -> bool:
    """Whether `luigi` runs as a command, whose user wants one line rather than a traceback."""
    return CmdlineParser.get_instance() is not None


def command_line() -> str:
    """The command that runs, as one may type it again, with the settings file of its environment; "" for a program."""
    if not from_command_line():
        return ""
    overlay = os.environ.get("LUIGI_CONFIG_PATH", "")
    words = [f"LUIGI_CONFIG_PATH={shlex.quote(overlay)}"] if overlay else []
    return " ".join([*words, shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])])


def fingerprint() -> str:
    """Digest of all settings, of luigi.cfg and of the command line."""
    config, sections = get_config(), [*SECTIONS, *(f"dataset.{name}" for name in datasets())]
    if not isinstance(config, LuigiConfigParser):  # refused by `checks`
        return ""
    read = {name: config.items(name, raw=True) for name in sections if config.has_section(name)}
    return digest_of(read, [_of_command_line(section) for section in SECTIONS])[:6]


def datasets() -> list[str]:
    """Names of the datasets with a section in the settings."""
    return sorted(
        section.removeprefix("dataset.") for section in get_config().sections() if section.startswith("dataset.")
    )


def has_official_splits(dataset: str) -> bool:
    """Whether the dataset's splits are those of official lists, named by number."""
    return resolve("dataset", dataset).has_official_lists


def resolve(section: str, dataset: str = "", changes: Mapping[str, str] = NOTHING, /, **values) -> Spec:
    """The settings of one section as they apply to one dataset.

    Args:
        section: a key of SECTIONS.
        dataset: name of the dataset, whose section overrides the stage's; "" for none.
        changes: settings that override all others, named as in a dataset's section.
        values: fields that are not text (the stack of a temporal stream) or that the caller sets.

    Raises:
        UserError: an unknown setting or value; the message names it.
    """
    texts = items(section)
    texts |= _of_dataset(section, dataset) | _of_command_line(section) | _of_section(section, changes)
    texts = {name: text for name, text in texts.items() if name not in values}
    return SECTIONS[section].parse(_with_home(section, texts), section=section, **_with_home(section, values))


def stream(
    name: str, dataset: str, changes: Mapping[str, str] = NOTHING, *, seed: int = 0, asked: bool = False
) -> specs.StreamSpec:
    """The settings of one stream; the temporal one carries its stack.

    Args:
        name: "spatial" or "temporal".
        dataset: name of the dataset.
        changes: settings that override all others, named as in a dataset's section.
        seed: used unless the stream has its own seed in the settings.
        asked: whether the user gave the seed (`--seed`), which then overrides those in luigi.cfg.
    """
    stack = resolve("stack", dataset, changes) if name == "temporal" else None
    first = _of_command_line(name) | _of_section(name, changes)
    given = items(name) | _of_dataset(name, dataset) | first
    own = "seed" in given and not (asked and "seed" not in first)
    return resolve(name, dataset, changes, stream=name, stack=stack, **({} if own else {"seed": seed}))


def of_sections(changes: Mapping[str, str], sections: Collection[str]) -> dict[str, str]:
    """The part of `changes` that belongs to the given sections, sorted by name."""
    return {name: changes[name] for name in sorted(changes) if (stage_of(name) or "dataset") in sections}


def changeable(stage: str) -> list[str]:
    """The names allowed in `changes` for one stage; "" is the dataset. The demo's are not: all tasks share it."""
    if stage in ("", "demo"):
        return list(specs.DatasetSpec.settings())
    return [f"{stage}_{name}" for name in SECTIONS[stage].settings() if name != "stream"]


def _of_dataset(section: str, dataset: str) -> dict[str, str]:
    """The settings of `section` in the dataset's section."""
    return _of_section(section, items(f"dataset.{dataset}")) if dataset else {}


def _of_section(section: str, found: Mapping[str, str]) -> dict[str, str]:
    """The settings of `section` in `found`; a stage's have its name as prefix, the dataset's own have none."""
    if section == "dataset":
        return {name: str(text) for name, text in found.items() if not stage_of(name)}
    return {name.removeprefix(f"{section}_"): str(text) for name, text in found.items() if stage_of(name) == section}


def stage_of(name: str) -> str:
    """The stage whose setting `name` overrides, or "" for a setting of the dataset itself."""
    if name in specs.DatasetSpec.settings():
        return ""
    stages = [section for section in SECTIONS if section not in ("run", "dataset")]
    return next((section for section in stages if name.startswith(f"{section}_")), "")


def _with_home(section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section with a leading ~/ in paths expanded."""
    paths = {name for name, field in SECTIONS[section].settings().items() if field.metadata["path"]}
    return {name: with_home(value) if name in paths else value for name, value in given.items()}


def _of_command_line(section: str) -> dict[str, str]:
    parser = CmdlineParser.get_instance()
    if parser is None:
        return {}
    flags = {name: f"{_flag_family(section)}_{name}" for name in SECTIONS[section].settings()}
    found = {name: getattr(parser.known_args, flag, None) for name, flag in flags.items()}
    return {name: text for name, text in found.items() if text is not None}


def items(section: str) -> dict[str, str]:
    """What luigi.cfg says in one section, as text; nothing if there is no such section.

    Raises:
        UserError: a percent sign that stands for itself but is not doubled, or an unknown environment variable.
    """
    config = get_config()
    if not config.has_section(section):
        return {}
    # what [DEFAULT] says, Python adds to every section
    shared = {name for name, text in config.defaults().items() if text == config.get(section, name, raw=True)}
    try:
        return {name: text for name, text in config.items(section) if name not in shared}
    except InterpolationError as error:
        what = f"[{section}] {one_line(str(error))}"
        raise UserError(f"{what}; a percent sign is written %%, and ${{NAME}} is an environment variable") from None
