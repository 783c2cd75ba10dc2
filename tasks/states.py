"""The state of a task's artifact: whether it, or parts of it, exist and what is left to make. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import luigi

from pipeline import demo, preprocess, store
from pipeline.catalog import Catalog as Clips
from pipeline.preprocess import remaining, sharding
from pipeline.system.files import size_of
from tasks import settings
from tasks.base import Stage
from tasks.learn import ScoreStream, TrainStream
from tasks.listing import Catalog, DemoVideos
from tasks.mistakes import Refused, error_line
from tasks.prepare import Flow, Frames

IS_THERE, TO_MAKE, GOES_ON, ANEW, UNKNOWN = "is there", "to make", "goes on", "made anew", "not known"
_IF_CHANGED = "unless what it reads comes out as it was"


@dataclass
class ArtifactState:
    """The state of one task's artifact."""

    state: str = TO_MAKE
    """One of IS_THERE, TO_MAKE, GOES_ON, ANEW, UNKNOWN."""
    bytes: int = 0
    """Its size on disk."""
    notes: list[str] = field(default_factory=list)
    refused: bool = False
    """Whether Luigi would refuse to begin because a file is missing; a note says which."""
    catalog: Clips | None = None
    """The clips as they are now, or will be."""
    clips: int | None = None
    """Number of clips that it covers; for an unfinished store, those still to be made or copied."""
    share: float = 1.0
    """These clips' share of the bytes of all videos, 0 to 1."""
    shards_left: int = 1
    steps_done: int = 0
    """Steps that an interrupted training has done."""


def before_of(task: luigi.Task) -> list[luigi.Task]:
    """The tasks that a task reads: those it requires and, for a table, those it runs itself."""
    more = task.before() if isinstance(task, Stage) else []
    return list(dict.fromkeys([*luigi.task.flatten(task.requires()), *more]))


def folder_of(task: luigi.Task) -> Path | None:
    """Folder of the artifact of a stage, or of the demo; None for a task that only requires others."""
    return Path(task.folder) if isinstance(task, (Stage, DemoVideos)) else None


class ArtifactStates:
    """The states of all tasks of a plan; each artifact is examined once."""

    def __init__(self):
        self._found: dict[Path, ArtifactState] = {}

    def of(self, task: luigi.Task) -> ArtifactState:
        """The state of a task's artifact; everything the task reads is examined first.

        Raises:
            Refused: a wrong setting, reported in one line as Luigi's command does.
        """
        folder = folder_of(task)
        if folder not in self._found:
            before = [self.of(one) for one in before_of(task) if folder_of(one)]
            self._found[folder] = self._look(task, before)
        return self._found[folder]

    def _look(self, task: luigi.Task, before: list[ArtifactState]) -> ArtifactState:
        found = ArtifactState(bytes=size_of(folder_of(task)))
        try:
            if any(one.state == UNKNOWN for one in before):
                found.state = UNKNOWN
            elif task.complete():
                found.state = IS_THERE
            if found.state != UNKNOWN:
                self._count(task, found)
        except (Refused, OSError) as refusal:
            if isinstance(refusal, Refused) and not isinstance(refusal.error, OSError):
                raise  # a missing file is only noted: it may exist tomorrow
            found.state, found.refused = UNKNOWN, True
            found.notes.append(error_line(refusal))
        if found.state == TO_MAKE:
            self._look_for_parts(task, found, all(one.state == IS_THERE for one in before))
        return found

    def _count(self, task: luigi.Task, found: ArtifactState) -> None:
        """Fill in the clips that a task's artifact covers."""
        if isinstance(task, Catalog):
            found.catalog = task.outline(contents=True) or self._unwritten(task)
        elif isinstance(task, (Frames, Flow, TrainStream, ScoreStream)):
            found.catalog = self.of(task.clone(Catalog)).catalog
        if found.catalog is not None:
            part = {TrainStream: "train", ScoreStream: getattr(task, "part", "")}.get(type(task))
            found.clips = len(found.catalog.part(part) if part else found.catalog.clips)

    def _unwritten(self, task: Catalog) -> Clips:
        return demo.outline(settings.resolve("demo", task.dataset_name), task.spec("dataset"), task.split_name)

    # --- artifacts that are not complete

    def _look_for_parts(self, task: luigi.Task, found: ArtifactState, inputs_are_there: bool) -> None:
        if isinstance(task, Stage) and task.path.is_file():
            found.state = ANEW
            if not inputs_are_there:
                found.notes.append(_IF_CHANGED)
        if isinstance(task, (Frames, Flow)):
            self._look_for_shards(task, found)
        elif isinstance(task, TrainStream) and (task.folder / "resume.pt").is_file():
            found.steps_done = task.steps_done() if inputs_are_there else 0
            if found.steps_done:
                found.state = GOES_ON
                found.notes.append(f"{found.steps_done} of {task.stream_spec.steps} steps are done")
            elif not inputs_are_there:
                found.notes.append("an interrupted training is there, which goes on if what it reads is as it was")

    def _look_for_shards(self, task: Frames | Flow, found: ArtifactState) -> None:
        left = self._left(task, found.catalog)
        found.clips, found.share, found.shards_left = left.clips, left.share, left.shards
        if left.shards < left.all_shards:
            found.state = GOES_ON
            found.notes = [f"{left.all_shards - left.shards} of {left.all_shards} shards are there"]
        if left.shards and task.path.is_file():
            found.notes.append("clips that have not changed are copied, which takes less")
        if not left.shards:
            found.notes = ["all shards are there; what is left is to check them and how many clips have failed"]

    def _left(self, task: Frames | Flow, clips: Clips) -> remaining.Left:
        frames = task if isinstance(task, Frames) else task.requires()[0]
        spec, plan = frames.spec("frames"), None
        if frames is not task and self.of(frames).state == IS_THERE:
            plan = sharding.plan_of(store.open_frames(frames.path), clips.clips)
        jobs = preprocess.frames_jobs(
            frames.folder.absolute(),
            clips,
            videos=Path(frames.spec("dataset").videos),
            spec=spec,
            cluster=frames.spec("cluster"),
            attrs=preprocess.store_attrs(spec),
            plan=plan,
        )
        if frames is task:
            return remaining.frames_left(jobs)
        spec, attrs = task.spec("flow"), preprocess.store_attrs(task.spec("flow"), frames.digest)
        return remaining.flow_left(task.folder, jobs, spec=spec, device=task.on_device, attrs=attrs)
