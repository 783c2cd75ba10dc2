"""One flow shard: clips that were computed before are copied, the others go through the steps of `flow_pipeline.py`.

On a CPU a clip that crashes a flow method is found by computing each clip in a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2

from pipeline import store
from pipeline.flow import check as check_method
from pipeline.flow import estimate_on_device, method_device, pairs_of, takes_color, tensor_device
from pipeline.flow.device import on_cuda_device
from pipeline.preprocess.jobs import ShardJob
from pipeline.preprocess.jobs.batches import FlowClip, write_complete
from pipeline.preprocess.jobs.earlier import Earlier
from pipeline.preprocess.jobs.flow_pipeline import FlowPipeline
from pipeline.preprocess.jobs.helpers import Helpers
from pipeline.specs import FlowSpec
from pipeline.system.limits import one_thread, usable_cores
from pipeline.system.processes import status_of


@dataclass(frozen=True, kw_only=True)
class FlowJob(ShardJob):
    """One flow shard, to be made from the frames shard of the same name."""

    kind: ClassVar[str] = "flow"
    frames: Path
    records: tuple[store.Record, ...]
    spec: FlowSpec
    device: str
    threads: int = 1  # threads that decode and encode; 0: the device's share of the cores

    @property
    def units(self) -> int:
        """Number of clips, for the progress bar."""
        return len(self.records)

    @property
    def cost(self) -> int:
        """Estimate of the work, for the order of jobs: the number of frames."""
        return sum(record.frames for record in self.records)

    def make(self) -> int:
        """Make the shard; returns its number of clips.

        Clips that were computed before from the same frame bytes are copied. Clips enter the shard in the order of the
        records, so that its bytes do not depend on which ones are copied.
        """
        cv2.setNumThreads(1)
        job = _without_crashes(self) if self.careful else self
        with (
            store.open_frames(job.frames) as source,
            Earlier(job.earlier, job.kind, job.attrs["digest"]) as earlier,
            store.create_shard(job.path, job.kind, job.attrs) as shard,
        ):
            clips = {
                record.id: FlowClip(record, source, shard.clip(record.id), earlier)
                for record in job.records
                if record.status == "ok"
            }
            waiting = deque(clips.values())
            write_complete(waiting, job.spec)
            if waiting:
                _compute(job, waiting)
            for record in job.records:
                shard.record(clips[record.id].outcome() if record.id in clips else record)
        return job.units


def _compute(job: FlowJob, clips: deque[FlowClip]) -> None:
    """Compute the flow of the clips that are not complete, and write all clips into the shard."""
    device = _checked_device(job)
    tensors_on = tensor_device(job.spec.method, device)
    by_network_here = takes_color(job.spec.method) and device == "cpu"  # rounding depends on the threads
    with (
        Helpers(job.threads or _share_of_cores(tensors_on)) as helpers,
        on_cuda_device(tensors_on),
        one_thread() if by_network_here else contextlib.nullcontext(),
    ):
        FlowPipeline(job.spec, device, clips, helpers).run()


def _checked_device(job: FlowJob) -> str:
    check_method(job.spec, device=job.device)  # a method that cannot work on this machine is no fault of the clips
    return method_device(job.spec.method, job.device)


def _without_crashes(job: FlowJob) -> FlowJob:
    """The job, with those clips marked as failed whose flow, on the CPU, crashes the process that computes it."""
    if _checked_device(job) != "cpu":
        return job
    records = []
    for record in job.records:
        if record.status == "ok" and (name := _crash_of(job, record.id)):
            record = record._replace(status="failed", reason=f"no flow: {job.spec.method} crashed ({name})", crc32=0)
        records.append(record)
    return dataclasses.replace(job, records=tuple(records))


def _crash_of(job: FlowJob, video_id: str) -> str:
    """Name of the signal that ends a process of its own in which the flow of a clip is computed; "" if none does."""
    compute = "from pipeline.preprocess.jobs.flow import try_clip; try_clip(*sys.argv[1:])"
    code = status_of(compute, str(job.frames), video_id, json.dumps(job.spec.as_dict()))
    # one that is killed from outside, perhaps for lack of memory, is not to blame
    return signal.Signals(-code).name if code < 0 and -code != signal.SIGKILL else ""


def try_clip(frames: str, video_id: str, settings: str) -> None:
    """Compute the flow of one clip on the CPU, and forget it.

    Args:
        frames: path of its frames shard.
        video_id: its id.
        settings: `FlowSpec.as_dict()` as JSON.
    """
    spec = FlowSpec(**json.loads(settings))
    with store.open_frames(frames) as source, one_thread():
        clip = source[video_id]
        room = pairs_of((clip.height, clip.width), spec, device="cpu")
        for first in range(0, len(clip) - 1, room):
            last = min(first + room, len(clip) - 1) + 1
            images = clip.frames(first, last) if takes_color(spec.method) else clip.gray(first, last)
            for direction in spec.directions:
                estimate_on_device(images, spec, device="cpu", direction=direction)


def _share_of_cores(device: str) -> int:
    if device == "cpu":
        return 1
    import torch

    return max(1, usable_cores() // torch.cuda.device_count())
