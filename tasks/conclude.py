"""Fuse the scores of both streams and report everything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline.specs import FUSIONS, STREAMS
from pipeline.specs.base import Spec
from pipeline.system import files
from pipeline.system.digests import digest_of
from pipeline.system.progress import say
from tasks import settings
from tasks.base import Stage
from tasks.learn import ScoreStream, TrainStream
from tasks.listing import Catalog
from tasks.parameters import Whole
from tasks.prepare import Flow, Frames


class Fuse(Stage):
    """Fuse both streams in three ways: average, weighted, linear SVM. All choices are made on validation clips.

    Without validation clips (`val_fraction = 0`) only the average is made.
    """

    stage = "fuse"

    def own_digest(self) -> str:
        """Digest of the settings of the fusion and of the scores."""
        return self.spec("fusion").digest(*self.digests_before())

    def requires(self) -> dict[str, dict[str, Stage]]:
        """Scores of both streams on the validation and test parts."""
        return {part: {s: self.clone(ScoreStream, stream=s, part=part) for s in STREAMS} for part in ("val", "test")}

    def files_beside(self, recorded: dict) -> list[str]:
        """The scores of every fusion that was made."""
        return [f"{name}/scores.h5" for name in recorded.get("parameters", ())]

    def check(self) -> None:
        """Refuse a split that lacks validation or test clips."""
        self.clone(Catalog).check_parts("val", "test")

    def scores_path(self, name: str) -> Path:
        """Path of the scores fused in one way: `average/scores.h5` and so on."""
        return self.folder / name / "scores.h5"

    def chosen(self) -> dict[str, dict]:
        """The parameters of every fusion that was made."""
        from pipeline import fusion

        return fusion.read_parameters(self.path)

    def make(self) -> None:
        """Fuse the test scores as chosen on the validation scores; write a table for each way, then `fusion.json`."""
        from pipeline import fusion
        from pipeline.scores import Scores

        tables = {part: {s: Scores.read(task.path) for s, task in of.items()} for part, of in self.requires().items()}
        fused, parameters = fusion.fuse(tables["val"], tables["test"], spec=self.spec("fusion"))
        for name, scores in fused.items():
            scores.write(self.scores_path(name), **self.attrs())
        fusion.write(self.path, parameters, **self.attrs(), spec=self.spec("fusion").identity())


class Report(Stage):
    """`metrics.json` and one self-contained `report.html`."""

    stage = "report"
    VERSION = 6

    def requires(self) -> dict[str, Stage]:
        """The fusion, the trainings (for their curves), the stores (for failed clips) and the catalog."""
        return {
            "fuse": self.clone(Fuse),
            **{stream: self.clone(TrainStream, stream=stream) for stream in STREAMS},
            "frames": self.clone(Frames),
            "flow": self.clone(Flow),
            "catalog": self.clone(Catalog),
        }

    def keys_read(self) -> list[str]:
        """As for any stage, and the absent videos that the report names: they are part of no clip, so of no key."""
        absent = self.requires()["catalog"].read().absent if self.spec("dataset").partial else ()
        return [*super().keys_read(), *([digest_of(absent)] if absent else [])]

    def tables(self) -> dict[str, dict]:
        """`streams` and `fused`: the score tables of the test part, by name."""
        from pipeline.scores import Scores

        fuse = self.requires()["fuse"]
        made = fuse.chosen()
        return {
            "streams": {s: Scores.read(fuse.requires()["test"][s].path) for s in STREAMS},
            "fused": {name: Scores.read(fuse.scores_path(name)) for name in FUSIONS if name in made},
        }

    def make(self) -> None:
        """Write the report and point the link `latest` at it."""
        from pipeline import report, store
        from pipeline.report import metrics

        above = self.requires()
        stores = {"Frames": store.open_frames(above["frames"].path), "Flow": store.open_flow(above["flow"].path)}
        catalog = above["catalog"].read()
        background = report.Background(
            fusion=above["fuse"].chosen(),
            curves={stream: files.read_json(above[stream].path) for stream in STREAMS},
            failed=metrics.first_reasons({stage: opened.failed for stage, opened in stores.items()}),
            odd=stores["Frames"].odd,
            settings={name: spec.as_dict() for name, spec in self.specs().items()},
            identity={
                name: spec.identity_with_paths()
                for name, spec in self.specs().items()
                if name not in ("cluster", "run")
            },
            stages=[
                {"stage": type(t).__name__, "label": t.label, "digest": t.digest, "path": str(t.path)}
                for t in self.before()
            ],
            counts=catalog.counts(),
            absent=catalog.absent,
            groups=catalog.groups(),
            command=settings.command_line(),
        )
        about = {"dataset": self.dataset_name, "split": self.split_name, "inputs": self.inputs_key()}
        report.write(self.folder, background, **self.tables(), **about)
        files.link(self.folder.parent / "latest", self.folder)

    def specs(self) -> dict[str, Spec]:
        """Every setting, with its value in this run, by section."""
        found = {name: self.spec(name) for name in ("dataset", "frames", "flow", "score", "fusion", "cluster")}
        found["dataset"] = dataclasses.replace(found["dataset"], split=self.split_name)
        return {**found, **{s: self.requires()[s].stream_spec for s in STREAMS}, "run": self.run_spec}


class FullPipeline(Whole):
    """The whole chain, from a folder of videos to `report.html`."""

    def requires(self) -> Stage:
        """The report, which requires everything else."""
        return self.clone(Report)

    def run(self) -> None:
        """Print the table of accuracies and the path of the report."""
        from pipeline.report import metrics

        report = self.requires()
        say(f"{metrics.headline_text(report.output().recorded())}\n{report.folder / 'report.html'}")

    def say_present(self) -> None:
        """Print the existing table."""
        say("FullPipeline: everything is there")
        self.run()
