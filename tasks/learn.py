"""Train streams on frames or flow, and score clips with trained streams. The stream is a parameter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import luigi

from pipeline.specs import STREAMS, StreamSpec
from pipeline.system import files
from pipeline.system.digests import canonical_json, file_hashes
from pipeline.system.files import with_home
from pipeline.system.progress import say
from tasks import checks, settings
from tasks.base import Stage
from tasks.listing import Catalog, OfVideos
from tasks.mistakes import one_line_errors
from tasks.parameters import Whole
from tasks.prepare import Flow, Frames
from tasks.session import cached_in_scope, may_write

if TYPE_CHECKING:
    from pipeline import catalog
    from pipeline.training.together import OtherDataset


class OnDevice(Stage):
    """A stage that computes with a network."""

    @property
    def resources(self) -> dict[str, int]:
        """One such stage at a time, unless the device is `cpu`: then `luigi --workers 4` runs four at once."""
        return {} if self.run_spec.device == "cpu" else {"gpu": 1}


def data_of(stream: str) -> type[Stage]:
    """The stage that a stream reads: `Frames` or `Flow`."""
    return Frames if stream == "spatial" else Flow


class TrainStream(OnDevice):
    """One stream, trained on the training part; the weights that did best on the validation part are kept.

    Without validation clips the last weights are kept.
    """

    stage = "train_stream"
    stream = luigi.ChoiceParameter(choices=STREAMS, description="which stream")
    alone = luigi.BoolParameter(default=False, description="ignore with_dataset; other trainings start from this one")

    @property
    def stream_spec(self) -> StreamSpec:
        """The settings of the stream."""
        seed, asked = self.run_spec.seed, self.seed >= 0
        spec = settings.stream(self.stream, self.dataset_name, self.changes, seed=seed, asked=asked)
        return spec.alone() if self.alone else spec

    @property
    def label(self) -> str:
        """Stream, network, split, and what it is trained together with."""
        spec = self.stream_spec
        together = [spec.with_how, spec.with_dataset] if spec.with_dataset else []
        return files.plain_name("-".join([self.stream, spec.network, self.split_name, *together]))

    def own_digest(self) -> str:
        """Digest of the settings of the stream and of what it reads, and of the file of weights it starts from."""
        return self.stream_spec.digest(*self.digests_before(), *file_hashes(self.stream_spec.start_file))

    def requires(self) -> list[Stage]:
        """The frames (spatial stream) or the flow (temporal stream), the catalog, and `of_other`."""
        return [self.clone(data_of(self.stream)), self.clone(Catalog), *self.of_other]

    @cached_in_scope
    def of_other(self) -> list[Stage]:
        """What the training reads of the other dataset, if any: its store and catalog, or its training."""
        spec = self.stream_spec
        if not spec.with_dataset:
            return []
        with one_line_errors():
            checks.check_together(self.stream, self.dataset_name, self.changes)
            official = all(settings.has_official_splits(name) for name in (self.dataset_name, spec.with_dataset))
        other = {"dataset": spec.with_dataset, "split": self.split_name if official else ""}
        if spec.starts_from_other:
            changes = checks.for_the_start(self.stream, self.changes)
            return [self.clone(TrainStream, alone=True, changes=changes, **other)]
        return [self.clone(data_of(self.stream), **other), self.clone(Catalog, **other)]

    def files_read(self) -> list[Path]:
        """The weights that the stream starts from."""
        return [start] if (start := self.stream_spec.start_file) else []

    def check(self) -> None:
        """Refuse a stream that cannot be built or trained on this machine."""
        from pipeline import networks
        from pipeline.training import parallel

        networks.check(self.stream_spec)
        parallel.process_count(self.stream_spec, self.run_spec.device)
        self.clone(Catalog).check_classes()
        if may_write():
            networks.fetch_weights(self.stream_spec)
        self._check_other()
        self._check_start()
        if warning := self.stream_spec.warning:
            say(warning)

    def _check_start(self) -> None:
        """Refuse weights that saw clips held out here, if an older catalog knows the contents of the videos.

        Weights of a temporal stream that read other inputs are allowed, but mentioned.
        """
        if not self.files_read():
            return
        from pipeline.networks import checkpoint
        from pipeline.training import together

        spec = self.stream_spec
        if clips := self.clone(Catalog).outline(contents=True):
            together.refuse_start_that_saw(spec, clips, spec.start_file)
        if differing := checkpoint.other_inputs(spec.start_file, spec):
            say(f"[{spec.stream}] start: {spec.start} was trained on other inputs: {differing}")

    def _check_other(self) -> None:
        """Refuse conflicts with the other set's classes or clips before anything is made: flow may take days."""
        spec = self.stream_spec
        if not spec.with_how:
            return
        if spec.with_how == "heads":
            self._catalog_of_other().check_classes()
            return
        from pipeline.catalog import contents
        from pipeline.training import together

        both = self.clone(Catalog), self._catalog_of_other()
        own, other = (task.outline(contents=True) for task in both)
        if own is None or other is None:  # a demo that is not written yet
            return
        if spec.with_how == "classes":
            together.other_classes(spec, own, self._other(other))
            return
        specs = (task.spec("dataset") for task in both)
        own, other = contents.of_equal_sizes(*zip(specs, (own, other), strict=True))
        together.refuse_overlap(spec, own, self._other(other))

    def _catalog_of_other(self) -> Catalog:
        """The catalog of the other dataset, which the stream is trained together with or starts from."""
        last = self.of_other[-1]
        return last if isinstance(last, Catalog) else last.clone(Catalog)

    def _other(self, clips: catalog.Catalog | None = None) -> OtherDataset:
        """The other dataset in the training, with its catalog as it was made, or as given."""
        from pipeline.training.together import OtherDataset

        data = self.of_other[0]
        store = data.clone(data_of(data.stream)) if isinstance(data, TrainStream) else data
        return OtherDataset(self.stream_spec.with_dataset, store.path, clips or self._catalog_of_other().read())

    def key(self) -> str:
        """Content key: the hash of the trained weights."""
        return self.output().recorded()["weights"]

    @property
    def weights(self) -> Path:
        """Path of the trained weights."""
        return self.folder / "checkpoint.pt"

    def steps_done(self) -> int:
        """Steps done by an interrupted run with the same inputs; everything this stage reads must be complete."""
        from pipeline.training import state, together

        spec, catalog = self.stream_spec, self.clone(Catalog).read()
        other = self._other() if spec.reads_other else None
        classes = together.other_classes(spec, catalog, other)
        identity = state.identity_of(spec, self.inputs_key(), catalog.classes, classes)
        return state.steps_done(self.folder / "resume.pt", identity)

    def make(self) -> None:
        """Train in as many processes as the stream's settings say, resuming an interrupted run with the same inputs."""
        from pipeline import training
        from pipeline.training import together

        spec, (data, catalog, *_) = self.stream_spec, self.requires()
        self._check_other()
        clips = catalog.read()
        if self.of_other:
            together.say_shared_groups(spec, clips, self._other())
        training.train(
            spec,
            store_path=data.path,
            catalog=clips,
            folder=self.folder,
            inputs_key=self.inputs_key(),
            device=self.run_spec.device,
            other=self._other() if spec.reads_other else None,
            start=self.of_other[0].weights if spec.starts_from_other else None,
        )


class ScoreStream(OfVideos, OnDevice):
    """Probabilities and features of every clip of one part from one trained stream; other videos are all `test`."""

    stage = "score_stream"
    stream = luigi.ChoiceParameter(choices=STREAMS, description="which stream")
    part = luigi.ChoiceParameter(choices=("train", "val", "test"), default="test", description="which clips")
    checkpoint = luigi.Parameter(default="", description="trained weights, in place of those of TrainStream")

    @property
    def label(self) -> str:
        """Stream, part and split."""
        return files.plain_name(f"{self.stream}-{self.part}-{self.split_name}")

    def own_digest(self) -> str:
        """Digest of the settings of the test views and of all it reads, and of the content of given weights."""
        given = (file_hashes(self.weights) or [""]) if self.checkpoint else []
        return self.spec("score").digest(self.part, *given, *self.digests_before())

    def requires(self) -> list[Stage]:
        """The trained stream unless weights are given, the frames or the flow, and the catalog."""
        return [*self.trained, self.clone(data_of(self.stream)), self.clone(Catalog)]

    def key(self) -> str:
        """Content key of the scores: if remade they may differ (another device, or a clip that is readable again)."""
        return self.output().recorded().get("content", "")  # without one the file is damaged, as its reader says

    @property
    def trained(self) -> list[Stage]:
        """The training, unless weights are given."""
        return [] if self.checkpoint else [self.clone(TrainStream)]

    def files_read(self) -> list[Path]:
        """The weights, if they are given."""
        return [self.weights] if self.checkpoint else []

    @property
    def weights(self) -> Path:
        """Path of the trained weights."""
        return Path(with_home(self.checkpoint)) if self.checkpoint else self.trained[0].weights

    def check(self) -> None:
        """Refuse a given file that is no checkpoint, or of the other stream, other classes, or other frames or flow."""
        if self.checkpoint:
            from pipeline.networks import checkpoint

            clips = self.clone(Catalog).outline()
            classes = clips.classes if clips else ()
            checkpoint.refuse_unfit(self.weights, self.stream, self.clone(data_of(self.stream)).digest, classes or None)
        elif self.part == "test" and (warning := self.spec("score").warning(self.trained[0].stream_spec)):
            say(warning)

    def make(self) -> None:
        """Score every clip of the part."""
        from pipeline import inference

        *_, data, catalog = self.requires()
        inference.score_to(
            self.path,
            {**self.attrs(), "spec": canonical_json(self.spec("score").identity())},
            checkpoint=self.weights,
            store_path=data.path,
            catalog=catalog.read(),
            part=self.part,
            spec=self.spec("score"),
            device=self.run_spec.device,
        )


class ExtractFeatures(Whole):
    """Scores and features of every part from both streams, for training other classifiers."""

    def requires(self) -> list[Stage]:
        """ScoreStream for both streams and all parts."""
        return [self.clone(ScoreStream, stream=s, part=p) for s in STREAMS for p in ("train", "val", "test")]

    def run(self) -> None:
        """Print where the scores of each stream and part are."""
        say("\n".join(str(task.path) for task in self.requires()))

    def say_present(self) -> None:
        """Print the same paths."""
        say("ExtractFeatures: everything is there")
        self.run()
