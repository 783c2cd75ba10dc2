"""The data that pass through the steps of the Flow stage: clips, spans of clips, and batches of spans."""

from __future__ import annotations

import contextlib
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import store
from pipeline.preprocess.jobs import BAD_CLIP, machine_faults
from pipeline.preprocess.jobs.earlier import Earlier, copy_into
from pipeline.specs import FlowSpec
from pipeline.system.console import one_line
from pipeline.system.errors import ClipError, DamagedFile, MachineFault

FlowBytes = dict[str, tuple[np.ndarray, np.ndarray | None]]  # direction -> bytes (n, 2, H, W), range_px or None


def _flow_attrs(frames: store.StoredClip, spec: FlowSpec) -> dict[str, Any]:
    """Attributes of a flow clip that is made from these frames."""
    names = ("label", "class", "group", "source", "fps", "height", "width")
    about = {"method": spec.method, "scaling": spec.scaling}
    if spec.scaling == "bound":
        about["bound_px"] = spec.bound_px
    return {**{name: frames.attrs[name] for name in names}, **about, "made_from": _frames_identity(frames)}


def _frames_identity(frames: store.StoredClip) -> str:
    """Identity of the frames of a clip: their number, and the checksum of their bytes."""
    return f"{len(frames)} {frames.attrs['crc32']:08x}"


class FlowClip:
    """One clip in progress. If several errors occur, the error of the earliest pair becomes its reason.

    Args:
        record: its outcome so far.
        source: the frames.
        writer: gets the images of the flow.
        earlier: shards that may hold the flow of the same frames already; then the clip is complete from the start.

    Raises:
        MachineFault: the frames are not those of the record.
    """

    def __init__(self, record: store.Record, source: store.Store, writer: store.ClipWriter, earlier: Earlier):
        self.record, self.stored, self.writer = record, source[record.id], writer
        self._frames_folder = source.folder
        if (len(self.stored), self.stored.attrs["crc32"]) != (record.frames, record.crc32):  # its flow would be kept
            raise MachineFault(
                f"the frames of clip {record.id!r} of {source.folder} have been made again since this run began; run "
                "the same command again"
            )
        self.size, self.pairs = (self.stored.height, self.stored.width), len(self.stored) - 1
        self._errors: list[tuple[int, BaseException]] = []
        self._crc32 = 0  # of the images read so far
        self._found = earlier.clip(record.id, _frames_identity(self.stored))
        self.complete = self._found is not None  # nothing is left to compute
        if self.pairs < 1:
            self.fail(0, ClipError("one frame alone has no flow"))

    @property
    def failed(self) -> bool:
        """Whether any error was recorded."""
        return bool(self._errors)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do but to write the clip, if it has not failed, into the shard."""
        return self.complete or self.failed

    def fail(self, pair: int, error: BaseException) -> None:
        """Record an error that occurred at this pair or after it."""
        self._errors.append((pair, error))

    def read(self, first: int, last: int) -> list[np.ndarray]:
        """JPEG bytes of the frames first..last, which are those of pairs first..last-1.

        Each call continues where the previous one ended, and reads the frame that both share again.

        Raises:
            DamagedFile: the clip has been read to its end, and its bytes do not match their checksum.
        """
        images = list(self.stored.jpegs(first, last + 1))
        self._crc32 = zlib.crc32(b"".join(images[1:] if first else images), self._crc32)
        if last == self.pairs:
            self._compare(store.crc32_of_parts([self._crc32]))
        return images

    def _compare(self, crc32: int) -> None:
        if crc32 != self.stored.attrs["crc32"]:
            raise self.damage("its bytes do not match their checksum")

    def damage(self, what: str) -> DamagedFile:
        """The error to raise about damaged frames."""
        advice = store.repair_advice(self._frames_folder)
        return DamagedFile(f"clip {self.record.id!r} of {self._frames_folder} is damaged: {what}; {advice}")

    def finish(self, spec: FlowSpec) -> None:
        """Write the clip into the shard; it must be complete."""
        if self._found:
            copy_into(self.writer, self._found.stored)
        self.record = self.record._replace(crc32=self.writer.finish(_flow_attrs(self.stored, spec)))
        self.writer = None

    def outcome(self) -> store.Record:
        """The outcome of the clip; to be called when none of its spans is in progress."""
        if not self.failed:
            return self.record
        self._compare(self.stored.checksum())  # the clip may not have been read to its end
        _, error = min(self._errors, key=lambda failure: failure[0])
        return self.record._replace(status="failed", reason=f"no flow: {one_line(str(error))}", crc32=0)


def write_complete(clips: deque[FlowClip], spec: FlowSpec) -> None:
    """Take the clips that are over from the left end, up to the first that is not; write those that did not fail."""
    while clips and clips[0].over:
        clip = clips.popleft()
        if not clip.failed:
            clip.finish(spec)


@dataclass
class Span:
    """Pairs first..last-1 of a clip, which lie between its frames first..last, on their way through the steps."""

    clip: FlowClip
    first: int
    last: int
    failed: bool = False
    frames: np.ndarray | None = None  # (last - first + 1, H, W), or (..., 3) for color, a view of its batch's frames
    decoding: list[Callable[[], None]] = field(default_factory=list)
    encoding: dict[str, list[Callable[[], list[bytes]]]] = field(default_factory=dict)  # by direction
    ranges: dict[str, np.ndarray] = field(default_factory=dict)

    @contextlib.contextmanager
    def recording_clip_errors(self) -> Iterator[None]:
        """Record an error that is the clip's fault as its reason, and go on."""
        try:
            with machine_faults():
                yield
        except BAD_CLIP as error:
            self.failed = True
            self.clip.fail(self.first, error)


@dataclass
class Batch:
    """Pieces of clips of one size that are computed together."""

    spans: list[Span]
    frames: np.ndarray | None = None  # of all spans, concatenated
    motion: Callable[[], FlowBytes | None] | None = None  # waits for the bytes; gives None, or is: try spans alone
