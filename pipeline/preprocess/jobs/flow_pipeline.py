"""The pipeline of four steps that makes flow: read and decode, compute, encode, write.

The steps work on batches of pairs of frames. A batch may hold the ends and beginnings of several clips of one size,
because clips are short, and a GPU needs full batches. Helper threads decode ahead of the flow and encode behind it. A
GPU computes one batch while the bytes of the previous one are fetched. On a CPU with one thread the same steps follow
one another. What is stored depends neither on the batches nor on the threads.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

from pipeline import quantize
from pipeline.flow import estimate_on_device, pairs_of, takes_color, tensor_device
from pipeline.flow.device import Download, ignoring_out_of_memory, pinned_array
from pipeline.preprocess.jobs import BAD_CLIP, machine_faults
from pipeline.preprocess.jobs.batches import Batch, FlowBytes, FlowClip, Span, write_complete
from pipeline.preprocess.jobs.helpers import Helpers, run_ahead
from pipeline.specs import FlowSpec
from pipeline.system.errors import ClipError
from pipeline.video import jpeg

_IMAGES = 8  # images that one helper decodes or encodes at a time, at least


class FlowPipeline:
    """The four steps, and the state that they share."""

    def __init__(self, spec: FlowSpec, device: str, clips: deque[FlowClip], helpers: Helpers):
        self.spec, self.device, self.clips, self.helpers = spec, device, clips, helpers
        self.tensors_on = tensor_device(spec.method, device)
        self.gray = not takes_color(spec.method)  # only luminance is decoded, a plane of its own in JPEG
        # pairs in a batch, by size; asked once, because free memory changes during the run
        self._room_of = functools.cache(functools.partial(pairs_of, spec=spec, device=self.tensors_on))

    def run(self) -> None:
        """Compute the clips that are not complete, and write all of them into the shard, in their order."""
        read = run_ahead(self._read, self._batches(), ahead=self.helpers.ahead)
        computed = run_ahead(self._compute, read, ahead=0 if self.tensors_on == "cpu" else 1)
        for batch in run_ahead(self._encode, computed, ahead=self.helpers.ahead):
            self._write(batch)
            write_complete(self.clips, self.spec)

    # --- which pairs are computed together

    def _batches(self) -> Iterator[Batch]:
        spans, room = [], 0
        for clip in [clip for clip in self.clips if not clip.over]:
            if spans and spans[0].clip.size != clip.size:
                yield Batch(spans)
                spans = []
            first = 0
            while first < clip.pairs and not clip.failed:
                room = room if spans else self._room_of(clip.size)
                spans.append(Span(clip, first, min(first + room, clip.pairs)))
                room -= spans[-1].last - first
                first = spans[-1].last
                if not room:
                    yield Batch(spans)
                    spans = []
        if spans:
            yield Batch(spans)

    # --- the steps

    def _read(self, batch: Batch) -> None:
        """Read the JPEG bytes, and start decoding them into one array."""
        counts = [span.last - span.first + 1 for span in batch.spans]
        shape = (sum(counts), *batch.spans[0].clip.size, *(() if self.gray else (3,)))
        batch.frames, end = pinned_array(shape, device=self.tensors_on), 0
        for span, count in zip(batch.spans, counts, strict=True):
            span.frames, end = batch.frames[end : end + count], end + count
            with span.recording_clip_errors():
                images = span.clip.read(span.first, span.last)
                for piece in self._pieces(count, of=shape[0]):
                    span.decoding.append(self.helpers.start(_decode, images[piece], span.frames[piece], self.gray))

    def _compute(self, batch: Batch) -> None:
        """Start to compute the flow and to quantize it to bytes."""
        for span in batch.spans:
            with span.recording_clip_errors():
                try:
                    for wait in span.decoding:
                        wait()
                except ClipError as error:  # they were whole when they were written
                    raise span.clip.damage(str(error)) from error
            span.decoding = []
        if not any(span.failed for span in batch.spans):
            ends = np.cumsum([len(span.frames) for span in batch.spans])
            with contextlib.suppress(*BAD_CLIP), ignoring_out_of_memory():
                batch.motion = self._motion(batch.frames, ends[:-1].tolist(), check=False)

    def _motion(self, frames: np.ndarray, cuts: list[int], *, check: bool) -> Callable[[], FlowBytes | None]:
        """Start to compute the flow of concatenated clips, as bytes; the returned function waits for them.

        With `check`, flow that is not finite is refused at once, for which the device has to be waited for. Without it,
        flow on a device is checked later: the returned function gives None if the flow is not finite.
        """
        under_way, finite = {}, []
        for direction in self.spec.directions:
            with machine_faults():
                flow = estimate_on_device(frames, self.spec, device=self.device, direction=direction, cuts=cuts)
            later = not check and not isinstance(flow, np.ndarray)
            under_way[direction] = Download(*quantize.by_spec(flow, self.spec, check=not later))
            if later:
                finite.append(Download(quantize.all_finite(flow)))
        return functools.partial(_arrived, under_way, finite)

    def _encode(self, batch: Batch) -> None:
        """Wait for the bytes of the flow, and start to encode them; a batch without bytes is retried span by span."""
        planes, end = batch.motion and batch.motion(), 0
        for span in batch.spans:
            count = span.last - span.first
            pairs, end = slice(end, end + count), end + count
            with span.recording_clip_errors():
                if planes is not None:
                    self._start_encoding(span, planes, pairs)
                elif not span.failed:
                    self._start_encoding(span, self._motion(span.frames, [], check=True)(), slice(None))
            span.frames = None
        batch.frames = batch.motion = None

    def _pieces(self, count: int, *, of: int) -> Iterator[slice]:
        """Slices of a span's `count` images, one for each helper to take; `of` is the number of the batch's images.

        As few as occupy all helpers: to hand one over takes as long as to encode an image, and Python's lock.
        """
        size = max(_IMAGES, -(-of // self.helpers.threads)) if self.helpers.threads > 1 else _IMAGES
        return (slice(k, k + size) for k in range(0, count, size))

    def _start_encoding(self, span: Span, planes: FlowBytes, pairs: slice) -> None:
        for direction, (q, range_px) in planes.items():
            images = q[pairs].reshape(-1, *q.shape[2:])  # x0 y0 x1 y1 ...
            span.encoding[direction] = [
                self.helpers.start(_encode, images[piece], self.spec.jpeg_quality)
                for piece in self._pieces(len(images), of=2 * len(q))
            ]
            if range_px is not None:
                span.ranges[direction] = range_px[pairs]

    def _write(self, batch: Batch) -> None:
        """Wait for the JPEG bytes and append them to their clips."""
        for span in batch.spans:
            clip = span.clip
            with span.recording_clip_errors():
                for direction, waiting in span.encoding.items():
                    for images in (wait() for wait in waiting):
                        if not clip.failed:
                            clip.writer.extend(images, direction=direction)
                for direction, range_px in () if clip.failed else span.ranges.items():
                    clip.writer.append_range(range_px, direction=direction)
            if clip.failed:
                clip.writer = None  # frees all that it holds in memory
            elif span.last == clip.pairs:
                clip.complete = True


def _decode(images: list[np.ndarray], target: np.ndarray, gray: bool) -> None:
    for data, place in zip(images, target, strict=True):
        image = jpeg.decode(data, gray=gray)
        if image.shape != place.shape:
            raise ClipError(f"an image is {image.shape[:2]}, its clip is {place.shape[:2]}, height and width")
        place[...] = image


def _encode(planes: np.ndarray, quality: int) -> list[bytes]:
    return [jpeg.encode(plane, quality=quality) for plane in planes]


def _arrived(under_way: dict[str, Download], finite: list[Download]) -> FlowBytes | None:
    """Wait for the bytes; None if flow that was to be checked later is not finite."""
    if not all(download.wait()[0] for download in finite):
        return None
    arrays = {direction: download.wait() for direction, download in under_way.items()}
    return {direction: (found[0], found[1] if len(found) > 1 else None) for direction, found in arrays.items()}
