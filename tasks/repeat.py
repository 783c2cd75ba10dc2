"""Run the whole chain for every split and several seeds, and collect all results in one table."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import luigi

from pipeline.specs import STREAMS
from pipeline.system import files, locks
from pipeline.system.errors import UserError
from pipeline.system.progress import say
from tasks.base import Stage
from tasks.conclude import Report
from tasks.learn import TrainStream
from tasks.listing import Catalog
from tasks.mistakes import one_line_errors
from tasks.session import cached_in_scope, may_write, use_artifacts


class Repeated(Stage):
    """A stage over several splits and seeds of the same dataset."""

    splits = luigi.Parameter(default="", description="which, such as 1,2 or daria,denis; default: all of the dataset")
    seeds = luigi.Parameter(default="", description="seeds of the trainings, such as 0,1,2; default: [run] seed")
    split, seed = "", -1  # not parameters of the table; each run has its own

    def all_splits(self) -> list[str]:
        """Every split of the dataset; the demo's three are known before it is written."""
        from pipeline import demo
        from pipeline.catalog import layouts

        dataset = self.spec("dataset")
        return list(demo.SPLITS) if dataset.generator else layouts.split_names(dataset)

    @cached_in_scope
    def split_list(self) -> list[str]:
        """The splits, in order."""
        with one_line_errors():
            return self._listed_splits() or self.all_splits()

    def _listed_splits(self) -> list[str]:
        """The named splits, by canonical name: with official lists, 01 becomes 1."""
        named = [self.named_split(text) for text in listed("splits", self.splits)]
        return _distinct("splits", self.splits, named)

    def check_splits(self, *parts: str) -> None:
        """Refuse a split that does not exist or lacks clips of these parts, before any split is run."""
        with one_line_errors():
            for split in self.split_list:
                self.clone(Catalog, split=split).check_parts(*parts)

    @cached_in_scope
    def seed_list(self) -> list[int]:
        """The seeds, in order; -1 stands for the seed of [run]."""
        with one_line_errors():
            texts = listed("seeds", self.seeds)
            if wrong := [text for text in texts if not re.fullmatch(r"\d{1,18}", text, re.ASCII)]:
                raise UserError(f"--seeds is {self.seeds!r}; {wrong[0]!r} is not a whole number from 0 up")
            return _distinct("seeds", self.seeds, [int(text) for text in texts]) or [-1]

    def record_ahead(self) -> None:
        """Record what the table needs before its first run or row, so that `gc` keeps those finished so far."""
        use_artifacts(self.run_spec.artifacts, create=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with locks.try_exclusive_lock(self.folder) as free:
            if free:  # else another run is writing the table and has recorded the same
                self.record()

    def record(self) -> None:
        """Also record everything its parts need: a part that is not made yet has no record of its own."""
        waiting, found = self.before(), set()
        while waiting:
            task = waiting.pop()
            if isinstance(task, Stage) and task.folder not in found:
                found |= {task.folder, *task.files_read()}
                waiting += task.before()
        files.record_made_from(self.folder, Path(self.run_spec.artifacts), found)

    def say_present(self) -> None:
        """Print the table and the path of the page."""
        say(f"{self.path.with_suffix('.md').read_text(encoding='utf-8')}\n{self.path.with_suffix('.html')}")

    def check_seeds(self, streams: Iterable[str]) -> None:
        """Refuse several seeds if a flag or a row gives a stream its own: one training would be shown as several."""
        with one_line_errors():
            for stream in streams:
                runs = [
                    self.clone(TrainStream, stream=stream, split=self.split_list[0], seed=s) for s in self.seed_list
                ]
                if len({run.stream_spec.seed for run in runs}) < len(runs):
                    raise UserError(
                        f"--seeds is {self.seeds!r}, but [{stream}] seed is given, so this stream would be the same "
                        "with each of them; remove one or the other"
                    )


def seed_of(task: Stage, streams: Iterable[str] = STREAMS) -> int | str:
    """The seed of the trainings behind a report, fusion or scores; "7 and 0" if the streams' seeds differ."""
    seeds = dict.fromkeys(task.clone(TrainStream, stream=stream).stream_spec.seed for stream in streams)
    return next(iter(seeds)) if len(seeds) == 1 else " and ".join(map(str, seeds))


class AllSplits(Repeated):
    """`summary.json`, `summary.md` and `summary.html`: one row per split and seed, their mean, all clips pooled.

    The splits are those of the official lists. In a folder, or a CSV file without a split column, every group is left
    out in turn.
    """

    stage = "all_splits"
    VERSION = 3

    @property
    def label(self) -> str:
        """The number of splits and seeds."""
        return f"{len(self.split_list)}splits-{len(self.seed_list)}seeds"

    def requires(self) -> list[Report]:
        """The report of each split and seed."""
        return [self.clone(Report, split=split, seed=seed) for split in self.split_list for seed in self.seed_list]

    def check(self) -> None:
        """Check all splits and seeds before the first is run."""
        self.check_splits("val", "test")
        self.check_seeds(STREAMS)
        if may_write():  # a plan writes nothing
            self.record_ahead()

    def make(self) -> None:
        """Put all reports into one table and point the link `latest` at it."""
        from pipeline.report import summary

        runs = [
            summary.Run(
                split=report.split_name,
                seed=seed_of(report),
                fusion=files.read_json(report.path)["fusion"],
                page=Path(os.path.relpath(report.folder / "report.html", self.folder)).as_posix(),
                **report.tables(),
            )
            for report in self.requires()
        ]
        summary.write(self.folder, dataset=self.dataset_name, runs=runs, **self.attrs())
        files.link(self.folder.parent / "latest", self.folder)

    def run(self) -> None:
        """Make the table and print it."""
        super().run()
        self.say_present()


def listed(name: str, text: str) -> list[str]:
    """The parts of a comma-separated list; an empty or repeated one is refused."""
    parts = [part.strip() for part in text.split(",")] if text else []
    return _distinct(name, text, parts)


def _distinct(name: str, text: str, values: list) -> list:
    """The `values` read from `text`; an empty or repeated one is refused (1 and 01 are the same seed)."""
    if "" in values or len(set(values)) < len(values):
        raise UserError(f"--{name} is {text!r}; it must be different names, separated by commas")
    return values
