"""Make the frames and flow of the clips in the catalog."""

from __future__ import annotations

import functools
from pathlib import Path

from pipeline.system.digests import file_hashes
from pipeline.system.errors import UserError
from pipeline.system.progress import say_once
from tasks.base import Stage
from tasks.listing import Catalog, OfVideos
from tasks.mistakes import one_line_errors
from tasks.session import may_write


@functools.lru_cache(64)  # the rows of a table of the paper share a store, whose index takes 0.2 s with UCF-101's clips
def _outcomes(path: Path, kind: str, stamp: tuple[int, int]) -> tuple[frozenset[str], int]:
    """The clips of a store that have failed, and of how many; `stamp` tells its index from a later one."""
    from pipeline import store

    found = store.Store(path, kind)
    return frozenset(found.failed), len(found.rows)


class _Store(OfVideos):
    """What Frames and Flow have in common: an index over shards, used by all splits of the dataset."""

    is_read_throughout = True
    priority = 1  # before any training: the workers of one store are kept for the next

    def key(self) -> str:
        """Content key of all clips."""
        return self.output().recorded().get("key", "")  # without one the file is damaged, as its reader says

    def is_current(self) -> bool:
        """Whether the store is there and of the current inputs. Too many failed clips are refused, whoever made it.

        The share that may fail changes no byte of a store, so it makes none anew, and has to be looked at here.
        """
        if not super().is_current():
            return False
        with one_line_errors():
            allowed, (failed, clips) = self.spec("frames").max_bad_fraction, self._failed()
            if len(failed) > allowed * clips:
                raise UserError(
                    f"{self.title}: {len(failed)} of {clips} clips have failed, more than [frames] max_bad_fraction = "
                    f"{allowed:g} allows; fix or remove these videos, or allow a larger fraction; {self._retry} makes "
                    "the next run try them again"
                )
        return True

    def _failed(self) -> tuple[frozenset[str], int]:
        about = self.path.stat()
        return _outcomes(self.path, self.stage, (about.st_mtime_ns, about.st_ino))

    @property
    def _retry(self) -> str:
        from pipeline import store

        return f"`{store.repair_command(self.folder)} --failed`"

    def say_present(self) -> None:
        """Say that it was found, and what failed here or in the frames: a higher time limit alone makes nothing again.

        Luigi does not look for the frames if the flow is there.
        """
        super().say_present()
        known: set[str] = set()  # a clip without frames has failed in the flow too, where nothing can be done about it
        for task in (*(before for before in self.before() if isinstance(before, _Store)), self):
            all_failed, clips = task._failed()
            if failed := all_failed - known:
                say_once(
                    f"{task.title}: {len(failed)} of {clips} clips have failed; {task._retry} makes the next "
                    "run try them again"
                )
            known |= failed


class Frames(_Store):
    """The frames of every clip, resized, as JPEG in HDF5 shards."""

    stage = "frames"
    reads = (*Catalog.reads, "frames", "cluster")

    @property
    def label(self) -> str:
        """The size of the frames."""
        side = self.spec("frames").short_side_px
        return f"short{side}" if side else "native"

    def own_digest(self) -> str:
        """Digest of the frames' own settings; the videos are recorded as inputs."""
        return self.spec("frames").digest()

    def requires(self) -> list[Stage]:
        """The catalog."""
        return [self.clone(Catalog)]

    def inputs_key(self) -> str:
        """Content key of the videos and their labels, but not of the split."""
        return self.requires()[0].videos_key()

    def check(self) -> None:
        """If the videos are gone, refuse to replace the existing frames by those of other clips.

        An older catalog of another split may list fewer videos; the frames of the rest could not be made again.
        """
        catalog = self.requires()[0]
        if catalog.outlives_its_videos() and self.path.is_file():
            videos = self.spec("dataset").videos
            raise UserError(
                f"the videos are no longer at {videos}, and the frames in {self.folder} are of other videos than the "
                f"catalog of split {self.split_name}, which is older; bring the videos back, or use a split with a "
                "catalog of the same videos"
            )

    def make(self) -> None:
        """Decode every clip, shard by shard."""
        from pipeline import preprocess

        preprocess.make_frames(
            self.folder,
            self.requires()[0].read(),
            videos=Path(self.spec("dataset").videos),
            spec=self.spec("frames"),
            cluster=self.spec("cluster"),
        )


class Flow(_Store):
    """The optical flow of every clip, computed from the cached frames and stored as JPEG planes in HDF5 shards."""

    stage = "flow"
    reads = (*Frames.reads, "flow")

    @property
    def label(self) -> str:
        """The method."""
        return self.spec("flow").method

    def own_digest(self) -> str:
        """Digest of the settings of flow and frames, and of RAFT's weights if they come from a file."""
        spec = self.spec("flow")
        return spec.digest(self.requires()[0].digest, *file_hashes(spec.weights_file))

    def requires(self) -> list[Stage]:
        """The frames."""
        return [self.clone(Frames)]

    def inputs_key(self) -> str:
        """Content key of the frames."""
        return self.requires()[0].key()

    def check(self) -> None:
        """Refuse a method that cannot run on this machine, if flow is computed here."""
        if self.spec("cluster").is_here and (may_write() or not self.to_download()):
            from pipeline import flow

            flow.check(self.spec("flow"), device=self.on_device)

    @property
    def on_device(self) -> str:
        """The device of the run, which is also that of its trainings; "auto" for a method that knows only the CPU."""
        from pipeline import flow

        return self.run_spec.device if "cuda" in flow.devices(self.spec("flow").method) else "auto"

    @property
    def resources(self) -> dict[str, int]:
        """A GPU, if flow may be computed on one of this machine's: no training should use it at the same time."""
        from pipeline import flow

        here = self.spec("cluster").is_here
        return {"gpu": 1} if here and flow.may_use_cuda(self.spec("flow").method, self.run_spec.device) else {}

    def to_download(self) -> str:
        """The weights file that `check` would download; "" if none."""
        from pipeline import flow

        return flow.to_download(self.spec("flow"))

    def make(self) -> None:
        """Compute flow for every clip, shard by shard."""
        from pipeline import preprocess

        preprocess.make_flow(
            self.folder,
            self.requires()[0].path,
            spec=self.spec("flow").with_absolute_paths(),
            cluster=self.spec("cluster"),
            device=self.on_device,
            max_bad_fraction=self.spec("frames").max_bad_fraction,
        )
