"""The shard loops: videos -> frames store, frames store -> flow store. One outcome a clip, memory bounded by a batch.

A shard is the unit of work and of restart. Which clips share a shard depends on their names and sizes alone, by a
binary trie over hashed ids: a clip that is added or changed touches its own shard and no other, and the bytes of a
shard do not depend on how many workers there are.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline import jpeg, quantize, store
from pipeline.catalog import Catalog, Clip
from pipeline.cluster import StageFailed, WorkerDied, Workers
from pipeline.files import remove_stale
from pipeline.flow import estimate, takes_colour
from pipeline.progress import Progress, say
from pipeline.spec import digest_of
from pipeline.specs import ClusterSpec, FlowSpec, FrameSpec
from pipeline.video import Video, VideoError, try_decoding

_BATCH_BYTES = 8 << 20  # of decoded frames that flow is computed on at once


# --- which clips share a shard ----------------------------------------------------------------------------------------


def plan_shards(clips: Iterable[Clip], *, most_clips: int, most_bytes: int) -> dict[str, tuple[Clip, ...]]:
    """Cut clips into shards of at most `most_clips` clips and `most_bytes` of video (one clip may be larger).

    Extendible hashing: the bits of a clip's hashed id lead down a binary trie, and a leaf that is too full is split.
    A shard is named by its path: with one clip too many, shard 01 becomes 010 and 011, and no other changes.
    """
    leaves: dict[str, tuple[Clip, ...]] = {}
    waiting = [("", sorted(clips, key=lambda clip: clip.id))]
    while waiting:
        prefix, inside = waiting.pop()
        fits = len(inside) <= most_clips and sum(clip.bytes for clip in inside) <= most_bytes
        if len(inside) <= 1 or fits or len(prefix) == 64:
            if inside:
                leaves[f"shard-{prefix or 'all'}"] = tuple(inside)
            continue
        for bit in "01":
            waiting.append((prefix + bit, [clip for clip in inside if _hash_bits(clip.id)[len(prefix)] == bit]))
    return dict(sorted(leaves.items()))


def _hash_bits(video_id: str) -> str:
    return f"{int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest()):064b}"


# --- frames -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FramesJob:
    """One frames shard to make: paths and settings, never arrays."""

    path: Path
    videos: Path
    clips: tuple[Clip, ...]
    spec: FrameSpec
    attrs: dict[str, Any]
    watch: bool = False  # the process may be ended when a decoder hangs
    careful: bool = False  # a decoder killed this shard's process before: try each clip elsewhere first

    @property
    def units(self) -> int:
        """Clips, for the progress bar."""
        return len(self.clips)

    @property
    def cost(self) -> int:
        """Something that grows with the time it will take: bytes of video."""
        return sum(clip.bytes for clip in self.clips)


def make_frames(
    folder: Path, catalog: Catalog, *, videos: Path, spec: FrameSpec, cluster: ClusterSpec, attrs: dict[str, Any]
) -> None:
    """Decode every clip of the catalog into the frames store at `folder`; shards that are already right are kept.

    Args:
        folder: of the store.
        catalog: what to decode.
        videos: folder that the clips' paths are relative to.
        spec, cluster: settings.
        attrs: root attributes of the files: at least `digest` and `spec`.

    Raises:
        StageFailed: more than `spec.max_bad_fraction` of the clips failed, or a shard could not be made at all.
    """
    folder = folder.absolute()  # workers may stand elsewhere
    plan = plan_shards(catalog.clips, most_clips=spec.shard_clips, most_bytes=spec.shard_mb << 20)
    jobs = []
    for name, clips in plan.items():
        inputs = digest_of([[clip.id, clip.label, clip.class_name, clip.group, clip.content] for clip in clips])
        path = folder / "shards" / f"{name}.h5"
        jobs.append(
            FramesJob(
                path,
                videos.absolute(),
                clips,
                spec,
                {**attrs, "inputs": inputs},
                watch=cluster.kind in ("local", "jobqueue"),
            )
        )
    splits = {clip.id: clip.split for clip in catalog.clips}
    attrs = {**attrs, "inputs": catalog.videos_key, "split_name": catalog.split_name}
    _make_store(folder, "frames", _frames_shard, jobs, cluster, splits, attrs, spec.max_bad_fraction)


def _frames_shard(job: FramesJob) -> int:
    cv2.setNumThreads(1)
    with store.ShardWriter(job.path, "frames", job.attrs) as shard:
        for clip in job.clips:
            shard.record(_frames_clip(shard, job, clip))
    return job.units


def _frames_clip(shard: store.ShardWriter, job: FramesJob, clip: Clip) -> store.Record:
    """Decode one clip into the shard; whatever is wrong with the video becomes its reason."""
    spec, path = job.spec, job.videos / clip.path
    writer = shard.clip(clip.id)
    # a decoder that hangs in native code cannot be interrupted, but its process can be ended
    if job.watch and not job.careful:
        faulthandler.dump_traceback_later(spec.timeout_seconds * 1.5 + 5, exit=True)
    try:
        if job.careful:
            try_decoding(path, timeout_seconds=spec.timeout_seconds)
        video = Video(path, short_side_px=spec.short_side_px, timeout_seconds=spec.timeout_seconds)
        seconds, shape = [], (0, 0)
        for image, pts_seconds in video:
            writer.append(jpeg.encode(image, quality=spec.jpeg_quality))
            seconds.append(pts_seconds)
            shape = image.shape
        if len(seconds) < spec.min_frames:
            raise VideoError(_too_few(len(seconds), video))
    except (ValueError, cv2.error) as error:
        return store.Record(clip.id, clip.class_name, clip.label, clip.group, 0, "failed", _printable(error), 0)
    finally:
        faulthandler.cancel_dump_traceback_later()
    about = {"label": clip.label, "class": clip.class_name, "group": clip.group, "source": clip.path, "fps": video.fps}
    crc32 = writer.finish(
        {**about, "height": shape[0], "width": shape[1], "promised_frames": video.promised_frames}, seconds
    )
    return store.Record(
        clip.id, clip.class_name, clip.label, clip.group, len(seconds), "ok", _oddity(len(seconds), video), crc32
    )


def _printable(error: Exception) -> str:
    """The message of an error as one line; what a damaged file puts into it may be anything."""
    return "".join(letter if letter.isprintable() else " " for letter in str(error)).strip()


def _too_few(frames: int, video: Video) -> str:
    if not frames:
        return f"it opens, but no frame decodes (codec {video.codec}); converting it to H.264 helps"
    return f"only {frames} frame{'s' if frames > 1 else ''} can be decoded"


def _oddity(frames: int, video: Video) -> str:
    """One frame less than promised is how most containers count; more than that is said."""
    missing = video.promised_frames - frames
    return f"{frames} of {video.promised_frames} promised frames decode" if missing > 1 else ""


# --- flow -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowJob:
    """One flow shard to make, from the frames shard of the same name."""

    path: Path
    frames: Path
    records: tuple[store.Record, ...]
    spec: FlowSpec
    device: str
    attrs: dict[str, Any]
    careful: bool = False  # a worker died of this shard before: this is its second and last attempt

    @property
    def units(self) -> int:
        """Clips, for the progress bar."""
        return len(self.records)

    @property
    def cost(self) -> int:
        """Something that grows with the time it will take: frames."""
        return sum(record.frames for record in self.records)


def make_flow(
    folder: Path,
    frames: Path,
    *,
    spec: FlowSpec,
    cluster: ClusterSpec,
    device: str,
    attrs: dict[str, Any],
    max_bad_fraction: float,
) -> None:
    """Compute flow for every clip of the frames store at `frames`, shard by shard, into the flow store at `folder`.

    Raises:
        StageFailed: more than `max_bad_fraction` of the clips have no flow, or a shard could not be made at all.
    """
    folder, source = folder.absolute(), store.open_frames(frames.absolute())
    jobs = []
    for path in source.shard_paths():
        records = tuple(store.read_records(path, "frames"))
        inputs = digest_of([list(record) for record in records])
        jobs.append(FlowJob(folder / "shards" / path.name, path, records, spec, device, {**attrs, "inputs": inputs}))
    attrs = {**attrs, "inputs": source.key, "split_name": source.attrs["split_name"]}
    _make_store(folder, "flow", _flow_shard, jobs, cluster, source.splits(), attrs, max_bad_fraction)


def _flow_shard(job: FlowJob) -> int:
    cv2.setNumThreads(1)
    source = store.open_frames(job.frames)
    with store.ShardWriter(job.path, "flow", job.attrs) as shard:
        for record in job.records:
            shard.record(_flow_clip(shard, job, source[record.id], record) if record.status == "ok" else record)
    return job.units


def _flow_clip(shard: store.ShardWriter, job: FlowJob, clip: store.StoredClip, record: store.Record) -> store.Record:
    """Flow of one clip, a batch of pairs at a time; a clip that cannot have flow is recorded with the reason."""
    spec, writer = job.spec, shard.clip(clip.id)
    parts = {"": "forward", "backward": "backward"} if spec.backward else {"": "forward"}
    try:
        if len(clip) < 2:
            raise ValueError("one frame alone has no flow")
        for frames in _overlapping(clip, spec.method):
            for part, direction in parts.items():
                _append_flow(writer, estimate(frames, spec, device=job.device, direction=direction), spec, part)
    except (ValueError, cv2.error) as error:
        return record._replace(status="failed", reason=f"no flow: {_printable(error)}", crc32=0)
    kept = {name: clip.attrs[name] for name in ("label", "class", "group", "source", "fps", "height", "width")}
    crc32 = writer.finish({**kept, "method": spec.method, "scaling": spec.scaling, "bound_px": spec.bound_px})
    return record._replace(crc32=crc32)


def _overlapping(clip: store.StoredClip, method: str) -> Iterator[np.ndarray]:
    """A clip in bounded batches of n + 1 frames, gray or RGB as the flow method reads them.

    Each begins with the last frame of the one before.
    """
    read = clip.frames if takes_colour(method) else clip.gray
    last = read(0, 1)
    pairs = max(1, _BATCH_BYTES // last.nbytes)
    for first in range(1, len(clip), pairs):
        batch = np.concatenate([last, read(first, min(first + pairs, len(clip)))])
        last = batch[-1:]
        yield batch


def _append_flow(writer: store.ClipWriter, flow: np.ndarray, spec: FlowSpec, part: str) -> None:
    if spec.scaling == "minmax":
        q, range_px = quantize.minmax_to_bytes(flow)
        writer.append_range(range_px, part=part)
    else:
        q = quantize.to_bytes(flow, bound_px=spec.bound_px)
    for plane in q.reshape(-1, *q.shape[2:]):  # x0 y0 x1 y1 ...
        writer.append(jpeg.encode(plane, quality=spec.jpeg_quality), part=part)


# --- both -------------------------------------------------------------------------------------------------------------


def _make_store(folder, kind, function, jobs, cluster: ClusterSpec, splits, attrs, max_bad_fraction: float) -> None:
    """Make the shards that are missing or outdated, then the index, then remove shards that no longer belong."""
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    remove_stale(shards)
    waiting = [
        job
        for job in jobs
        if not store.shard_is_current(job.path, kind, digest=job.attrs["digest"], inputs=job.attrs["inputs"])
    ]
    if waiting and len(waiting) < len(jobs):
        say(f"{kind}: {len(jobs) - len(waiting)} of {len(jobs)} shards are there already")
    # the longest first: the short ones at the end keep all workers busy until the end
    _run_jobs(kind, function, sorted(waiting, key=lambda job: -job.cost), cluster)
    found = [(record, job.path.stem) for job in jobs for record in store.read_records(job.path, kind)]
    _refuse_too_many_failures(kind, [record for record, _ in found], max_bad_fraction)
    store.write_index(folder / "index.h5", kind, found, splits, attrs)
    for path in set(shards.glob("*.h5")) - {job.path for job in jobs}:
        path.unlink()


def _run_jobs(kind: str, function, jobs: list, cluster: ClusterSpec) -> None:
    if not jobs:
        return
    with Progress(kind, sum(job.units for job in jobs), "clips") as bar, Workers(cluster, most=len(jobs)) as workers:
        again = []
        for job, result in workers.run(function, jobs):
            if isinstance(result, WorkerDied) and not job.careful:
                again.append(dataclasses.replace(job, careful=True))
                continue
            bar.advance(_units_of(kind, job, result))
        for job, result in workers.run(function, again):
            bar.advance(_units_of(kind, job, result))


def _units_of(kind: str, job: Any, result: Any) -> int:
    if isinstance(result, BaseException):
        raise StageFailed(
            f"{kind}: shard {job.path} could not be made: {type(result).__name__}: {result}. "
            "Finished shards are kept; when the cause is mended, run the same command again and it goes on from there."
        ) from result
    return result


def _refuse_too_many_failures(kind: str, records: list[store.Record], max_bad_fraction: float) -> None:
    failed = [record for record in records if record.status != "ok"]
    for record in failed[:20]:
        say(f"{kind}: {record.id} failed: {record.reason}")
    if len(failed) > 20:
        say(f"{kind}: ... and {len(failed) - 20} more failed clips")
    if len(failed) > max_bad_fraction * len(records):
        names = "; ".join(f"{record.id} ({record.reason})" for record in failed[:20])
        raise StageFailed(
            f"{kind}: {len(failed)} of {len(records)} clips failed, more than [frames] max_bad_fraction = "
            f"{max_bad_fraction:g} allows: {names}. Mend or remove these videos, or allow a larger fraction."
        )
