"""The pictures of a stream as its store holds them: frames, or windows of flow, read with patience."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline import stacks, store
from pipeline.catalog import Clip
from pipeline.specs import StackSpec, StreamSpec
from pipeline.stacks.stored import EncodedStack, Planes, stored_stack
from pipeline.system.console import plain
from pipeline.system.files import DISK_AWAY
from pipeline.system.progress import say

PAUSES_SECONDS = (2.0, 15.0, 120.0)
"""Seconds to wait before each retry of a failed read: a server that restarts must not end a night's work."""


_reader = threading.local()  # its `over`, if it has one: set when nobody waits any more for what this thread reads


def wait_no_longer_than(over: threading.Event) -> None:
    """Have this thread give up on a disk that fails once `over` is set."""
    _reader.over = over


def _pause(seconds: float) -> bool:
    """Wait; whether to give up."""
    return getattr(_reader, "over", threading.Event()).wait(seconds)


def _patient(read: Callable) -> Callable:
    """A method of `Pictures` that tries again after each of PAUSES_SECONDS if the disk fails.

    Raises:
        OSError: it still fails, or in a way that does not pass.
    """

    @functools.wraps(read)
    def tried(pictures: Pictures, *given):
        for pause in PAUSES_SECONDS:
            try:
                return read(pictures, *given)
            except OSError as error:
                if error.errno not in DISK_AWAY:
                    raise
                why = os.strerror(error.errno)
                say(f"{pictures.spec.stream}: {pictures.path} cannot be read ({why}); trying again in {pause:g} s")
            pictures.store.close()  # after some faults files must be opened again
            if _pause(pause):
                break
        return read(pictures, *given)

    return tried


class Pictures:
    """A stream's pictures of each clip: its frames or flow stacks. Opens the store once per process."""

    def __init__(self, spec: StreamSpec, store_path: Path | str):
        self.spec, self.path = spec, Path(store_path)
        self._in_order = spec.stack and replace(spec.stack, kind="stack", subtract_mean=False)
        self.store = (store.open_frames if spec.stream == "spatial" else store.open_flow)(store_path)

    @property
    def digest(self) -> str:
        """Digest of the settings that made the store; "" if it does not say."""
        return self.store.attrs.get("digest", "")

    @_patient
    def count(self, video_id: str) -> int:
        """Number of pictures of the clip: frames, or possible starts of a flow stack."""
        stored = self.store[video_id]
        return stacks.num_windows(len(stored), self.spec.stack) if self.spec.stack else len(stored)

    @_patient
    def read(self, video_id: str, position: int) -> np.ndarray | Planes:
        """One picture: a frame (H, W, 3) uint8, or a stack of 2L planes. Each direction takes one read of the store."""
        if self.spec.stack is None:
            return self.store[video_id].frames(position, position + 1)[0]
        return self._stack(self.store[video_id], position, self.spec.stack)

    @_patient
    def read_encoded(self, video_id: str, position: int) -> EncodedStack:
        """The fields of one stack in their order, not yet decoded."""
        stored = self.store[video_id]
        planes = self._stack(stored, position, self._in_order, encoded=True)
        return EncodedStack(planes, stored.height, stored.width, (video_id, self.store.folder))

    def _stack(self, stored: store.StoredClip, position: int, spec: StackSpec, **how: bool) -> Planes:
        where = stacks.window(len(stored), spec, position)
        forward = Planes(*stored.stored_flow(*where.forward, **how))
        backward = Planes(*stored.stored_flow(*where.backward, backward=True, **how)) if where.backward else None
        return stored_stack(forward, backward, spec, where)

    def usable(self, clips: Sequence[Clip]) -> list[Clip]:
        """The training clips that the store holds; prints how many it lacks."""
        held, lost = [], []
        for clip in clips:
            (held if clip.id in self.store else lost).append(clip)
        if lost:
            say(
                f"{self.spec.stream}: {len(lost)} of {len(clips)} training clips are left out, such as "
                f"{plain(lost[0].id)}: {self.why_lost(lost[0].id)}"
            )
        return held

    def why_lost(self, video_id: str) -> str:
        """Why the store does not have the clip."""
        return self.store.failed.get(video_id, "it is not in the store")
