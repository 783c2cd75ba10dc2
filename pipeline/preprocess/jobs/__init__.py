"""What a worker does with one shard: `frames.py` decodes videos, `flow.py` computes flow. Each clip gets one outcome.

A job is sent to a worker, which makes the shard and returns the number of clips.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2

from pipeline import store
from pipeline.system.console import one_line
from pipeline.system.errors import ClipError, MachineFault

BAD_CLIP = (ClipError, cv2.error)  # errors that are the clip's fault and become its reason; all others fail the shard
_OF_THE_MACHINE = (cv2.Error.StsNoMem, cv2.Error.GpuNotSupported, cv2.Error.GpuApiCallError)


@dataclass(frozen=True, kw_only=True)
class ShardJob(ABC):
    """One shard to make: paths and settings, never arrays."""

    kind: ClassVar[str]  # of the store: frames or flow
    path: Path
    attrs: dict[str, Any]
    careful: bool = False  # the second try, after its process died or a read failed: first try each clip in another
    earlier: tuple[Path, ...] = ()  # earlier shards that may hold some of the clips

    @property
    @abstractmethod
    def units(self) -> int:
        """Number of clips, for the progress bar."""

    @property
    @abstractmethod
    def cost(self) -> int:
        """Estimate of the work, for the order of jobs."""

    @abstractmethod
    def make(self) -> int:
        """Make the shard; returns its number of clips."""

    def again(self) -> ShardJob:
        """The second try, after a worker died or a disk failed: slower, but on a CPU no clip can end its process."""
        return dataclasses.replace(self, careful=True, earlier=())

    def is_current(self) -> bool:
        """Whether the shard is there, made with these settings from these inputs."""
        return store.shard_is_current(self.path, self.kind, digest=self.attrs["digest"], inputs=self.attrs["inputs"])


def make_shard(job: ShardJob) -> int:
    """Make the shard of a job; the function that workers are given.

    Raises:
        MachineFault: the store's folder, which is made before any job is handed out, is not there.
    """
    if not job.path.parent.is_dir():
        raise MachineFault(
            f"{socket.gethostname()} does not see {job.path.parent}; every worker needs the folder of artifacts under "
            "the same path, on a shared file system"
        )
    return job.make()


@contextlib.contextmanager
def opencv_threads_as_before() -> Iterator[None]:
    """Give OpenCV its threads back after the block: a job limits it to one, in whatever process it runs."""
    before = cv2.getNumThreads()
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextlib.contextmanager
def machine_faults() -> Iterator[None]:
    """Turn OpenCV's errors that are the machine's fault, not a clip's, into `MachineFault`."""
    try:
        yield
    except cv2.error as error:
        if getattr(error, "code", None) not in _OF_THE_MACHINE:
            raise
        raise MachineFault(f"OpenCV on this machine: {one_line(str(error))}") from error
