"""The tables of the paper as targets: each row is the chain with some settings changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import luigi

from pipeline.artifacts.status import PARTIAL
from pipeline.report import paper
from pipeline.specs import STREAMS
from pipeline.specs.base import unknown_name
from pipeline.system import files, locks
from pipeline.system.digests import digest_of
from pipeline.system.errors import StageFailed, UserError
from pipeline.system.progress import say
from tasks import settings
from tasks.base import Stage
from tasks.conclude import Fuse
from tasks.finish import NotMade, finish
from tasks.learn import OnDevice, ScoreStream, TrainStream
from tasks.listing import Catalog
from tasks.mistakes import Refused, error_line, one_line_errors
from tasks.prepare import Flow, Frames
from tasks.repeat import Repeated, listed, seed_of
from tasks.session import cached_in_scope


class RowsFailed(StageFailed):
    """Some rows of a table could not be made; the table contains the others."""


@dataclass
class Planned:
    """A row of the table: its tasks, one per split and seed, or the reason it has none."""

    row: paper.Row
    changes: dict[str, str]
    tasks: list[Stage] = field(default_factory=list)
    reason: str = ""


class PaperTable(Repeated, OnDevice):
    """`table.json`, `table.md` and `table.html`: each figure of a table beside the paper's.

    A row that fails does not stop the others: the table is written with the reason, the command fails, and running it
    again continues with what is missing. Luigi gives up every task that depends on a failed one, so the rows are run
    here, one after another; only the stores that the rows share are required as usual.
    """

    table = luigi.ChoiceParameter(choices=tuple(paper.TABLES), description="which table of the paper")
    splits = luigi.Parameter(
        default="", description="such as 1,2, or all; default: all for table 4, the dataset's own split for others"
    )
    rows = luigi.Parameter(default="", description="rows to run, by their short names, such as l5,l10; default: all")
    with_dataset = luigi.Parameter(
        default="",
        description="second dataset, section [dataset.NAME]: for multi-task rows and those that add data; default: "
        "the one that the temporal stream is configured with",
    )
    stage = "tables"
    failures: Mapping[str, str] = MappingProxyType({})  # of this run: short name of the row -> reason
    lost: Set[Path] = frozenset()  # folders of the scores that this run could not make
    VERSION = 4

    def check_settings(self) -> None:
        """Refuse also a second dataset or rows that do not exist."""
        super().check_settings()
        names = [name for name in settings.datasets() if name != self.dataset_name]
        if self.with_dataset and self.with_dataset not in names:
            raise UserError(unknown_name(f"--with-dataset {self.with_dataset!r}", self.with_dataset, names))
        keys = [row.key for row in self.definition.rows if row.score]
        for key in listed("rows", self.rows):
            if key not in keys:
                raise UserError(unknown_name(f"--rows: row {key!r} of table {self.table}", key, keys))

    @property
    def definition(self) -> paper.Table:
        """The rows and the published figures."""
        return paper.TABLES[self.table]

    @property
    def label(self) -> str:
        """The table."""
        return self.table

    @cached_in_scope
    def split_list(self) -> list[str]:
        """The named splits; all of them for table 4 or with `all`; else the dataset's own."""
        with one_line_errors():
            if (self.splits or self.definition.split) == "all":
                return self.all_splits()
            return self._listed_splits() or [self.spec("dataset").split]

    @property
    def second(self) -> str:
        """The second dataset; "" for none. Rows that do not use it are trained without it, even if configured."""
        return self.with_dataset or settings.stream("temporal", self.dataset_name, self.changes).with_dataset

    # --- rows

    @cached_in_scope
    def plan(self) -> list[Planned]:
        """Every row, with its tasks or the reason it is not run."""
        planned = [self._planned(row) for row in self.definition.rows]
        run = [p for p in planned if not p.reason]
        # one store serves all rows: if one of them needs backward flow, it is computed for all
        configured = self.spec("stack").direction
        if any(p.changes.get("stack_direction", configured) == "bidirectional" for p in run):
            for p in run:
                p.changes["flow_backward"] = "true"
        for p in run:
            self._add_tasks(p)
        return planned

    def _planned(self, row: paper.Row) -> Planned:
        spatial, temporal = (settings.stream(name, self.dataset_name, self.changes) for name in STREAMS)
        catalogs = (self.clone(Catalog, split=split) for split in self.split_list)
        lacks_val = row.score == "svm" and any(catalog.lacks_val() for catalog in catalogs)
        reason = paper.why_not(row, spatial, self.second, lacks_val=lacks_val)
        if not reason and self.rows and row.key not in listed("rows", self.rows):
            reason = "left out by --rows"
        return Planned(row, {} if reason else paper.changes(row, spatial, temporal, self.second), reason=reason)

    def _add_tasks(self, planned: Planned) -> None:
        """Add the row's tasks; if its changes do not fit the user's settings, the error becomes its reason."""
        score = planned.row.score
        task, of = (ScoreStream, {"stream": score, "part": "test"}) if score in STREAMS else (Fuse, {})
        of["changes"] = {**self.changes, **planned.changes}
        runs = [{"split": split, "seed": seed} for split in self.split_list for seed in self.seed_list]
        try:
            tasks = [self.clone(task, **run, **of) for run in runs]
            _ = [task.digest for task in tasks]  # raises what only an earlier stage would refuse
        except (UserError, Refused) as error:
            if self.with_dataset and planned.row.with_how:  # asked for, so a mistake, not a row to skip
                raise
            planned.reason, planned.changes = error_line(error), {}
        else:
            planned.tasks = tasks

    # --- the stage

    @property
    def left_out(self) -> list[str]:
        """A line for each row that is not run, with the reason."""
        return [f"row {p.row.key} is not run: {p.reason}" for p in self.plan if p.reason]

    def own_digest(self) -> str:
        """Digest of the table and, for each row, of what it is made from or of the reason it is not run."""
        rows = [[p.row.key, p.reason, p.changes, [task.digest for task in p.tasks]] for p in self.plan]
        return digest_of("tables", self.VERSION, self.table, rows)

    def requires(self) -> list[Stage]:
        """The stores that the rows share."""
        stores = [Catalog, Frames, *([Flow] if "temporal" in self.definition.streams else [])]
        shared = dict.fromkeys(task.clone(store) for task in self.before() for store in stores)
        return list(shared) or [self.clone(Catalog, split=self.split_list[0])]

    def before(self) -> list[Stage]:
        """What the table is made from: the scores of all rows."""
        return [task for planned in self.plan for task in planned.tasks]

    def complete(self) -> bool:
        """Whether the table is done. If rows are missing, they are not queried: a refused row must not end the run."""
        with one_line_errors():
            whole = self.output().exists() and self.output().recorded().get("inputs") != PARTIAL
        done = whole and super().complete()
        if not done:
            self.check_once()
        return done

    def check(self) -> None:
        """Refuse splits, seeds and settings that no row could be trained with."""
        fused = any(isinstance(task, Fuse) for task in self.before())
        self.check_splits(*(["val", "test"] if fused else ["test"]))
        self.check_seeds(self.definition.streams)
        for stream in self.definition.streams:
            self.clone(TrainStream, stream=stream, split=self.split_list[0], seed=self.seed_list[0]).check_once()

    def run(self) -> None:
        """Make what the rows lack, then make and print the table."""
        self.failures, self.lost, broken = {}, set(), {}
        self.record_ahead()
        for planned in self.plan:
            for task in planned.tasks:
                try:
                    finish(task, broken)
                except NotMade as failed:
                    why = str(failed)
                    say(f"Table {self.table}, row {planned.row.key}: FAILED: {why}")
                    self.failures.setdefault(planned.row.key, why)
                    self.lost.add(task.folder)
        if self.failures:
            with locks.one_writer(self.folder):
                self.make()
        else:
            super().run()
        self.say_present()
        if self.failures:
            raise RowsFailed(f"rows that failed: {', '.join(self.failures)}; run the command again to go on with them")

    def attrs(self) -> dict[str, str]:
        """As for any stage, but with PARTIAL as inputs if a row failed, so that the table counts as incomplete."""
        return {"digest": self.digest, "inputs": PARTIAL if self.failures else self.inputs_key()}

    def make(self) -> None:
        """Put all rows into one table and point the link `latest-<table>` at it."""
        from pipeline import store
        from pipeline.report import tables

        dataset = self.spec("dataset")
        paths = [self.clone(Catalog, split=split).path for split in self.split_list]
        catalogs = [store.read_catalog(path) for path in paths if path.is_file()]
        tables.write(
            self.folder,
            table=self.definition,
            dataset=self.dataset_name,
            results=[self._result(planned) for planned in self.plan],
            on=paper.measured_on(dataset.layout, len(catalogs[0].classes)),
            pooled=dataset.layout not in paper.SETS,
            setup=self._setup(catalogs),
            **self.attrs(),
        )
        files.link(self.folder.parent / f"latest-{self.table}", self.folder)

    def _result(self, planned: Planned):
        from pipeline.report import metrics, tables
        from pipeline.scores import Scores

        trials, failure = [], self.failures.get(planned.row.key, "")
        for task in planned.tasks:
            if task.folder in self.lost:  # anything there is damaged or of former inputs
                continue
            path = task.scores_path(planned.row.score) if isinstance(task, Fuse) else task.path
            seed = seed_of(task, [planned.row.score] if isinstance(task, ScoreStream) else STREAMS)
            trial = {"split": task.split_name, "seed": seed, "made": str(path)}
            if isinstance(task, Fuse):
                trial["never_answers"] = metrics.never_answered(planned.row.score, task.chosen())
            trials.append(tables.Trial(scores=Scores.read(path), **trial))
        return tables.Result(
            row=planned.row,
            trials=trials,
            reason=failure or planned.reason,
            failed=bool(failure),
            changes=planned.changes,
            setup="" if failure or planned.reason else self._training_of(planned),
        )

    @cached_in_scope
    def _changed(self) -> set[str]:
        """Names of the settings that any row changes."""
        return {name for planned in self.plan for name in planned.changes}

    def _training_of(self, planned: Planned) -> str:
        """What the row's trainings start from and how many steps they take, where that differs between rows."""
        texts = []
        for name in self.definition.streams:
            s = settings.stream(name, self.dataset_name, {**self.changes, **planned.changes})
            start = "the second set's weights" if s.starts_from_other else s.start
            parts = {"start": f"starts from {start}", "with_how": f"starts from {start}", "steps": f"{s.steps} steps"}
            words = dict.fromkeys(text for part, text in parts.items() if f"{name}_{part}" in self._changed)
            if words and planned.row.score not in set(STREAMS) - {name}:
                texts.append(f"{name}: {', '.join(words)}")
        return "; ".join(texts)

    def _setup(self, catalogs) -> dict[str, str]:
        """Settings that distinguish tables and that no row changes, and the numbers of training clips of the splits."""
        found = {"flow": self.spec("flow").method} if "temporal" in self.definition.streams else {}
        for name in self.definition.streams:
            s = settings.stream(name, self.dataset_name, self.changes)
            parts = {"": s.network, "start": f"starts from {s.start}", "steps": f"{s.steps} steps"}
            texts = [text for setting, text in parts.items() if f"{name}_{setting}" not in self._changed]
            if f"{name}_with_how" in self._changed:  # rows then start from other weights, and each row says which
                texts = [text for text in texts if text != parts["start"]]
            found[name] = ", ".join([*texts, f"batch {s.batch}", f"precision {s.precision}"])
        train, val = (_span([len(catalog.part(part)) for catalog in catalogs]) for part in ("train", "val"))
        found["training"] = f"{train} clips, and {val} for validation"
        return {**found, "second dataset": self.second or "none"}


def _span(counts: Sequence[int]) -> str:
    """Such as 13, or 13 to 15 if they differ."""
    return " to ".join(map(str, sorted({min(counts), max(counts)})))
