"""The pictures of a stream as its store holds them: frames, or windows of flow, read with patience."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline import stacks, store
from pipeline.catalog import Clip
from pipeline.specs import StackSpec, StreamSpec
from pipeline.stacks.stored import EncodedStack, Planes, stored_stack
from pipeline.system.console import plain
from pipeline.system.progress import say

T = TypeVar("T")
_MOMENTARY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # what a network disk raises while its server is away
PAUSES_SECONDS = (2.0, 15.0, 120.0)
"""How long a read that failed so is waited for, each time: a server that starts again must not end a night's work."""


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

    def count(self, video_id: str) -> int:
        """Number of pictures of the clip: frames, or possible starts of a flow stack."""
        return self._patiently(lambda: self._count(self.store[video_id]))

    def read(self, video_id: str, position: int) -> np.ndarray | Planes:
        """One picture: a frame (H, W, 3) uint8, or a stack of 2L planes. Each direction takes one read of the store."""
        return self._patiently(lambda: self._read(video_id, position))

    def read_encoded(self, video_id: str, position: int) -> EncodedStack:
        """The fields of one stack in their order, not yet decoded."""
        return self._patiently(lambda: self._read_encoded(video_id, position))

    def _patiently(self, read: Callable[[], T]) -> T:
        """What `read` returns; if a disk fails meanwhile, it is tried again after each of PAUSES_SECONDS.

        Raises:
            OSError: it still fails, or in another way.
        """
        for pause in PAUSES_SECONDS:
            try:
                return read()
            except OSError as error:
                if error.errno not in _MOMENTARY:
                    raise
                why = os.strerror(error.errno)
                say(f"{self.spec.stream}: {self.path} cannot be read ({why}); it is tried again in {pause:g} s")
            self.store.close()  # after some faults files must be opened again
            time.sleep(pause)
        return read()

    def _count(self, stored: store.StoredClip) -> int:
        return stacks.num_windows(len(stored), self.spec.stack) if self.spec.stack else len(stored)

    def _read(self, video_id: str, position: int) -> np.ndarray | Planes:
        if self.spec.stack is None:
            return self.store[video_id].frames(position, position + 1)[0]
        return self._stack(self.store[video_id], position, self.spec.stack)

    def _read_encoded(self, video_id: str, position: int) -> EncodedStack:
        stored = self.store[video_id]
        planes = self._stack(stored, position, self._in_order, encoded=True)
        return EncodedStack(planes, stored.height, stored.width, (video_id, self.store.folder))

    def _stack(self, stored: store.StoredClip, position: int, spec: StackSpec, **how: bool) -> Planes:
        where = stacks.window(len(stored), spec, position)
        forward = Planes(*stored.stored_flow(*where.forward, **how))
        backward = Planes(*stored.stored_flow(*where.backward, backward=True, **how)) if where.backward else None
        return stored_stack(forward, backward, spec, where)

    def usable(self, clips: Sequence[Clip], use: str) -> list[Clip]:
        """The clips that the store holds; prints how many it lacks. `use` names their purpose in that message."""
        held, lost = [], []
        for clip in clips:
            (held if clip.id in self.store else lost).append(clip)
        if lost:
            say(
                f"{self.spec.stream}: {len(lost)} of {len(clips)} {use} clips are left out, such as "
                f"{plain(lost[0].id)}: {self.why_lost(lost[0].id)}"
            )
        return held

    def why_lost(self, video_id: str) -> str:
        """Why the store does not have the clip."""
        return self.store.failed.get(video_id, "it is not in the store")
