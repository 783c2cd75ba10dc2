"""The base of all stages. It alone builds paths and decides whether an artifact is up to date.

An artifact lies at `<artifacts>/<dataset>/<stage>/<label>-<digest>/`. The digest covers the settings of the stage and
of the stages it reads (for `Frames`, its own settings alone), so a changed setting makes a new artifact. The content
that the artifact was made *from* is recorded in it as `inputs`. When this no longer matches what the stage reads (a
video was changed or added), the artifact is remade in place, and the stage's function keeps the parts still valid.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import luigi

from pipeline.artifacts.status import STAGE_FILES
from pipeline.system.digests import digest_of
from pipeline.system.errors import StageFailed, UserError
from pipeline.system.files import plain_name, read_json, read_made_from, record_made_from
from pipeline.system.locks import one_writer, reading, try_exclusive_lock
from pipeline.system.progress import say
from tasks import checks, settings
from tasks.mistakes import one_line_errors
from tasks.parameters import OfDataset
from tasks.session import cache_scope, cached_in_scope, may_write, use_artifacts

_LABEL_BYTES = 150  # of a folder's name; a file system has 255, for the digest and temporary names too


class Artifact(luigi.Target):
    """One artifact on disk, identified by the file that its stage writes last; `Stage.is_current` checks its inputs."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Whether the artifact is complete."""
        return self.path.is_file()

    def recorded(self) -> dict:
        """What the artifact records about itself: at least `inputs`."""
        if self.path.suffix == ".json":
            return read_json(self.path)
        from pipeline import store

        return store.read_attrs(self.path)


@dataclasses.dataclass
class _Cache:
    """What a stage has found out in one `cache_scope`."""

    inputs_key: str = ""  # once all that it reads is complete
    is_complete: bool = False
    is_checked: bool = False  # its `check` has passed


class Stage(OfDataset):
    """A stage of the chain for one dataset and split. A subclass defines what it reads, its digest and its function."""

    stage = ""  # name of the folder of such artifacts, a key of STAGE_FILES
    VERSION = 1  # of a stage without a spec that has one: raise it when the same settings would give another artifact
    keeps_old = False  # whether `make` reads the artifact that it replaces
    is_read_throughout = False  # whether stages that read it do so for as long as they run, not once at their start
    reads: tuple[str, ...] = ()  # the sections that can change the artifact; (): any

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        with one_line_errors():
            self.check_settings()

    def clone(self, cls: type[luigi.Task] | None = None, **kwargs: Any) -> luigi.Task:
        """A task with the same parameters, except those given; of `changes` and `seed` it gets only what it reads.

        What several rows of a table or several seeds share is thus a single task, checked once.
        """
        reads = getattr(cls or type(self), "reads", ())
        if reads:  # none of these reads the seed
            kwargs["seed"] = -1
            kwargs["changes"] = settings.of_sections(kwargs.get("changes", self.changes), reads)
        return super().clone(cls, **kwargs)

    # --- what a subclass defines

    @property
    def label(self) -> str:
        """The readable part of the artifact's name: the split, unless a subclass has more to say."""
        return plain_name(self.split_name)

    def own_digest(self) -> str:
        """Digest of the settings of this stage, if it has any, and of the digests of those it reads."""
        return digest_of(self.stage, self.VERSION, self.digests_before())

    @abc.abstractmethod
    def make(self) -> None:
        """Make the artifact by one call of a function of `pipeline`."""

    # --- derived from that

    @cached_in_scope
    def digest(self) -> str:
        """`own_digest`, computed once."""
        return self.own_digest()

    @cached_in_scope
    def cache(self) -> _Cache:
        """What was found out in this scope. It begins with a check of the settings: a program may have changed them."""
        with one_line_errors():
            checks.check(self.dataset_name, self.changes)
        return _Cache()

    @cached_in_scope
    def folder(self) -> Path:
        """Folder of the artifact."""
        label = self.label.encode()[:_LABEL_BYTES].decode(errors="ignore")  # names of groups may be long
        return Path(self.run_spec.artifacts) / self.dataset_folder / self.stage / f"{label}-{self.digest}"

    @property
    def dataset_folder(self) -> str:
        """The dataset's name; videos named on the command line form a dataset of their own."""
        return self.dataset_name + settings.mark_of_command_line(self.dataset_name)

    def output(self) -> Artifact:
        """The file that is written last."""
        return Artifact(self.folder / STAGE_FILES[self.stage][0])

    @property
    def path(self) -> Path:
        """Path of the file that is written last."""
        return self.output().path

    def key(self) -> str:
        """Content key of the artifact, which the stages that read it record as their inputs."""
        return digest_of(self.digest, self.inputs_key())

    def inputs_key(self) -> str:
        """Content key of everything this stage reads; cached once all of it is complete."""
        return self.cache.inputs_key or digest_of(self.keys_read())

    def keys_read(self) -> list[str]:
        """Content key of each thing that this stage reads."""
        return [task.key() for task in self.before()]

    def before(self) -> list[luigi.Task]:
        """What this stage reads: stages, or the demo's videos."""
        return luigi.task.flatten(self.requires())

    def digests_before(self) -> list[str]:
        """The digests of the stages that this one reads."""
        return [task.digest for task in self.before()]

    def attrs(self) -> dict[str, str]:
        """What every artifact records about how it was made; nothing about the machine or the time."""
        return {"digest": self.digest, "inputs": self.inputs_key()}

    def is_current(self) -> bool:
        """Whether the artifact exists with all its files and was made from the current inputs."""
        if not self.output().exists():
            return False
        with one_line_errors():  # a damaged artifact, or one of another version, is refused with advice
            recorded = self.output().recorded()
            others = [self.folder / name for name in self.files_beside(recorded)]
            return recorded.get("inputs") == self.inputs_key() and all(path.is_file() for path in others)

    def files_beside(self, recorded: dict) -> Iterable[str]:
        """Names of the other files of an artifact, given what it records about itself."""
        return STAGE_FILES[self.stage][1:]

    def complete(self) -> bool:
        """Whether the artifact and all it needs are current. True is cached; if False, `check` runs once."""
        with cache_scope(), one_line_errors():
            use_artifacts(self.run_spec.artifacts)
            self._look_for_it()
            if not self.cache.is_complete:  # Luigi calls this for every task before it runs any: the time to refuse
                self.check_once()
            return self.cache.is_complete

    def _look_for_it(self) -> None:
        cache = self.cache
        if not cache.inputs_key and all(task.complete() for task in self.before()):
            cache.inputs_key = self.inputs_key()
        if cache.inputs_key and not cache.is_complete:
            cache.is_complete = self.is_current()
            if cache.is_complete and may_write():  # a plan writes nothing
                self._record_if_lost()

    def check_settings(self) -> None:
        """Refuse wrong settings and parameters when the task is made. The first use of `cache` checks the settings."""
        _ = self.cache

    def check_once(self) -> None:
        """Call `check`, unless it has already passed."""
        if not self.cache.is_checked:
            with one_line_errors():
                self.check()
            self.cache.is_checked = True

    def check(self) -> None:
        """Refuse what cannot succeed, before anything is made. May write only weights and `made_from.json`."""

    def run(self) -> None:
        """Make the artifact with its folder locked; do nothing if another run has just made it."""
        with cache_scope():
            use_artifacts(self.run_spec.artifacts, create=True)
            if self.is_read_throughout and self._was_made_by_another():
                return
            with one_writer(self.folder), self._nothing_read_changes():
                if not self.is_current():
                    self._refuse_what_changed()
                    self._make_again()

    def _was_made_by_another(self) -> bool:
        """Whether nothing is to be made, looked at as a reader: a writer would wait for the stages that read it."""
        if not self.folder.is_dir():
            return False
        with reading(self.folder):
            return self.is_current()

    @contextlib.contextmanager
    def _nothing_read_changes(self) -> Iterator[None]:
        """For the block keep the stores that this stage reads as they are: another command waits to remake them."""
        with contextlib.ExitStack() as stack:
            for task in self._stages_before():
                if task.is_read_throughout and task.folder.is_dir():
                    stack.enter_context(reading(task.folder))
            yield

    def _make_again(self) -> None:
        begun = time.monotonic()
        say(f"{self.title}: {self.folder}")
        self.record()
        if not self.keeps_old:  # from here until the end there is no artifact, only parts of one
            self.path.unlink(missing_ok=True)
        self.make()
        say(f"{self.title}: done in {time.monotonic() - begun:.1f} s")

    def _refuse_what_changed(self) -> None:
        """Refuse to go on if what this stage reads has been replaced since this command looked at it.

        Else a catalog that another run has remade meanwhile might name, as test clips, those that a stream was trained
        on; and what is made from a new file of weights would lie in the folder of the old one.

        Raises:
            StageFailed: it has; the same command begins with what is there now.
        """
        seen: set[Path] = set()
        if self.own_digest() != self.digest or not all(task.agrees(seen) for task in self._stages_before()):
            raise StageFailed("what it reads has been replaced since this command began; run the same command again")
        self._inputs_now()  # which is what the artifact records

    def agrees(self, seen: set[Path]) -> bool:
        """Whether the artifact and all before it were made from what is there now; `seen`: folders looked at."""
        if self.folder in seen or not self.output().exists():
            return True
        seen.add(self.folder)
        before = all(task.agrees(seen) for task in self._stages_before())
        return before and self.output().recorded().get("inputs") == self._inputs_now()

    def _inputs_now(self) -> str:
        """Content key of what this stage reads, of what is there now, which replaces the cached one."""
        self.cache.inputs_key = ""
        self.cache.inputs_key = self.inputs_key()
        return self.cache.inputs_key

    def _stages_before(self) -> list[Stage]:
        return [task for task in self.before() if isinstance(task, Stage)]

    def record(self) -> None:
        """Record what the artifact is made from, for `python -m pipeline gc`."""
        before = [task.folder for task in self._stages_before()]
        record_made_from(self.folder, Path(self.run_spec.artifacts), [*before, *self.files_read()])

    def _record_if_lost(self) -> None:
        """Rewrite the record if it is missing or damaged; without it, `gc` would remove nothing at all."""
        try:
            read_made_from(self.folder)
        except (OSError, UserError):
            with contextlib.suppress(OSError), try_exclusive_lock(self.folder) as free:  # artifacts may be read-only
                if free:
                    self.record()

    def files_read(self) -> list[Path]:
        """Files named by settings that may belong to another artifact, such as weights to start from."""
        return []

    def say_present(self) -> None:
        """Say that the artifact was found."""
        say(f"{self.title}: is there: {self.path}")

    @property
    def title(self) -> str:
        """Name of the stage in messages."""
        return f"{type(self).__name__} {self.label}"
