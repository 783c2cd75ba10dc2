"""What a run would take: time and disk space of each artifact, from what `measure` found on a few clips.

Arithmetic alone: nothing is measured or read here. Every figure is for one machine that is otherwise idle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from pipeline.specs import ScoreSpec, StreamSpec

# of a store beside its images: times and places of frames, places and ranges of fields, tables and names of each clip
FRAME_BYTES, PAIR_BYTES, CLIP_BYTES = 16, 16, 6 << 10
TABLE_ROW_BYTES = 400  # of a clip in a catalog or in scores, besides its numbers


@dataclass(frozen=True)
class Work:
    """What it takes to make one artifact, or what is left of it. None: not known, and `note` says why."""

    seconds: float | None = None
    disk_bytes: int | None = None
    """That will be on the disk in the end, on top of what is there."""
    meanwhile_bytes: int = 0
    """That are needed besides until the artifact is whole."""
    note: str = ""


MOMENTS = Work(0.0, 0)  # what is made of finished tables


class Cached(NamedTuple):
    """Clips as the frames stage has them, or will have them."""

    clips: int
    frames: float
    """In all clips."""
    samples: tuple[tuple[bytes, ...], ...]
    """The first frames of a few clips, as JPEG."""


class Videos(NamedTuple):
    """The videos of a data set, of which a few were measured."""

    bytes: int
    """Of all files."""
    cached: Cached
    byte_seconds: float
    """To read a byte of a file, on one thread."""
    frame_seconds: float
    """To decode, resize and encode a frame, on one thread."""
    frame_bytes: float
    """Of a frame as JPEG."""


class PairCost(NamedTuple):
    """What a pair of consecutive frames takes, in every direction that is asked for."""

    flow_seconds: float
    """To compute its motion; on a CPU, with one thread."""
    code_seconds: float
    """To decode a frame, and to quantise and encode the fields, with one thread."""
    bytes: float
    """Of its planes as JPEG."""


class StepCost(NamedTuple):
    """What a network takes: a training step of n clips lasts step_seconds + n * clip_seconds."""

    step_seconds: float
    clip_seconds: float
    view_seconds: float
    """Of a forward pass, for each view."""
    weights_bytes: int
    resume_bytes: int
    """Of `resume.pt`: weights, the state of the optimizer, and the best weights so far."""
    features: int


# --- samples ----------------------------------------------------------------------------------------------------------


def middles_of_equal_shares(sizes: Sequence[float], count: int) -> list[int]:
    """Places of a few items whose sizes stand for all: ordered by size, those in the middle of equal shares of the sum.

    So an item is chosen with a chance in proportion to its size, and the mean of cost / size, times the sum of sizes,
    is an unbiased guess of the whole cost (Hansen and Hurwitz 1943).

    Example: of sizes 1, 1, 2, 8, 12 and two items, shares end at 12 and 24, their middles 6 and 18 lie in 8 and 12.
    """
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    ends, found = list(accumulate(sizes[i] for i in order)), []
    for share in range(count):
        middle = (share + 0.5) * ends[-1] / count if ends else 0.0
        found += [next(i for i, end in zip(order, ends, strict=True) if end >= middle)] if ends else []
    return list(dict.fromkeys(found))


def extrapolated(values: Sequence[float], sizes: Sequence[float], total: float) -> float:
    """What all items of this total size come to, by the mean of value / size of those of `spread`.

    Raises:
        ValueError: nothing was measured.
    """
    ratios = [value / size for value, size in zip(values, sizes, strict=True) if size]
    if not ratios:
        raise ValueError("nothing could be measured")
    return total * sum(ratios) / len(ratios)


# --- the stages -------------------------------------------------------------------------------------------------------


def catalog_work(videos: Videos, *, new_bytes: int, threads: int) -> Work:
    """Every new or changed video is read once."""
    return Work(new_bytes * videos.byte_seconds / threads, videos.cached.clips * TABLE_ROW_BYTES)


def frames_work(videos: Videos, *, share: float, clips: int, workers: int) -> Work:
    """Decode, resize and encode.

    Args:
        videos: all of them.
        share: of their bytes that is still to be decoded, 0 to 1.
        clips: that these are.
        workers: processes that share the work.
    """
    frames = videos.cached.frames * share
    disk = frames * (videos.frame_bytes + FRAME_BYTES) + clips * CLIP_BYTES
    return Work(frames * videos.frame_seconds / workers, round(disk))


def flow_work(
    cost: PairCost, cached: Cached, *, share: float, clips: int, workers: int, threads: int, on_gpu: bool
) -> Work:
    """Compute motion. A GPU does so while the cores of its worker decode and encode; on a CPU one follows the other.

    Args:
        cost, cached: of a pair, and all the clips.
        share: of the clips, 0 to 1, that have no flow yet.
        clips: that these are.
        workers: processes or GPUs that share the work.
        threads: of a worker, that decode and encode beside its GPU.
        on_gpu: whether the motion is computed there.
    """
    pairs = max(0.0, cached.frames - cached.clips) * share
    code = cost.code_seconds / threads
    each = max(cost.flow_seconds, code) if on_gpu else cost.flow_seconds + cost.code_seconds
    return Work(pairs * each / workers, round(pairs * (cost.bytes + PAIR_BYTES) + clips * CLIP_BYTES))


def training_work(cost: StepCost, spec: StreamSpec, *, steps: int, validation_views: int, sharing: int = 1) -> Work:
    """Steps and validations; without the loading of data, which may take longer than either.

    Args:
        cost: of the network.
        spec: batch, and how often it is validated.
        steps: that are left.
        validation_views: in one validation.
        sharing: GPUs among which each step is divided.
    """
    step = cost.step_seconds + cost.clip_seconds * spec.items_per_step / sharing
    validations = -(-steps // spec.validate_every)
    seconds = steps * step + validations * validation_views * cost.view_seconds / sharing
    note = f"{steps} steps of {spec.batch} clips, without loading data"
    return Work(seconds, cost.weights_bytes, cost.resume_bytes, note)


def scoring_work(cost: StepCost, spec: ScoreSpec, *, clips: int, classes: int) -> Work:
    """A forward pass for each frame and crop of each clip; without the loading of data."""
    views = clips * spec.frames * spec.crops
    rows = clips + (views if spec.per_view else 0)
    disk = rows * 4 * (classes + cost.features) + clips * TABLE_ROW_BYTES
    return Work(views * cost.view_seconds, disk, note="without loading data")


def noted(work: Work, note: str) -> Work:
    """The same, with a note more."""
    return dataclasses.replace(work, note=", ".join(filter(None, (work.note, note))))


# --- all of it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Total:
    """Of a whole run, one artifact after the other."""

    seconds: float
    disk_bytes: int
    most_bytes: int
    """At any moment: what has been made so far, and what the artifact under way needs besides."""
    unknown: int
    """Artifacts of which time or space is not known; they are in none of the sums."""

    def as_dict(self) -> dict[str, float]:
        """Plain values."""
        return dataclasses.asdict(self)


def total(works: Iterable[Work]) -> Total:
    """The sums over the artifacts, in the order in which they are made."""
    seconds, disk, most, unknown = 0.0, 0, 0, 0
    for work in works:
        unknown += work.seconds is None or work.disk_bytes is None
        seconds, disk = seconds + (work.seconds or 0.0), disk + (work.disk_bytes or 0)
        most = max(most, disk + work.meanwhile_bytes)
    return Total(seconds, disk, most, unknown)
