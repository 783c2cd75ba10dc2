"""The cost of each artifact in a plan: maps tasks to measurements, each of which is made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import luigi

from pipeline import catalog, cluster, estimates, preprocess
from pipeline.estimates import MOMENTS, Cached, Videos, Work, measure, measure_networks
from pipeline.networks import checkpoint, imagenet
from pipeline.specs import StreamSpec
from pipeline.training.validation import VALIDATION_FRAMES
from tasks import settings
from tasks.learn import ScoreStream, TrainStream
from tasks.listing import Catalog, DemoVideos
from tasks.mistakes import error_line
from tasks.prepare import Flow, Frames
from tasks.states import IS_THERE, ArtifactState

ELSEWHERE = "on one worker like this machine"  # for kind = address or jobqueue


class Costs:
    """The costs of the tasks of one plan."""

    def __init__(self, state_of: Callable[[luigi.Task], ArtifactState], *, one_thread: bool):
        """`state_of` gives the state of a task's artifact; `one_thread` times networks on one CPU thread."""
        self._state_of, self._one_thread, self._known, self._read = state_of, one_thread, {}, set()

    def of(self, task: luigi.Task) -> Work:
        """The cost of what is left to do for a task or, if it cannot be measured, the reason."""
        how = {
            DemoVideos: self._demo,
            Catalog: self._catalog,
            Frames: self._frames,
            Flow: self._flow,
            TrainStream: self._training,
            ScoreStream: self._scores,
        }.get(type(task))
        if how is None:
            return MOMENTS
        try:
            return how(task)
        except Exception as error:  # a driver may fail in any way; the other rows are still useful
            return Work(note=f"cannot be measured: {error_line(error)}")

    def _once(self, what: Hashable, measured: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if what not in self._known:
            self._known[what] = measured(*given, **named)
        return self._known[what]

    # --- the stages

    def _demo(self, task: DemoVideos) -> Work:
        return self._unwritten(Frames(dataset=task.dataset))[0]

    def _catalog(self, task: Catalog) -> Work:
        clips = self._state_of(task).catalog.clips
        new = sum(clip.bytes for clip in clips if clip.content == catalog.UNREADABLE)
        if not new or task.dataset_folder in self._read:  # one split's reading serves all splits
            return MOMENTS
        self._read.add(task.dataset_folder)
        videos = self._videos(task.clone(Frames))
        return estimates.catalog_work(videos, new_bytes=new, threads=catalog.reading_threads())

    def _frames(self, task: Frames) -> Work:
        at, where = self._state_of(task), task.spec("cluster")
        workers = cluster.shared_by(where, most=at.shards_left)
        work = estimates.frames_work(self._videos(task), share=at.share, clips=at.clips, workers=workers)
        return _elsewhere(work, where)

    def _flow(self, task: Flow) -> Work:
        if missing := task.to_download():
            return Work(note=f"the first use downloads {missing}; only then can it be timed")
        at, spec, where, frames = self._state_of(task), task.spec("flow"), task.spec("cluster"), task.requires()[0]
        clips, device = self._cached(frames), task.on_device
        cost = self._once(("pair", spec, frames.folder), measure.pair, clips.samples, spec, device=device)
        devices = preprocess.devices_of(spec, where, device)
        work = estimates.flow_work(
            cost,
            clips,
            share=at.share,
            clips=at.clips,
            workers=cluster.shared_by(where, devices, most=at.shards_left),
            threads=cluster.threads_each(where, devices) or 1,
            on_gpu=bool(devices),
        )
        return _elsewhere(work, where)

    def _training(self, task: TrainStream) -> Work:
        spec, at = task.stream_spec, self._state_of(task)
        views = len(at.catalog.part("val")) * VALIDATION_FRAMES
        sharing = measure_networks.gpus_that_share(spec, task.run_spec.device)
        cost, left = self._network(task), spec.steps - at.steps_done
        work = estimates.training_work(cost, spec, steps=left, validation_views=views, sharing=sharing)
        missing = imagenet.to_download(spec)
        return estimates.noted(work, f"the first use downloads {missing}") if missing else work

    def _scores(self, task: ScoreStream) -> Work:
        if task.checkpoint:
            found = checkpoint.load_checkpoint(task.weights)
            cost, classes = self._timed(found.spec, len(found.classes), task.run_spec.device), len(found.classes)
        else:  # the classes are the training's: other videos that are scored here have none
            trained = task.trained[0]
            cost, classes = self._network(trained), len(self._state_of(trained).catalog.classes)
        return estimates.scoring_work(cost, task.spec("score"), clips=self._state_of(task).clips, classes=classes)

    # --- what they are measured on

    def _network(self, task: TrainStream) -> estimates.StepCost:
        return self._timed(task.stream_spec, len(self._state_of(task).catalog.classes), task.run_spec.device)

    def _timed(self, spec: StreamSpec, classes: int, device: str) -> estimates.StepCost:
        spec, how = measure_networks.timed_as(spec), {"device": device, "one_thread": self._one_thread}
        return self._once(("network", spec, classes), measure_networks.network, spec, classes, **how)

    def _videos(self, task: Frames) -> Videos:
        listed, dataset, spec = task.requires()[0], task.spec("dataset"), task.spec("frames")
        if not all(one.complete() for one in listed.before()):
            return self._unwritten(task)[1]
        clips = self._state_of(listed).catalog.clips
        return self._once(("videos", task.folder), measure.videos, Path(dataset.videos), clips, spec)

    def _unwritten(self, task: Frames) -> tuple[Work, Videos]:
        spec, clips = settings.resolve("demo", task.dataset_name), self._state_of(task.requires()[0]).catalog
        return self._once(("demo", spec, task.spec("frames")), measure.unwritten_demo, spec, clips, task.spec("frames"))

    def _cached(self, task: Frames) -> Cached:
        """The frames themselves if they exist, else an estimate from the videos."""
        if self._state_of(task).state == IS_THERE:
            return self._once(("cached", task.folder), measure.cached, task.path)
        return self._videos(task).cached


def _elsewhere(work: Work, where) -> Work:
    return work if where.is_here else estimates.noted(work, ELSEWHERE)
