"""Estimates for a run: time and disk space of each artifact, from what `measure` found on a few clips.

Pure arithmetic: nothing is measured or read here. All figures are for one machine that is otherwise idle.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from pipeline.specs import ScoreSpec, StreamSpec
from pipeline.system.errors import UserError

# bytes of a store besides its images: time and offset of a frame, offsets and ranges of a pair, all the rest of a clip
FRAME_BYTES, PAIR_BYTES, CLIP_BYTES = 16, 16, 6 << 10
TABLE_ROW_BYTES = 400  # per clip in a catalog or scores file, besides scores and features


@dataclass(frozen=True)
class Work:
    """The cost of one artifact, or of the part still to be made. None means not known; `note` says why."""

    seconds: float | None = None
    disk_bytes: int | None = None
    """Disk space of the finished artifact beyond what exists now."""
    meanwhile_bytes: int = 0
    """Extra disk space needed until the artifact is finished."""
    note: str = ""


MOMENTS = Work(0.0, 0)  # for artifacts made from finished tables


class Cached(NamedTuple):
    """The clips of a frames store, made or still to be made."""

    clips: int
    frames: float
    """Number of frames in all clips."""
    samples: tuple[tuple[bytes, ...], ...]
    """The first frames of a few clips, as JPEG."""


class Videos(NamedTuple):
    """The videos of a dataset, a few of which were measured."""

    bytes: int
    """Size of all files."""
    cached: Cached
    byte_seconds: float
    """Seconds to read a byte of a file on one thread."""
    frame_seconds: float
    """Seconds to decode, resize and encode a frame on one thread."""
    frame_bytes: float
    """Mean size of a frame as JPEG."""


class PairCost(NamedTuple):
    """The cost of a pair of consecutive frames, in all directions computed."""

    flow_seconds: float
    """Seconds to compute its flow; on a CPU, on one thread."""
    code_seconds: float
    """Seconds to decode a frame, and to quantize and encode the fields, on one thread."""
    bytes: float
    """Size of its planes as JPEG."""


class StepCost(NamedTuple):
    """The cost of a network: a training step of n clips takes step_seconds + n * clip_seconds."""

    step_seconds: float
    clip_seconds: float
    view_seconds: float
    """Seconds of a forward pass per view."""
    weights_bytes: int
    resume_bytes: int
    """Size of `resume.pt`: the weights, the optimizer's state, and the best weights so far."""
    features: int


# --- samples ----------------------------------------------------------------------------------------------------------


def middles_of_equal_shares(sizes: Sequence[float], count: int) -> list[int]:
    """Indices of a few items that represent all: sorted by size, those in the middle of equal shares of the sum.

    This samples items in proportion to their size, so that the mean of cost / size, times the sum of sizes, estimates
    the total cost (the estimator of Hansen and Hurwitz 1943).

    Example: for sizes 1, 1, 2, 8, 12 and two items, shares end at 12 and 24; their middles 6 and 18 lie in 8 and 12.
    """
    if not sizes:
        return []
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    ends = list(accumulate(sizes[i] for i in order))
    middles = ((share + 0.5) * ends[-1] / count for share in range(count))
    return list(dict.fromkeys(order[bisect.bisect_left(ends, middle)] for middle in middles))


def extrapolated(values: Sequence[float], sizes: Sequence[float], total: float) -> float:
    """The total value of all items, from the mean value / size of those chosen by `middles_of_equal_shares`.

    Raises:
        UserError: nothing was measured.
    """
    ratios = [value / size for value, size in zip(values, sizes, strict=True) if size]
    if not ratios:
        raise UserError("nothing could be measured")
    return total * sum(ratios) / len(ratios)


# --- the stages -------------------------------------------------------------------------------------------------------


def catalog_work(videos: Videos, *, new_bytes: int, threads: int) -> Work:
    """The cost of a catalog: every new or changed video is read once."""
    return Work(new_bytes * videos.byte_seconds / threads, videos.cached.clips * TABLE_ROW_BYTES)


def frames_work(videos: Videos, *, share: float, clips: int, workers: int) -> Work:
    """The cost of frames: decode, resize and encode.

    Args:
        videos: all videos.
        share: share of their bytes still to be decoded, 0 to 1.
        clips: number of clips still to be decoded.
        workers: processes that share the work.
    """
    frames = videos.cached.frames * share
    disk = frames * (videos.frame_bytes + FRAME_BYTES) + clips * CLIP_BYTES
    return Work(frames * videos.frame_seconds / workers, round(disk))


def flow_work(
    cost: PairCost, cached: Cached, *, share: float, clips: int, workers: int, threads: int, on_gpu: bool
) -> Work:
    """The cost of flow. A GPU computes while its worker's cores decode and encode; a CPU does one after the other.

    Args:
        cost, cached: the cost of a pair, and all clips.
        share: share of the clips, by bytes of video, that have no flow yet, 0 to 1.
        clips: number of clips that have no flow yet.
        workers: processes or GPUs that share the work.
        threads: threads of a worker that decode and encode while its GPU computes.
        on_gpu: whether flow is computed on a GPU.
    """
    pairs = max(0.0, cached.frames - cached.clips) * share
    code = cost.code_seconds / threads
    each = max(cost.flow_seconds, code) if on_gpu else cost.flow_seconds + cost.code_seconds
    return Work(pairs * each / workers, round(pairs * (cost.bytes + PAIR_BYTES) + clips * CLIP_BYTES))


def training_work(cost: StepCost, spec: StreamSpec, *, steps: int, validation_views: int, sharing: int = 1) -> Work:
    """The cost of a training: steps and validations, but not data loading, which may take longer than either.

    Args:
        cost: the cost of its network.
        spec: the stream, with its batch size and validation interval.
        steps: steps left.
        validation_views: views in one validation.
        sharing: number of GPUs that share each step.
    """
    step = cost.step_seconds + cost.clip_seconds * spec.items_per_step / sharing
    validations = -(-steps // spec.validate_every)
    seconds = steps * step + validations * validation_views * cost.view_seconds / sharing
    note = f"{steps} steps of {spec.items_per_step} clips, without loading data"
    return Work(seconds, cost.weights_bytes, cost.resume_bytes, note)


def scoring_work(cost: StepCost, spec: ScoreSpec, *, clips: int, classes: int) -> Work:
    """The cost of scores: a forward pass per frame and crop of each clip, but not data loading."""
    views = clips * spec.frames * spec.crops
    rows = clips + (views if spec.per_view else 0)
    disk = rows * 4 * (classes + cost.features) + clips * TABLE_ROW_BYTES
    return Work(views * cost.view_seconds, disk, note="without loading data")


def noted(work: Work, note: str) -> Work:
    """The same work with one more note."""
    return dataclasses.replace(work, note=", ".join(filter(None, (work.note, note))))


# --- the sum ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Total:
    """The cost of a whole run, one artifact after the other."""

    seconds: float
    disk_bytes: int
    most_bytes: int
    """Most disk space at any moment: artifacts made so far, plus the extra needs of the one being made."""
    unknown: int
    """Number of artifacts whose time or disk space is not known, which counts as 0 in the sums."""

    def as_dict(self) -> dict[str, float]:
        """The fields as plain values."""
        return dataclasses.asdict(self)


def total(works: Iterable[Work]) -> Total:
    """The sums over the artifacts, given in the order they are made."""
    seconds, disk, most, unknown = 0.0, 0, 0, 0
    for work in works:
        unknown += work.seconds is None or work.disk_bytes is None
        seconds, disk = seconds + (work.seconds or 0.0), disk + (work.disk_bytes or 0)
        most = max(most, disk + work.meanwhile_bytes)
    return Total(seconds, disk, most, unknown)
