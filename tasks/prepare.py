"""Videos to catalog, frames and flow."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import luigi

from pipeline import files
from pipeline.progress import say
from tasks import settings
from tasks.base import Stage
from tasks.mistakes import told_plainly


class DemoVideos(luigi.Task):
    """The demo dataset, written as real video files if it is not there yet."""

    folder = luigi.Parameter(description="where it goes: its videos/ and ucfTrainTestlist/")
    dataset = luigi.Parameter(description="section [dataset.NAME] of luigi.cfg")

    @property
    def spec(self):
        """The [demo] settings."""
        return settings.resolve("demo", self.dataset)

    def complete(self) -> bool:
        """Whether this very demo is there."""
        from pipeline.demo import is_written

        with told_plainly():
            return is_written(Path(self.folder), self.spec)

    def run(self) -> None:
        """Write it."""
        from pipeline.demo import write_demo

        folder = Path(self.folder)
        # the lock has a folder of its own: what lies beside the demo are the user's videos, and none of our business
        with files.one_writer(folder.with_name(f".{folder.name}-lock")):
            write_demo(folder, self.spec)


class OfVideos(Stage):
    """A stage that may also be made of a folder of other videos, which nobody has labelled: they get one of their own.

    Everything is made as it is for the dataset, so that a stream trained on the one can score the other.
    """

    videos = luigi.Parameter(
        default="", description="folder of other videos, without labels, that take the place of the dataset's"
    )

    def spec(self, section: str):
        """The settings of the dataset; of other videos any number may be bad, since each is told in the end."""
        found = super().spec(section)
        if self.videos and section == "dataset":
            return found.unlabelled(self.videos)
        if self.videos and section == "frames":
            return dataclasses.replace(found, max_bad_fraction=1.0)
        return found

    @property
    def dataset_folder(self) -> str:
        """A folder beside the dataset's, for each folder of videos."""
        return super().dataset_folder + settings.mark_of([self.videos] if self.videos else [])


class Catalog(OfVideos):
    """One row a clip: where it lies, its label, its group, its part of the split. Complete while no video changes."""

    file = "catalog.h5"
    reads = ("dataset",)
    keeps_old = True  # its clips need not be hashed again

    @property
    def label(self) -> str:
        """The split."""
        return files.plain_name(self.split_name)

    def own_digest(self) -> str:
        """How the dataset is read, and which split."""
        return self.spec("dataset").digest(self.split_name)

    def requires(self) -> list[luigi.Task]:
        """The demo's videos; any other dataset is there already."""
        dataset = self.spec("dataset")
        return [DemoVideos(str(Path(dataset.videos).parent), self.dataset_name)] if dataset.generator else []

    def inputs(self) -> str:
        """What a quick look at the folder tells: names, sizes and time stamps of videos and lists."""
        from pipeline import catalog

        dataset = self.spec("dataset")
        if self.path.is_file() and not Path(dataset.videos).is_dir():
            say(f"Catalog: the videos are no longer at {dataset.videos}; going on with what was made from them")
            return self.output().recorded()["inputs"]
        with told_plainly():
            return self.__dict__.get("_inputs") or catalog.listing(dataset)

    def key(self) -> str:
        """Content of the videos, the classes and the parts."""
        return self.output().recorded()["key"]

    def read(self):
        """The clips."""
        from pipeline import store

        return store.read_catalog(self.path)

    def check_parts(self, *needed: str) -> None:
        """Refuse a split that is not there or lacks clips of these parts, before anything is made."""
        from pipeline import demo, parts

        dataset, split = self.spec("dataset"), self.split_name
        if found := self.outline():
            counts = found.counts()
        else:
            demo.check_split(split)
            counts = dict.fromkeys(("train", "val", "test") if dataset.val_fraction else ("train", "test"), {})
        parts.check_parts(counts, needed, dataset, split)

    def lacks_val(self) -> bool:
        """Whether nothing can be chosen on validation clips because nobody wants them."""
        if self.spec("dataset").val_fraction:
            return False
        found = self.outline()
        return found is None or not found.part("val")

    def check_classes(self) -> None:
        """Refuse to train on a single class, before anything is made."""
        from pipeline import parts

        if found := self.outline():
            parts.check_classes(found.classes)

    def outline(self, *, contents: bool = False):
        """The clips as they are now; None for a demo that is not written yet.

        Until the catalog is made their contents are blank; with `contents`, those that an older one knows are not.
        """
        from pipeline import catalog

        if self.complete():
            return self.read()
        if not all(task.complete() for task in self.before()):
            return None
        known = [clip for older in self.older().values() for clip in older.clips] if contents else []
        return catalog.outline(self.spec("dataset"), self.split_name, known=known)

    def older(self) -> dict:
        """Path -> catalog, of all that were ever made of this dataset, whatever the split."""
        return {path: found for path in self.folder.parent.glob("*/catalog.h5") if (found := _if_readable(path))}

    def videos_key(self) -> str:
        """Content of the videos, whatever the split: all that frames depend on."""
        return self.output().recorded()["videos_key"]

    def make(self) -> None:
        """Read the folder and the lists; files that an older catalog of this split knows are not hashed again."""
        from pipeline import catalog, store

        old = self.older()
        known = [clip for before in old.values() for clip in before.clips]
        found = catalog.read_dataset(self.spec("dataset"), self.split_name, known=known)
        for change in catalog.changes(old[self.path], found) if self.path in old else ():
            say(f"Catalog: {change}")
        store.write_catalog(self.path, found, **self.attrs())
        say(f"Catalog: {found!r}")


def _if_readable(path: Path):
    """A catalog; None if it is of another version, or damaged: then its videos are hashed again."""
    from pipeline import store

    try:
        return store.read_catalog(path)
    except ValueError:
        return None


class _Store(OfVideos):
    """What Frames and Flow share: an index over shards, shared by all splits of the dataset."""

    file = "index.h5"
    priority = 1  # before any training: the workers of one store are still there for the next

    def key(self) -> str:
        """Content of every clip."""
        return self.output().recorded()["key"]

    def shard_attrs(self, spec) -> dict[str, str]:
        """What every shard and the index say of how they were made."""
        return {"digest": self.digest, "spec": files.canonical_json(spec.identity())}


class Frames(_Store):
    """The frames of every clip, resized, as JPEG in HDF5 shards."""

    reads = (*Catalog.reads, "frames", "cluster")

    @property
    def label(self) -> str:
        """The size of the frames."""
        side = self.spec("frames").short_side_px
        return f"short{side}" if side else "native"

    def own_digest(self) -> str:
        """The settings of the frames alone: which videos there are is recorded as inputs."""
        return self.spec("frames").digest()

    def requires(self) -> list[Stage]:
        """The list of the videos."""
        return [self.clone(Catalog)]

    def inputs(self) -> str:
        """The videos and their labels; not the split."""
        return self.requires()[0].videos_key()

    def make(self) -> None:
        """Decode every clip, shard by shard."""
        from pipeline import preprocess, store

        spec = self.spec("frames")
        preprocess.make_frames(
            self.folder,
            store.read_catalog(self.requires()[0].path),
            videos=Path(self.spec("dataset").videos),
            spec=spec,
            cluster=self.spec("cluster"),
            attrs=self.shard_attrs(spec),
        )


class Flow(_Store):
    """The optical flow of every clip, computed from the cached frames, as JPEG planes in HDF5 shards."""

    reads = (*Frames.reads, "flow")
    may_download = True

    @property
    def label(self) -> str:
        """The method."""
        return self.spec("flow").method

    def own_digest(self) -> str:
        """The settings of the flow and of the frames, and the content of RAFT's weights if they come from a file."""
        spec = self.spec("flow")
        weights = spec.weights_file
        content = [files.content_of(weights)] if weights and weights.is_file() else []
        return spec.digest(self.requires()[0].digest, *content)

    def requires(self) -> list[Stage]:
        """The frames."""
        return [self.clone(Frames)]

    def inputs(self) -> str:
        """The frames' content."""
        return self.requires()[0].key()

    def complete(self) -> bool:
        """Done or not; if not, a method that cannot work here is refused before anything is made for it."""
        done = super().complete()
        if not done and not self.__dict__.get("_checked") and self.spec("cluster").kind in ("inline", "local"):
            from pipeline import flow

            if self.may_download or not self.to_download():
                with told_plainly():
                    flow.check(self.spec("flow"), device=self.run_spec.device)
            self.__dict__["_checked"] = True
        return done

    def to_download(self) -> str:
        """The file of weights that the check in `complete` would fetch; "" if there is none to fetch."""
        from pipeline import flow

        return flow.to_download(self.spec("flow"))

    @classmethod
    @contextlib.contextmanager
    def without_download(cls) -> Iterator[None]:
        """Within the block nothing is fetched to find out whether a method can work: a look writes nothing."""
        cls.may_download = False
        try:
            yield
        finally:
            cls.may_download = True

    def make(self) -> None:
        """Compute flow for every clip, shard by shard."""
        from pipeline import preprocess

        spec = self.spec("flow")
        preprocess.make_flow(
            self.folder,
            self.requires()[0].path,
            spec=spec.with_absolute_paths(),
            cluster=self.spec("cluster"),
            device=self.run_spec.device,
            attrs=self.shard_attrs(spec),
            max_bad_fraction=self.spec("frames").max_bad_fraction,
        )
