"""Frames and Flow on dask against a plain loop on one thread: parallel efficiency, memory, equal bytes.

    python benchmarks/preprocess.py                          # writes its own 320 x 240 demo dataset
    python benchmarks/preprocess.py --videos FOLDER          # any folder of <class>/<clip>

Efficiency is (sum of one thread's video decoding, JPEG encoding and flow) / workers / (wall time of Frames + Flow on
dask, including starting and stopping the workers). The sum leaves out decoding the cached JPEG frames again, which is
overhead of the pipeline. Sum and wall time are measured in turn, so a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
from common import show, spread

from pipeline import preprocess, quantize
from pipeline.catalog import Catalog, read_dataset
from pipeline.demo import write_demo
from pipeline.flow import estimate
from pipeline.specs import ClusterSpec, DatasetSpec, DemoSpec, FlowSpec, FrameSpec
from pipeline.video import Video, jpeg

FRAMES, FLOW = FrameSpec(short_side_px=0), FlowSpec(method="dis_medium")


def one_thread(videos: Path, catalog: Catalog) -> dict[str, float]:
    """Seconds that one thread takes for each part of the work, without writing files."""
    seconds = dict.fromkeys(("decode", "encode frames", "flow", "encode flow"), 0.0)

    def timed(name, function, *arguments, **settings):
        begun = time.perf_counter()
        result = function(*arguments, **settings)
        seconds[name] += time.perf_counter() - begun
        return result

    for clip in catalog.clips:
        images = timed("decode", lambda path=videos / clip.path: [image for image, _ in Video(path)])
        cached = timed(
            "encode frames", lambda images=images: [jpeg.encode(i, quality=FRAMES.jpeg_quality) for i in images]
        )
        frames = np.stack(images)
        flow = timed("flow", estimate, frames, FLOW, device="cpu")
        planes = timed("encode flow", lambda flow=flow: _encode(flow))
        assert len(cached) == len(images) and len(planes) == 2 * len(flow)
    return seconds


def _encode(flow) -> list[bytes]:
    q = quantize.to_bytes(flow, bound_px=FLOW.bound_px)
    return [jpeg.encode(plane, quality=FLOW.jpeg_quality) for plane in q.reshape(-1, *q.shape[2:])]


class Memory:
    """Highest resident memory of any child process, by polling."""

    def __enter__(self) -> Memory:
        self.peak, self._stop = 0, threading.Event()
        threading.Thread(target=self._poll, daemon=True).start()
        return self

    def _poll(self) -> None:
        while not self._stop.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    self.peak = max(self.peak, process.memory_info().rss)
                except psutil.Error:  # it has just ended
                    continue

    def __exit__(self, *error) -> None:
        self._stop.set()


def on_dask(folder: Path, videos: Path, catalog: Catalog, workers: int) -> dict:
    """Wall time and peak memory of Frames + Flow, and the SHA-256 sums of all shards."""
    cluster = ClusterSpec(workers=workers)
    begun = time.perf_counter()
    with Memory() as memory:
        preprocess.make_frames(folder / "frames", catalog, videos=videos, spec=FRAMES, cluster=cluster)
        frames_seconds = time.perf_counter() - begun
        options = {"spec": FLOW, "cluster": cluster, "device": "cpu", "max_bad_fraction": 0.1}
        preprocess.make_flow(folder / "flow", folder / "frames", **options)
    wall = time.perf_counter() - begun
    sums = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("shards/*.h5")}
    return {"wall": wall, "frames": frames_seconds, "flow": wall - frames_seconds, "peak": memory.peak, "sums": sums}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of <class>/<clip>")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        videos = arguments.videos or Path(scratch) / "demo" / "videos"
        if not arguments.videos:
            write_demo(videos.parent, DemoSpec(width_px=320, height_px=240, frames=60, groups=6, clips=3))
        catalog = read_dataset(DatasetSpec(videos=str(videos)), "1")
        runs = []
        for run in range(arguments.runs):
            single = one_thread(videos, catalog)
            runs.append({"single": single, **on_dask(Path(scratch) / str(run), videos, catalog, arguments.workers)})
        one_worker = on_dask(Path(scratch) / "one", videos, catalog, 1)
    report(catalog, runs, one_worker, arguments.workers)


def report(catalog: Catalog, runs: list[dict], one_worker: dict, workers: int) -> None:
    """Print and record what was measured."""
    sums = [sum(run["single"].values()) for run in runs]
    efficiency = [total / workers / run["wall"] for total, run in zip(sums, runs, strict=True)]
    equal = all(run["sums"] == one_worker["sums"] for run in runs)
    parts = {name: spread([run["single"][name] for run in runs]) for name in runs[0]["single"]}
    rows = [
        ("clips", str(len(catalog.clips))),
        *((f"one thread, {name}, s", value) for name, value in parts.items()),
        ("one thread, sum, s", spread(sums)),
        (f"Frames + Flow on {workers} workers, wall, s", spread([run["wall"] for run in runs])),
        ("parallel efficiency", spread(efficiency)),
        ("peak memory of any worker, MiB", spread([run["peak"] / 2**20 for run in runs], 0)),
        (f"shards equal byte for byte, {len(runs)} runs of {workers} workers and one of 1", "yes" if equal else "NO"),
    ]
    show("preprocess", rows, {"runs": runs, "efficiency": efficiency, "equal": equal})


if __name__ == "__main__":
    main()
