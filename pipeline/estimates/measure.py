"""Small trials from which `estimates` extrapolates: a few videos, a few pairs of frames. Nothing is written.

Each trial prints what it measures, since it may take several seconds, and takes a bounded time. Images are coded, and
flow on a CPU is computed, on one thread, as in workers. On a CPU, CPU time is measured, which does not depend on other
programs.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import demo, flow, quantize, store
from pipeline.catalog import Catalog, Clip
from pipeline.estimates import Cached, PairCost, Videos, Work, extrapolated, middles_of_equal_shares
from pipeline.specs import DemoSpec, FlowSpec, FrameSpec
from pipeline.system.digests import file_hash
from pipeline.system.errors import UserError
from pipeline.system.limits import one_thread
from pipeline.system.progress import say
from pipeline.video import Video, VideoError, jpeg, resized, target_size

DECODED = 3  # videos whose frames are decoded
OPENED = 24  # videos whose header is read for the number of frames
FRAMES = 33  # most frames decoded of a video
VIDEO_SECONDS, FLOW_SECONDS = 1.0, 1.5  # no more of a kind is tried after this long


def timed(
    function: Callable[..., Any], *given: Any, clock: Callable[[], float] = time.perf_counter, **named: Any
) -> tuple[float, Any]:
    """Seconds that a call took according to `clock`, and its result."""
    begun = clock()
    found = function(*given, **named)
    return clock() - begun, found


_worked = functools.partial(timed, clock=time.process_time)  # CPU time, for one thread that never waits


# --- videos and frames ------------------------------------------------------------------------------------------------


class _Trial(NamedTuple):
    """Measurements from decoding the beginning of one video."""

    byte_seconds: float
    frame_seconds: float
    images: tuple[bytes, ...]
    whole: bool  # the video ended before the trial did


def videos(folder: Path, clips: Sequence[Clip], spec: FrameSpec) -> Videos:
    """Decode, resize and encode the first frames of a few videos, and extrapolate their frames by bytes.

    Args:
        folder: folder that the clips' paths are relative to.
        clips: the whole dataset.
        spec: size and quality of the cached frames.

    Raises:
        UserError: none of the videos tried can be decoded (with the reason for the last), or their numbers of frames
            are unknown.
    """
    sizes = [clip.bytes for clip in clips]
    say(f"plan: decoding frames of {min(DECODED, len(clips))} videos in {folder}")
    trials: dict[int, _Trial] = {}
    reason = "they are empty"
    # other videos take the place of broken ones
    for place in _in_turn(sizes):
        try:
            trials[place] = _trial(folder / clips[place].path, spec)
        except (VideoError, OSError) as error:
            reason = f"{clips[place].path}: {error}"
        if len(trials) == DECODED:
            break
    if not trials:
        raise UserError(f"no video could be decoded: {reason}")
    frames = _frames_of({**dict.fromkeys(middles_of_equal_shares(sizes, OPENED)), **trials}, folder, clips)
    if not frames:
        raise UserError("the headers of the videos do not say how many frames they have")
    images = [image for trial in trials.values() for image in trial.images]
    mean = {name: float(np.mean([getattr(t, name) for t in trials.values()])) for name in _Trial._fields[:2]}
    in_all = extrapolated(list(frames.values()), [sizes[place] for place in frames], sum(sizes))
    cached = Cached(len(clips), in_all, tuple(trial.images for trial in trials.values()))
    return Videos(sum(sizes), cached, **mean, frame_bytes=float(np.mean([len(image) for image in images])))


def _in_turn(sizes: Sequence[int]) -> Iterator[int]:
    """Indices of clips to try: a few spread over all sizes, then others."""
    yield from (seen := middles_of_equal_shares(sizes, DECODED))
    yield from (place for place in middles_of_equal_shares(sizes, OPENED) if place not in seen)


def _trial(path: Path, spec: FrameSpec) -> _Trial:
    read_seconds, _ = timed(file_hash, path)
    images, whole, seconds = [], True, 0.0
    with one_thread():
        begun = time.process_time()
        for image, _ in Video(path, short_side_px=spec.short_side_px):
            images.append(jpeg.encode(image, quality=spec.jpeg_quality))
            seconds = time.process_time() - begun
            if len(images) == FRAMES or seconds > VIDEO_SECONDS:
                whole = False
                break
    if not images:
        raise VideoError("no frame decodes")
    return _Trial(read_seconds / path.stat().st_size, seconds / len(images), tuple(images), whole)


def _frames_of(places: dict[int, _Trial | None], folder: Path, clips: Sequence[Clip]) -> dict[int, int]:
    """Index -> number of frames of a video: counted if all were decoded, else from its header."""
    found = {}
    for place, trial in places.items():
        if trial and trial.whole:
            found[place] = len(trial.images)
            continue
        with contextlib.suppress(VideoError):
            found[place] = Video(folder / clips[place].path).promised_frames
    return {place: frames for place, frames in found.items() if frames}


def unwritten_demo(spec: DemoSpec, catalog: Catalog, frames: FrameSpec) -> tuple[Work, Videos]:
    """The cost of writing the demo, and its future videos, estimated from one clip that is drawn but not written.

    Its videos are Motion JPEG, so decoding a frame means decoding a JPEG image.
    """
    say("plan: drawing a clip of the demo")
    for _ in range(2):  # the first call of each function also loads what it needs
        write_seconds, stored, frame_seconds, images = _drawn(spec, frames)
    clips, in_all = len(catalog.clips), len(catalog.clips) * spec.frames
    of_videos = sum(map(len, stored)) * clips
    found = Videos(
        of_videos,
        Cached(clips, in_all, (tuple(images),)),
        byte_seconds=0.0,
        frame_seconds=frame_seconds,
        frame_bytes=sum(map(len, images)) / len(images),
    )
    return Work(write_seconds * clips, of_videos), found


def _drawn(spec: DemoSpec, frames: FrameSpec) -> tuple[float, list[bytes], float, list[bytes]]:
    """Seconds to draw and encode a clip, its encoded frames, seconds to cache a frame, and the cached frames."""
    drawing, drawn = _worked(demo.render, spec, demo.TEXTURES[0], demo.MOTIONS[0], group=1, number=1)
    coding, stored = _worked(lambda: [jpeg.encode(frame, quality=demo.JPEG_QUALITY) for frame in drawn])
    size = target_size(*drawn.shape[1:3], frames.short_side_px)
    seconds, images = _worked(lambda: [_as_cached(data, size, frames.jpeg_quality) for data in stored])
    return drawing + coding, stored, seconds / len(drawn), images


def _as_cached(data: bytes, size: tuple[int, int], quality: int) -> bytes:
    return jpeg.encode(resized(jpeg.decode(np.frombuffer(data, np.uint8), gray=False), size), quality=quality)


def cached(path: Path) -> Cached:
    """The clips of a finished frames store, with the first frames of a few of them.

    Raises:
        UserError: the store has no clips.
    """
    opened = store.open_frames(path)
    names = list(opened)
    if not names:
        raise UserError("no clip has frames")
    frames = [opened.rows[name]["frames"] for name in names]
    chosen = [opened[names[place]] for place in middles_of_equal_shares(frames, DECODED)]
    samples = tuple(tuple(data.tobytes() for data in clip.jpegs(0, min(FRAMES, len(clip)))) for clip in chosen)
    opened.close()
    return Cached(len(names), sum(frames), samples)


# --- flow -------------------------------------------------------------------------------------------------------------


def pair(samples: Sequence[Sequence[bytes]], spec: FlowSpec, *, device: str) -> PairCost:
    """Measure the cost of a pair: compute the flow of a few pairs of each sample, and encode it.

    Args:
        samples: the first frames of a few clips, as JPEG.
        spec: method, directions, quantization and quality.
        device: as for `flow.estimate`.

    Raises:
        UserError: the device cannot be used here, or no sample has two frames.
    """
    device = flow.method_device(spec.method, device)
    say(f"plan: timing {spec.method} on {'the CPU' if device == 'cpu' else device}")
    with one_thread() if device == "cpu" else contextlib.nullcontext():
        costs = [_pair(images, spec, device) for images in samples if len(images) > 1]
    if not costs:
        raise UserError("no video that was tried has two frames")
    return PairCost(*(float(column) for column in np.mean(costs, axis=0)))


def _pair(images: Sequence[bytes], spec: FlowSpec, device: str) -> PairCost:
    gray = not flow.takes_color(spec.method)
    decoding, frames = _worked(lambda: np.stack([jpeg.decode(np.frombuffer(i, np.uint8), gray=gray) for i in images]))
    per_pair, motion = _motion(frames, spec, device)
    coding, planes = _worked(_encoded, motion, spec)
    directions = len(spec.directions)
    code_seconds = decoding / len(images) + directions * coding / len(motion)
    return PairCost(directions * per_pair, code_seconds, directions * sum(map(len, planes)) / len(motion))


def _motion(frames: np.ndarray, spec: FlowSpec, device: str) -> tuple[float, np.ndarray]:
    """Seconds per pair, in batches as large as in workers (on a CPU, as time allows), and the flow of some pairs."""
    clock = _worked if device == "cpu" else timed
    flow.estimate(frames[:2], spec, device=device)  # a first call may compile or load weights
    seconds, motion = clock(flow.estimate, frames[:2], spec, device=device)
    size, tensors_on = frames.shape[1:3], flow.tensor_device(spec.method, device)
    if device == "cpu":
        pairs = flow.pairs_of(size, spec, device=tensors_on)
        pairs = min(pairs, len(frames) - 1, int(FLOW_SECONDS / max(seconds, 1e-6)))
    else:  # frames are repeated
        pairs = flow.pairs_to_time(size, spec, device=tensors_on)
        frames = np.concatenate([frames] * -(-(pairs + 1) // len(frames)))
        flow.estimate(frames[: pairs + 1], spec, device=device)
    if pairs > 1:
        seconds, motion = clock(flow.estimate, frames[: pairs + 1], spec, device=device)
    return seconds / len(motion), motion


def _encoded(motion: np.ndarray, spec: FlowSpec) -> list[bytes]:
    q = quantize.by_spec(motion, spec)[0]
    return [jpeg.encode(plane, quality=spec.jpeg_quality) for plane in q.reshape(-1, *q.shape[2:])]
