"""What is left to make of a store: shards, clips, and their share of the work. Only the shards' attributes are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.preprocess import flow_jobs, outdated
from pipeline.preprocess.jobs.frames import FramesJob
from pipeline.specs import FlowSpec


class Left(NamedTuple):
    """The part of a store that is still to be made."""

    shards: int
    """Number of shards to be made."""
    all_shards: int
    """Number of shards of the whole store."""
    clips: int
    """Number of clips in the shards to be made."""
    share: float
    """Share of these clips in the bytes of all videos, 0 to 1."""


def frames_left(jobs: Sequence[FramesJob]) -> Left:
    """What is left to make of a frames store with these shards; only the shards' attributes are read."""
    return _left(jobs, outdated(jobs))


def flow_left(folder: Path, frames: Sequence[FramesJob], *, spec: FlowSpec, device: str, attrs: dict[str, Any]) -> Left:
    """What is left to make of the flow store at `folder`, from the shards of `frames`, which may be unfinished too."""
    missing = {job.path for job in outdated(frames)}
    there = [job.path for job in frames if job.path not in missing]
    jobs = flow_jobs(folder.absolute(), there, spec=spec, device=device, attrs=attrs)
    undone = {job.path.name for job in outdated(jobs)}
    return _left(frames, [job for job in frames if job.path in missing or job.path.name in undone])


def _left(jobs: Sequence[FramesJob], waiting: Sequence[FramesJob]) -> Left:
    # the videos of a demo that is not written yet have no bytes: its clips are counted instead
    some, whole = (sum(job.cost or job.units for job in of) for of in (waiting, jobs))
    return Left(len(waiting), len(jobs), sum(job.units for job in waiting), some / max(1, whole))
