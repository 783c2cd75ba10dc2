"""List the videos of a dataset in its catalog."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import luigi

from pipeline.specs.base import Spec
from pipeline.system import locks
from pipeline.system.errors import DamagedFile, UserError
from pipeline.system.files import with_home
from pipeline.system.progress import say, say_once
from tasks import checks, settings
from tasks.base import Stage
from tasks.mistakes import one_line_errors
from tasks.session import OfProgram

if TYPE_CHECKING:
    from pipeline import catalog


class DemoVideos(OfProgram):
    """The demo dataset, written as real video files if it is not there yet."""

    folder = luigi.Parameter(description="where it goes: its videos/ and ucfTrainTestlist/")
    dataset = luigi.Parameter(description="section [dataset.NAME] of luigi.cfg")

    def complete(self) -> bool:
        """Whether exactly this demo is there."""
        from pipeline.demo import is_written

        with one_line_errors():
            checks.check_dataset(self.dataset)
            return is_written(Path(self.folder), settings.resolve("demo", self.dataset))

    def run(self) -> None:
        """Write the demo."""
        from pipeline.demo import write_demo

        folder = Path(self.folder)
        # the lock has a folder of its own: the user's videos may lie beside the demo and must not be touched
        with locks.one_writer(folder.with_name(f".{folder.name}-lock")):
            write_demo(folder, settings.resolve("demo", self.dataset))


class OfVideos(Stage):
    """A stage that can also process a folder of other, unlabeled videos, into a separate artifact.

    They are processed like the dataset, so a stream trained on the dataset can score them.
    """

    videos = luigi.Parameter(
        default="", description="folder of other videos, without labels, that take the place of the dataset's"
    )

    def spec(self, section: str) -> Spec:
        """The settings of a section; any number of other videos may fail, since each failure is reported."""
        found = super().spec(section)
        if self.videos and section == "dataset":
            return found.unlabelled(with_home(self.videos))
        if self.videos and section == "frames":
            return dataclasses.replace(found, max_bad_fraction=1.0)
        return found

    @property
    def dataset_folder(self) -> str:
        """The dataset's folder, or one beside it for each folder of other videos."""
        mark = settings.mark_of([self.spec("dataset").videos], unlabelled=True) if self.videos else ""
        return super().dataset_folder + mark


class Catalog(OfVideos):
    """One row per clip: path, label, group, part of the split. Complete until a video or a list changes."""

    stage = "catalog"
    reads = ("dataset",)
    keeps_old = True  # so that known clips are not hashed again
    priority = 2  # all splits' before any store, so that they name the same videos even if one is added meanwhile

    def own_digest(self) -> str:
        """Digest of how the dataset is read, and of the split."""
        return self.spec("dataset").digest(self.split_name)

    def requires(self) -> list[luigi.Task]:
        """The demo's videos; other datasets' videos already exist."""
        dataset = self.spec("dataset")
        return [DemoVideos(str(Path(dataset.videos).parent), self.dataset_name)] if dataset.generator else []

    def inputs_key(self) -> str:
        """Key from a quick look at the files: names, sizes and time stamps of videos and lists."""
        from pipeline import catalog

        dataset = self.spec("dataset")
        if self.outlives_its_videos():
            say_once(f"Catalog: the videos are no longer at {dataset.videos}; going on with what was made from them")
            return self.output().recorded()["inputs"]
        with one_line_errors():
            return self.cache.inputs_key or catalog.files_fingerprint(dataset)

    def outlives_its_videos(self) -> bool:
        """Whether the catalog exists but the folder of its videos does not."""
        return self.path.is_file() and not Path(self.spec("dataset").videos).is_dir()

    def agrees(self, seen: set[Path]) -> bool:
        """True: a video that is added while a command runs is for the next one."""
        return True

    def key(self) -> str:
        """Content key of the videos, the classes and the parts."""
        return self.output().recorded()["key"]

    def read(self) -> catalog.Catalog:
        """Read the catalog."""
        from pipeline import store

        return store.read_catalog(self.path)

    def check_parts(self, *needed: str) -> None:
        """Refuse a split that does not exist or lacks clips of these parts, before anything is made."""
        from pipeline import demo
        from pipeline.catalog import parts

        dataset, split = self.spec("dataset"), self.split_name
        if found := self.outline():
            counts = found.counts()
        else:
            demo.check_split(split)
            counts = dict.fromkeys(("train", "val", "test") if dataset.val_fraction else ("train", "test"), {})
        parts.check_parts(counts, needed, dataset, split)

    def lacks_val(self) -> bool:
        """Whether there are no validation clips to choose on because `val_fraction` is 0."""
        if self.spec("dataset").val_fraction:
            return False
        found = self.outline()
        return found is None or not found.part("val")

    def check_classes(self) -> None:
        """Refuse to train on a single class, before anything is made."""
        from pipeline.catalog import parts

        if found := self.outline():
            parts.check_classes(found.classes, self.dataset_name)

    def outline(self, *, contents: bool = False) -> catalog.Catalog | None:
        """The clips as they are now; None for a demo not yet written.

        Until the catalog is made, the content hashes are blank; with `contents`, hashes known from older catalogs are
        filled in.
        """
        from pipeline import catalog

        if self.complete():
            return self.read()
        if not all(task.complete() for task in self.before()):
            return None
        known = [clip for older in self.older().values() for clip in older.clips] if contents else []
        return catalog.outline(self.spec("dataset"), self.split_name, known=known)

    def older(self) -> dict[Path, catalog.Catalog]:
        """Path -> catalog, for all readable catalogs of this dataset, of any split."""
        return {path: found for path in self.folder.parent.glob("*/catalog.h5") if (found := _if_readable(path))}

    def videos_key(self) -> str:
        """Content key of the videos, independent of the split: all that frames depend on."""
        return self.output().recorded()["videos_key"]

    def make(self) -> None:
        """Read the folder and the lists; files known from an older catalog of any split are not hashed again."""
        from pipeline import catalog, store

        old = self.older()
        known = [clip for before in old.values() for clip in before.clips]
        found = catalog.read_dataset(self.spec("dataset"), self.split_name, known=known)
        for change in catalog.changes(old[self.path], found) if self.path in old else ():
            say(f"Catalog: {change}")
        store.write_catalog(self.path, found, **self.attrs())
        say(f"Catalog: {found!r}")


def _if_readable(path: Path) -> catalog.Catalog | None:
    """A catalog; None if it is damaged or of another version, in which case its videos are hashed again."""
    from pipeline import store

    try:
        return store.read_catalog(path)
    except (UserError, DamagedFile):
        return None
