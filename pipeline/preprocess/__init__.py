"""The shard loops: videos -> frames store, frames store -> flow store.

They decide which shards are made and which are kept, and report which clips failed. `jobs/` holds what a worker does
with a shard. A shard is the unit of work and of restart. The bytes of a shard do not depend on the number of workers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import flow, store
from pipeline.catalog import Catalog, Clip
from pipeline.cluster import Workers, threads_each
from pipeline.preprocess import failures
from pipeline.preprocess.jobs import ShardJob, make_shard, opencv_threads_as_before
from pipeline.preprocess.jobs.flow import FlowJob
from pipeline.preprocess.jobs.frames import FramesJob
from pipeline.preprocess.sharding import Shards, plan_shards
from pipeline.specs import ClusterSpec, FlowSpec, FrameSpec
from pipeline.store import motion
from pipeline.system.digests import canonical_json, digest_of, file_hashes
from pipeline.system.errors import Misread, StageFailed, UserError, WorkerDied, message_suffices
from pipeline.system.files import MAY_PASS
from pipeline.system.locks import one_writer
from pipeline.system.progress import Progress, say

MUCH_AT_BOUND = 0.005
"""Share of the flow's components clipped at `bound_px`, above which a warning is printed."""


def store_attrs(spec: FrameSpec | FlowSpec, *upstream: str) -> dict[str, str]:
    """Root attributes that say how a store is made: the digest, and the settings that it covers.

    Args:
        spec: settings; RAFT's weights count by the content of their file, if they come from one that is there.
        upstream: digests of what the store is made from.
    """
    found = file_hashes(spec.weights_file if isinstance(spec, FlowSpec) else None)
    about = {**spec.identity(), **({"raft_weights": found[0]} if found else {})}
    return {"digest": spec.digest(*upstream, *found), "spec": canonical_json(about)}


# --- frames -----------------------------------------------------------------------------------------------------------


def make_frames(
    folder: Path | str,
    catalog: Catalog,
    *,
    videos: Path | str,
    spec: FrameSpec,
    cluster: ClusterSpec,
) -> None:
    """Decode every clip of the catalog into the frames store at `folder`; shards that are up to date are kept.

    Args:
        folder: folder of the store.
        catalog: the clips to decode.
        videos: folder that the clips' paths are relative to.
        spec, cluster: settings. Local workers import the main module again: a script must guard what it does by
            `if __name__ == "__main__":`, or use `ClusterSpec(kind="inline")`.

    Raises:
        UserError: the catalog has no clips.
        StageFailed: more than `spec.max_bad_fraction` of the clips failed, or a shard could not be made at all.
    """
    if not catalog.clips:
        raise UserError("the catalog has no clips to make a store from")
    folder = Path(folder).absolute()  # workers may have another working directory
    attrs = store_attrs(spec)
    jobs = frames_jobs(folder, catalog, videos=Path(videos), spec=spec, cluster=cluster, attrs=attrs)
    _make_store(
        folder,
        jobs,
        functools.partial(Workers, cluster),
        parts={clip.id: clip.part for clip in catalog.clips},
        attrs={**attrs, "inputs": catalog.videos_key, "split_name": catalog.split_name},
        max_bad_fraction=spec.max_bad_fraction,
    )


def frames_jobs(
    folder: Path,
    catalog: Catalog,
    *,
    videos: Path,
    spec: FrameSpec,
    cluster: ClusterSpec,
    attrs: dict[str, Any],
    plan: Mapping[str, tuple[Clip, ...]] | None = None,
) -> list[FramesJob]:
    """Jobs for every shard of a frames store, made or not; the arguments are those of `make_frames`.

    `plan` has the clips of each shard, where they are not to be cut by the sizes in `spec`.
    """
    plan = plan or plan_shards(catalog.clips, most_clips=spec.shard_clips, most_bytes=spec.shard_mb << 20)
    jobs = []
    for name, clips in plan.items():
        inputs = digest_of([[clip.id, clip.label, clip.class_name, clip.content] for clip in clips])
        jobs.append(
            FramesJob(
                path=folder / "shards" / f"{name}.h5",
                attrs={**attrs, "inputs": inputs},
                videos=videos.absolute(),
                clips=clips,
                spec=spec,
                watch=cluster.kind in ("local", "jobqueue"),
            )
        )
    return jobs


# --- flow -------------------------------------------------------------------------------------------------------------


def make_flow(
    folder: Path | str,
    frames: Path | str,
    *,
    spec: FlowSpec,
    cluster: ClusterSpec,
    device: str = "auto",
    max_bad_fraction: float = FrameSpec.max_bad_fraction,
) -> None:
    """Compute flow for every clip of the frames store at `frames`, shard by shard, into the flow store at `folder`.

    The arguments are those of `make_frames`, the device as for `flow.estimate`, and the largest share of failed clips.

    Raises:
        UserError: a device that the method cannot use, or that this machine lacks if the work is done here.
        StageFailed: more than `max_bad_fraction` of the clips have no flow, or a shard could not be made at all.
    """
    folder, source = Path(folder).absolute(), store.open_frames(Path(frames).absolute())
    devices = devices_of(spec, cluster, device)
    # the workers of a running scheduler decide by their threads and resources how many shards they make at a time
    at_once = 1 if cluster.kind == "address" else _shards_at_once(spec.method, devices)
    threads = threads_each(cluster, devices)
    threads = max(1, threads // at_once) if threads else 0  # of a shard
    attrs = store_attrs(spec, source.attrs["digest"])
    jobs = flow_jobs(folder, source.shard_paths(), spec=spec, device=device, attrs=attrs, threads=threads)
    _make_store(
        folder,
        jobs,
        functools.partial(Workers, cluster, devices=devices, at_once=at_once),
        parts=source.parts(),
        attrs={**attrs, "inputs": source.key, "split_name": source.attrs["split_name"]},
        max_bad_fraction=max_bad_fraction,
    )
    _warn_of_a_bound(folder, spec)


def _shards_at_once(method: str, devices: tuple[str, ...]) -> int:
    """Shards that a worker makes at the same time.

    On a GPU two: while one is opened, ends or is written, the other one computes. RAFT's network is so slow that this
    matters little, and takes as much memory as there is; OpenCV's CUDA computes one batch after another.
    """
    on_tensors = bool(devices) and flow.tensor_device(method, devices[0]) != "cpu"
    return 2 if on_tensors and not flow.takes_color(method) else 1


def _warn_of_a_bound(folder: Path, spec: FlowSpec) -> None:
    """Warn if much motion is clipped at the bound: it is lost to all later stages, and nothing else shows it."""
    if spec.scaling != "bound":
        return
    try:
        with store.open_flow(folder / "index.h5") as made:
            found = motion.sample(made)
    except Exception as error:  # the store is complete: this is only advice
        if not message_suffices(error):
            raise
        say(f"flow: how much motion lies at [flow] bound_px is unknown: {error}")
        return
    if found and found.at_bound > MUCH_AT_BOUND:
        say(
            f"flow: {found.at_bound:.1%} of the motion is cut off at [flow] bound_px = {spec.bound_px:g} (in a sample "
            f"of {found.fields} fields); a larger bound keeps it, in coarser steps; scaling = minmax cuts off nothing"
        )


def flow_jobs(
    folder: Path, shards: Iterable[Path], *, spec: FlowSpec, device: str, attrs: dict[str, Any], threads: int = 1
) -> list[FlowJob]:
    """Jobs for every shard of a flow store, made or not, one for each of these shards of frames."""
    jobs = []
    for path in shards:
        records = tuple(store.read_records(path, "frames"))
        inputs = digest_of([record.identity() for record in records])
        jobs.append(
            FlowJob(
                path=folder / "shards" / path.name,
                attrs={**attrs, "inputs": inputs},
                frames=path,
                records=records,
                spec=spec,
                device=device,
                threads=threads,
            )
        )
    return jobs


def devices_of(spec: FlowSpec, cluster: ClusterSpec, device: str) -> tuple[str, ...]:
    """CUDA devices of the workers: those of this machine, or, for workers on other machines, `device` as given."""
    if cluster.is_here:
        return flow.cuda_devices(spec.method, device)
    return (device,) if flow.may_use_cuda(spec.method, device) else ()


# --- both -------------------------------------------------------------------------------------------------------------


def _make_store(
    folder: Path,
    jobs: Sequence[FramesJob] | Sequence[FlowJob],
    workers: Callable[..., Workers],
    *,
    parts: Mapping[str, str],
    attrs: dict[str, Any],
    max_bad_fraction: float,
) -> None:
    """Make the shards that are missing or outdated, then the index, then remove shards that no longer belong to it."""
    kind = jobs[0].kind
    with one_writer(folder):
        shards = folder / "shards"
        shards.mkdir(parents=True, exist_ok=True)
        there = Shards(shards.glob("*.h5"))
        waiting = [dataclasses.replace(job, earlier=there.related(job.path)) for job in outdated(jobs)]
        if waiting and len(waiting) < len(jobs):
            say(f"{kind}: {len(jobs) - len(waiting)} of {len(jobs)} shards are there already")
        # the longest jobs first: the short ones at the end keep all workers busy
        with opencv_threads_as_before():
            _run_jobs(sorted(waiting, key=lambda job: -job.cost), workers)
        found = [(record, job.path.stem) for job in jobs for record in store.read_records(job.path, kind)]
        if kind == "frames":
            failures.say_what_is_odd([record for record, _ in found])
        failures.refuse_too_many(folder, kind, [record for record, _ in found], max_bad_fraction)
        store.write_index(folder / "index.h5", kind, found, parts, attrs)
        for path in set(shards.glob("*.h5")) - {job.path for job in jobs}:
            path.unlink()


def outdated(jobs: Iterable[ShardJob]) -> list[Any]:
    """The jobs whose shard is missing, or was made with other settings or from other inputs."""
    return [job for job in jobs if not job.is_current()]


def _run_jobs(jobs: Sequence[FramesJob] | Sequence[FlowJob], start: Callable[..., Workers]) -> None:
    if not jobs:
        return
    with (
        Progress(jobs[0].kind, sum(job.units for job in jobs), "clips") as bar,
        start(most=len(jobs)) as workers,
    ):
        again = []
        for job, result in workers.run(make_shard, jobs):
            if _may_pass(result):
                again.append(job.again())
                continue
            bar.advance(_units_of(job, result))
        for suspect in again:  # one at a time, to tell one that kills its worker from those beside it
            for job, result in workers.run(make_shard, [suspect]):
                bar.advance(_units_of(job, result))


def _may_pass(result: Any) -> bool:
    """Whether what happened to a job is worth a second try at the end: one moment must not cost the night."""
    return isinstance(result, (WorkerDied, Misread)) or (isinstance(result, OSError) and result.errno in MAY_PASS)


def _units_of(job: ShardJob, result: Any) -> int:
    if isinstance(result, BaseException):
        raise StageFailed(
            f"{job.kind}: shard {job.path} could not be made: {failures.error_message(result)}. "
            "Finished shards are kept; when the cause is fixed, run the same command again and it goes on from there."
        ) from result
    return result
