"""Score unlabeled videos with trained streams."""

from __future__ import annotations

from pathlib import Path

import luigi

from pipeline.specs import FUSIONS, STREAMS
from pipeline.system import files
from pipeline.system.console import class_difference, some
from pipeline.system.digests import digest_of
from pipeline.system.errors import StageFailed, UserError
from pipeline.system.progress import say
from tasks.base import Stage
from tasks.conclude import Fuse
from tasks.learn import ScoreStream
from tasks.listing import Catalog, OfVideos
from tasks.prepare import Flow, Frames


class ScoreVideos(OfVideos):
    """The predictions of a dataset's trained streams for other videos: `predictions.csv` and the fused `scores.h5`.

        luigi --module tasks ScoreVideos --dataset ucf101 --split 1 --videos /path/to/videos

    The streams are those of the given dataset, split and settings; they are trained first if necessary. With both
    checkpoints given, nothing else of the dataset is needed, not even its videos.
    """

    stage = "score_videos"
    spatial_checkpoint = luigi.Parameter(
        default="", description="a spatial checkpoint to use instead of the dataset's own"
    )
    temporal_checkpoint = luigi.Parameter(default="", description="the same for the temporal stream")
    fuse = luigi.ChoiceParameter(choices=FUSIONS, default="average", description="how the streams become one")
    VERSION = 3

    def check_settings(self) -> None:
        """Refuse also a fusion that was not chosen for the given checkpoints."""
        super().check_settings()
        given = [f"--{s}-checkpoint" for s in STREAMS if getattr(self, f"{s}_checkpoint")]
        if self.fuse != "average" and given:
            raise UserError(
                f"--fuse is {self.fuse!r}, which was chosen for the streams trained here, not for {given[0]}; use "
                "the average"
            )

    @property
    def label(self) -> str:
        """The fusion, and the split that the streams were trained on."""
        return files.plain_name(f"{self.fuse}-{self.split_name}")

    def own_digest(self) -> str:
        """Digest of the fusion and of everything it reads."""
        return digest_of("score_videos", self.VERSION, self.fuse, self.digests_before())

    def requires(self) -> dict[str, Stage]:
        """The scores of both streams, the catalog, the stores (for failed clips), and `Fuse` unless by average."""
        given = {"spatial": self.spatial_checkpoint, "temporal": self.temporal_checkpoint}
        return {
            **{s: self.clone(ScoreStream, stream=s, part="test", checkpoint=given[s]) for s in STREAMS},
            "catalog": self.clone(Catalog),
            "frames": self.clone(Frames),
            "flow": self.clone(Flow),
            **({} if self.fuse == "average" else {"chosen": self.clone(Fuse)}),
        }

    def keys_read(self) -> list[str]:
        """Also the ids and paths of the videos: a file that is moved but keeps its id keeps its frames and flow."""
        names = [[clip.id, clip.path] for clip in self.clone(Catalog).read().clips]
        return [*super().keys_read(), digest_of(names)]

    @property
    def table(self) -> Path:
        """Path of `predictions.csv`."""
        return self.folder / "predictions.csv"

    def check(self) -> None:
        """Refuse a folder without videos, a fusion that cannot be chosen, and streams with different classes."""
        if not self.videos:
            raise UserError("ScoreVideos needs --videos, the folder of the videos that are to be scored")
        self.clone(Catalog).outline()
        if self.fuse != "average" and self.clone(Catalog, videos="").lacks_val():
            raise UserError(
                f"--fuse is {self.fuse!r}, which is chosen on validation clips, and [dataset] val_fraction is 0; "
                "raise it, or use the average"
            )

        if given := [task.weights for task in self.before() if isinstance(task, ScoreStream) and task.checkpoint]:
            self._check_classes(given)

    def _check_classes(self, given: list[Path]) -> None:
        """Refuse checkpoints whose classes differ from each other's, or a single one's from the dataset's."""
        from pipeline.networks.checkpoint import classes_in

        known = {str(path): classes_in(path) for path in given}
        if len(given) == 1 and (clips := self.clone(Catalog, videos="").outline()):
            known[f"dataset {self.dataset_name}"] = clips.classes
        if len(set(known.values())) > 1:
            both = " and ".join(f"{what} knows {len(of)} classes ({some(of, 3)})" for what, of in known.items())
            raise UserError(
                f"{both}: streams of different classes cannot be fused; they have {class_difference(*known.values())}"
            )

    def make(self) -> None:
        """Fuse the scores of both streams, and write the predictions and the fused scores."""
        from pipeline import fusion, store
        from pipeline.networks.checkpoint import clips_seen
        from pipeline.scores import Scores, predictions

        of = self.requires()
        how = fusion.read(of["chosen"].path)[self.fuse] if "chosen" in of else fusion.Weighted(0.5)
        tables = {stream: Scores.read(of[stream].path) for stream in STREAMS}
        fused = how.apply(*tables.values())
        stores = store.open_frames(of["frames"].path), store.open_flow(of["flow"].path)
        known = frozenset().union(*(seen for s in STREAMS for seen in clips_seen(of[s].weights)))
        predictions.write(self.table, {"fused": fused, **tables}, of["catalog"].read(), *stores, known)
        if len(fused.failed) == len(fused):  # without scores the task is not complete: the next run tries again
            self._show()
            raise StageFailed(f"none of the {len(fused)} videos could be scored")
        fused.write(self.path, **self.attrs())

    def run(self) -> None:
        """Make the predictions, then print them and the path of their file."""
        super().run()
        self._show()

    def say_present(self) -> None:
        """Print the existing predictions."""
        super().say_present()
        self._show()

    def _show(self) -> None:
        from pipeline.scores import predictions

        say(f"{predictions.shown(self.table)}\n{self.table}")
