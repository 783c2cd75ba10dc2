"""The Flow stage end to end against the flow alone: does it keep the device busy?

    python benchmarks/flow_stage.py                                  # tvl1 on the GPU if there is one
    python benchmarks/flow_stage.py --method dis_medium --clips 6    # a CPU

*Stage* is `make_flow` in this process, from a frames store to a flow store, both on disk. *Bare* is the same method on
the same device and frames, but on arrays in memory, in batches of the stage's size, with nothing decoded, fetched or
encoded. The two are timed in turn, so a machine that slows down slows both. The frames store is synthetic, written here
without any video. Luigi, dask and an installation of the project are not needed (PYTHONPATH=.).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from common import show, spread
from synthetic import Drawn, write_store

from pipeline import quantize, store
from pipeline.cluster import threads_each
from pipeline.flow import (
    cuda_devices,
    estimate_on_device,
    method_device,
    pairs_of,
    takes_color,
    tensor_device,
    to_gray,
)
from pipeline.flow.device import pinned_array
from pipeline.preprocess import make_flow
from pipeline.specs import ClusterSpec, FlowSpec, FrameSpec
from pipeline.system.limits import processors
from pipeline.video import jpeg

PARTS = ("decode", "flow", "encode")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="tvl1")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--shard-clips", type=int, default=FrameSpec().shard_clips, help="clips in each shard")
    parser.add_argument("--frames", type=int, nargs=2, default=(60, 300), help="of the shortest and the longest clip")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 340), help="height and width")
    parser.add_argument("--threads", type=int, default=0, help="[cluster] threads")
    parser.add_argument("--batch-pairs", type=int, default=0)
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    spec = FlowSpec(method=arguments.method, batch_pairs=arguments.batch_pairs, backward=arguments.backward)
    cluster = ClusterSpec(kind="inline", threads=arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        lengths = np.linspace(*arguments.frames, arguments.clips).round().astype(int)
        lengths = np.random.default_rng(0).permutation(lengths).tolist()  # else the last shards have the longest clips
        frames = moving_textures(max(lengths), *arguments.size)
        drawn = clips_of(frames, lengths)
        write_store(Path(scratch) / "frames", "frames", drawn, shard_clips=arguments.shard_clips)
        bare(frames, spec, arguments.device, 1)  # the first call compiles and warms up
        runs = []
        for number in range(arguments.runs):
            rates = {
                "bare": bare(frames, spec, arguments.device, sum(lengths) - len(lengths)),
                "stage": stage(Path(scratch), spec, cluster, arguments.device, number),
            }
            print(f"run {number + 1}: flow alone {rates['bare']:.1f} pairs/s, stage {rates['stage']:.1f}", flush=True)
            runs.append(rates | alone(frames, spec))
    report(runs, vars(arguments), method_device(spec.method, arguments.device), cluster)


def moving_textures(count: int, height: int, width: int) -> np.ndarray:
    """(count, H, W, 3) uint8: a smooth texture over which another one glides, with camera-like noise."""
    rng = np.random.default_rng(0)
    still, gliding = (
        cv2.normalize(cv2.GaussianBlur(rng.random((height, 2 * width, 3)), (0, 0), 3), None, 30, 225, cv2.NORM_MINMAX)
        for _ in range(2)
    )
    frames = np.empty((count, height, width, 3), np.uint8)
    for t in range(count):
        frames[t] = still[:, :width] + rng.normal(0, 1.5, (height, width, 1))
        box = slice(height // 4, height // 2), slice(width // 4, width // 2)
        frames[t][box] = np.roll(gliding, 2 * t, 1)[:, :width][box]
    return frames


def clips_of(frames: np.ndarray, lengths: list[int]) -> Iterator[Drawn]:
    """Clips of the first `lengths[k]` of the frames."""
    images = [jpeg.encode(frame, quality=95) for frame in frames]
    for number, length in enumerate(lengths):
        yield Drawn(f"clip{number:06}", 0, "g", images[:length], frames.shape[1:3])


def bare(frames: np.ndarray, spec: FlowSpec, device: str, pairs: int) -> float:
    """Pairs per second of the flow alone, over at least `pairs` pairs, in batches of the stage's size."""
    device, images = method_device(spec.method, device), frames if takes_color(spec.method) else to_gray(frames)
    tensors_on = tensor_device(spec.method, device)
    batch = min(len(images) - 1, pairs_of(frames.shape[1:3], spec, device=tensors_on))
    images = _as_the_stage_has_them(images, tensors_on)
    begun, done, at = time.perf_counter(), 0, 0
    while done < pairs:
        at = at if at + batch < len(images) else 0
        estimate_on_device(images[at : at + batch + 1], spec, device=device)
        done, at = done + batch, at + batch
    if tensors_on != "cpu":
        import torch

        torch.cuda.synchronize(tensors_on)
    return done / (time.perf_counter() - begun) / (2 if spec.backward else 1)


def _as_the_stage_has_them(images: np.ndarray, device: str) -> np.ndarray:
    found = pinned_array(images.shape, device=device)
    found[...] = images
    return found


def stage(scratch: Path, spec: FlowSpec, cluster: ClusterSpec, device: str, run: int) -> float:
    """Pairs per second of the whole stage, including opening and writing the files."""
    begun = time.perf_counter()
    folder = scratch / f"flow{run}"
    make_flow(folder, scratch / "frames", spec=spec, cluster=cluster, device=device, max_bad_fraction=0.0)
    seconds = time.perf_counter() - begun
    return sum(len(clip) for clip in store.open_flow(folder).values()) / seconds


def alone(frames: np.ndarray, spec: FlowSpec) -> dict[str, float]:
    """Seconds that one thread needs to decode a frame, and to encode the planes of a pair."""
    some = frames[:48]
    images = [np.frombuffer(jpeg.encode(frame, quality=95), np.uint8) for frame in some]
    begun = time.perf_counter()
    decoded_images = np.stack([jpeg.decode(image, gray=not takes_color(spec.method)) for image in images])
    decoded = time.perf_counter()
    fast = FlowSpec(method="dis_ultrafast", jpeg_quality=spec.jpeg_quality)  # quick, with typical flow
    q = quantize.to_bytes(estimate_on_device(decoded_images, fast, device="cpu"), bound_px=spec.bound_px)
    encoding = time.perf_counter()
    for plane in q.reshape(-1, *q.shape[2:]):
        jpeg.encode(plane, quality=spec.jpeg_quality)
    encode = (time.perf_counter() - encoding) / len(q)
    return {"decode": (decoded - begun) / len(some), "encode": encode * (2 if spec.backward else 1)}


def report(runs: list[dict], settings: dict, device: str, cluster: ClusterSpec) -> None:
    """Print and record what was measured."""
    share = [run["stage"] / run["bare"] for run in runs]
    threads = threads_each(cluster, cuda_devices(settings["method"], settings["device"]))
    rows = [
        ("method, device", f"{settings['method']}, {device}"),
        (
            "clips, frames of each, height x width",
            "{clips}, {frames[0]} to {frames[1]}, {size[0]} x {size[1]}".format(**settings),
        ),
        ("threads beside the flow, cores", f"{threads if threads > 1 else 0}, {len(processors())}"),
        ("flow alone, pairs/s", spread([run["bare"] for run in runs], 1)),
        ("stage, pairs/s", spread([run["stage"] for run in runs], 1)),
        ("stage over flow alone", spread(share)),
        ("decode a frame, one thread, ms", spread([1e3 * run["decode"] for run in runs], 3)),
        ("flow of a pair, ms", spread([1e3 / run["bare"] for run in runs], 3)),
        ("encode a pair, one thread, ms", spread([1e3 * run["encode"] for run in runs], 3)),
    ]
    costs = [{**run, "flow": 1 / run["bare"]} for run in runs]
    for part in PARTS:
        values = [100 * cost[part] / sum(cost[name] for name in PARTS) for cost in costs]
        rows.append((f"share of the work one after another, {part}, %", spread(values, 1)))
    show(
        f"flow stage of {settings['shard_clips']} clips a shard",
        rows,
        {"settings": settings, "device": device, "threads": threads, "runs": runs, "share": share},
    )


if __name__ == "__main__":
    main()
