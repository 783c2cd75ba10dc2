"""Trained streams to videos that nobody has labelled."""

from __future__ import annotations

import luigi

from pipeline import files
from pipeline.progress import say
from pipeline.specs import FUSIONS, STREAMS
from pipeline.specs.base import digest_of
from tasks.base import Stage
from tasks.conclude import Fuse
from tasks.learn import ScoreStream
from tasks.listing import Catalog, OfVideos
from tasks.prepare import Flow, Frames


class ScoreVideos(OfVideos):
    """What a dataset's trained streams say of other videos: `predictions.csv` and the fused `scores.h5`.

        luigi --module tasks ScoreVideos --dataset ucf101 --split 1 --videos /path/to/videos

    The streams are those of the dataset, the split and the settings, and are trained first if they are not. With both
    checkpoints given nothing else of the dataset is needed, not even its videos.
    """

    spatial_checkpoint = luigi.Parameter(
        default="", description="trained weights of the spatial stream, from wherever, in place of the dataset's own"
    )
    temporal_checkpoint = luigi.Parameter(default="", description="the same of the temporal stream")
    fuse = luigi.ChoiceParameter(choices=FUSIONS, default="average", description="how the streams become one")
    file = "scores.h5"  # written after the predictions

    @property
    def label(self) -> str:
        """The fusion, and the split that the streams were trained on."""
        return files.plain_name(f"{self.fuse}-{self.split_name}")

    def own_digest(self) -> str:
        """The digests of all that is read."""
        return digest_of("score_videos", self.fuse, [task.digest for task in self.before()])

    def requires(self) -> dict[str, Stage]:
        """The scores of both streams, the videos, where each of them failed, and what the fusion was chosen to be."""
        given = {"spatial": self.spatial_checkpoint, "temporal": self.temporal_checkpoint}
        return {
            **{s: self.clone(ScoreStream, stream=s, part="test", checkpoint=given[s]) for s in STREAMS},
            "catalog": self.clone(Catalog),
            "frames": self.clone(Frames),
            "flow": self.clone(Flow),
            **({} if self.fuse == "average" else {"chosen": self.clone(Fuse)}),
        }

    def keys_read(self) -> list[str]:
        """Where the videos lie as well: one that is only renamed keeps its frames and flow."""
        names = [[clip.id, clip.path] for clip in self.clone(Catalog).read().clips]
        return [*super().keys_read(), digest_of(names)]

    @property
    def table(self):
        """What is said of each video, as a text."""
        return self.folder / "predictions.csv"

    def is_current(self) -> bool:
        """Whether the text is there as well."""
        return self.table.is_file() and super().is_current()

    def check(self) -> None:
        """Refuse a folder without videos, and a fusion that cannot be chosen."""
        if not self.videos:
            raise ValueError("ScoreVideos needs --videos, the folder of the videos that are to be scored")
        self.clone(Catalog).outline()
        if self.fuse != "average" and self.clone(Catalog, videos="").lacks_val():
            raise ValueError(
                f"--fuse is {self.fuse!r}, which is chosen on validation clips, and [dataset] val_fraction is 0; "
                "raise it, or take the average"
            )

    def make(self) -> None:
        """Fuse, and write what is said of each video."""
        from pipeline import fusion, predictions, store
        from pipeline.scores import Scores

        of = self.requires()
        how = fusion.read(of["chosen"].path)[self.fuse] if "chosen" in of else fusion.Weighted(0.5)
        tables = {stream: Scores.read(of[stream].path) for stream in STREAMS}
        fused = how.apply(*tables.values())
        stores = store.open_frames(of["frames"].path), store.open_flow(of["flow"].path)
        predictions.write(self.table, {"fused": fused, **tables}, of["catalog"].read(), predictions.reasons(*stores))
        fused.write(self.path, **self.attrs())

    def run(self) -> None:
        """Make it, and end with what is said of the videos and the path of the text."""
        super().run()
        self._show()

    def say_present(self) -> None:
        """Nothing had to be done: show what there is."""
        super().say_present()
        self._show()

    def _show(self) -> None:
        from pipeline import predictions

        say(f"{predictions.shown(self.table)}\n{self.table}")
