"""Random temporal inputs per second, from a flow store and from a folder of JPEG files with the usual reader.

    python benchmarks/loader.py                       # writes its own 340 x 256 store, and files
    python benchmarks/loader.py --store data/artifacts/ucf101/flow/DIGEST --workers 16

Both read the same JPEG bytes with the same number of processes, in turn. Items are stacks of L = 10, 224 x 224,
cropped and mirrored at random. The usual reader is a torch Dataset that reads 2L gray images with cv2.imread, crops and
mirrors bytes, and normalizes in numpy. Ours also subtracts mean flow. It is measured three times: as batches of views,
whose arithmetic is left to the device; as inputs, with that arithmetic done on the CPU in the main process; and as
views whose decoding is left to a GPU as well.
Without loading processes, ours prepares the next batch in a thread: pin both to one core (taskset -c 0) to compare.
The synthetic store has clips of UCF-101's mean length, eight per shard as in [frames] shard_clips, so that the numbers
of files compare as for UCF-101; writing it takes a minute. With CUDA, nvJPEG decodes the same planes at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from common import show, spread
from synthetic import Drawn, write_store
from torch.utils.data import DataLoader, Dataset

from pipeline import quantize, store
from pipeline.catalog import Clip
from pipeline.dataset import TrainingSet, stack_items
from pipeline.dataset.encoded import decode
from pipeline.dataset.inputs import ViewBatch, to_inputs
from pipeline.dataset.loading import PRELOADED, fitting_workers, loader
from pipeline.specs import StackSpec, StreamSpec
from pipeline.training.feeding import PartlyEncoded
from pipeline.video import jpeg

LENGTH, SIDE, BOUND_PX = 10, 224, 20.0
CLIPS, FIELDS, CLIPS_A_SHARD = 64, 185, 8  # written by default; UCF-101's clips have 186 frames on average
ENCODED_TIMES = 8  # as many items that stay encoded: they are read so fast that processes would still be starting
ITEMS_A_PROCESS = 160  # per round; with fewer, the processes would have read them all before the clock starts


def clips_drawn(*, clips: int, fields: int, quality: int) -> Iterator[Drawn]:
    """Clips of smooth motions, 340 x 256."""
    rng = np.random.default_rng(0)
    for number in range(clips):
        planes = (jpeg.encode(plane, quality=quality) for plane in _planes(rng, fields))
        yield Drawn(f"clip{number:04}", number % 2, "g", planes, (256, 340))


def _planes(rng: np.random.Generator, fields: int):
    """The x and y planes of each field in turn, (256, 340) uint8: smooth blobs that drift upward, and some noise."""
    texture = cv2.GaussianBlur(
        rng.normal(0, 1, (2, 256 + fields, 340)).astype(np.float32).transpose(1, 2, 0), (0, 0), 12
    )
    texture *= 4 / texture.std()
    for t in range(fields):
        noise = 0.15 * rng.standard_normal((2, 256, 340), np.float32)
        yield from quantize.to_bytes(texture[t : t + 256].transpose(2, 0, 1) + noise, bound_px=BOUND_PX)


def write_files(folder: Path, flow: store.Store, ids: list[str]) -> int:
    """Write the same bytes as files, `<clip>/x_00000.jpg` and `y_00000.jpg`; returns their number."""
    count = 0
    for video_id in ids:
        (folder / video_id).mkdir(parents=True)
        for k, data in enumerate(flow[video_id].jpegs()):
            (folder / video_id / f"{'xy'[k % 2]}_{k // 2:05}.jpg").write_bytes(data.tobytes())
            count += 1
    return count


class UsualReader(Dataset):
    """Random stacks from a folder of JPEG files, read in the usual way."""

    def __init__(self, folder: Path, items: int):
        self.folder, self.items = folder, items
        self.clips = [(path.name, len(list(path.glob("x_*.jpg")))) for path in sorted(folder.iterdir())]

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        rng = np.random.default_rng(number)
        name, fields = self.clips[rng.integers(len(self.clips))]
        start = rng.integers(fields - LENGTH + 1)
        paths = [self.folder / name / f"{c}_{t:05}.jpg" for t in range(start, start + LENGTH) for c in "xy"]
        stack = np.stack([cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths])
        top, left = (rng.integers(length - SIDE + 1) for length in stack.shape[1:])
        view = stack[:, top : top + SIDE, left : left + SIDE]
        if rng.random() < 0.5:
            view = view[:, :, ::-1].copy()
            view[0::2] = 255 - view[0::2]
        return torch.from_numpy((view.astype(np.float32) - 127.5) / 127.5), 0


def stream(batch: int, items: int, kind: str) -> StreamSpec:
    """A temporal stream of the paper's inputs."""
    stack, steps = StackSpec(length=LENGTH, kind=kind), -(-items // batch)
    return StreamSpec(stream="temporal", crop_px=SIDE, batch=batch, steps=steps, stack=stack)


def _begin_worker(worker: int) -> None:
    cv2.setNumThreads(1)


def rate_of(batches, use: Callable[[ViewBatch], object] | None = None) -> float:
    """Items per second, not counting the first batch, which waits for processes to start."""
    items, begun = 0, None
    for views, _ in batches:
        if use:
            use(views)
        if begun is None:
            begun = time.perf_counter()
        else:
            items += len(views)
    return items / (time.perf_counter() - begun)


def read_rates(flow: Path, files: Path, clips: list[Clip], arguments) -> dict[str, float]:
    """Items per second of each reader, one after another, for one round."""
    ours, more = (
        TrainingSet(stream(arguments.batch, items, arguments.kind), flow, clips)
        for items in (arguments.items, ENCODED_TIMES * arguments.items)
    )
    usual = UsualReader(files, len(ours))
    pin = torch.cuda.is_available()  # as for a training
    parallel = {"num_workers": arguments.workers, "pin_memory": pin}
    if arguments.workers:
        parallel |= {"multiprocessing_context": "forkserver", "worker_init_fn": _begin_worker}

    def batches(items: Dataset):
        given = {"numbers": range(len(items)), "batch": arguments.batch}
        workers = fitting_workers(items, **given, workers=arguments.workers)
        return loader(items, **given, workers=workers, pin=pin, collate=stack_items)

    found = {}
    for name, made, use in (
        ("usual", lambda: DataLoader(usual, arguments.batch, **parallel), None),
        ("views", lambda: batches(ours), None),
        ("inputs", lambda: batches(ours), lambda views: to_inputs(views, torch.device("cpu"))),
        ("encoded", lambda: batches(PartlyEncoded(more, 1.0, batch=arguments.batch)), None),
    ):
        found[name] = rate_of(made(), use)
        print(f"{name}: {found[name]:.0f} items/s", flush=True)
    return found


def some_planes(flow: store.Store, ids: list[str]) -> list[np.ndarray]:
    """JPEG bytes of the 2L planes of one window of each clip."""
    return [data.copy() for video_id in ids for data in flow[video_id].jpegs(0, 2 * LENGTH)]


def by_torchvision(planes: list[np.ndarray], rounds: int, device: str = "cuda") -> dict:
    """Planes per second of torchvision's decoder on a device (nvJPEG on "cuda") and of ours in one thread, in turn.

    Returns:
        "torchvision" and "ours": planes per second in every round; "difference": the largest between decoded bytes.
        What torchvision decodes stays on the device, where training needs it; copying the JPEG bytes there is timed.
    """
    given, found = [torch.from_numpy(data) for data in planes], {"torchvision": [], "ours": []}
    theirs = decode(given, torch.device(device))  # sets up the decoder
    for _ in range(rounds):
        begun = time.perf_counter()
        theirs = decode(given, torch.device(device))
        if device != "cpu":
            torch.cuda.synchronize(device)
        decoded = time.perf_counter()
        ours = [jpeg.decode(data, gray=True) for data in planes]
        found["ours"].append(len(planes) / (time.perf_counter() - decoded))
        found["torchvision"].append(len(planes) / (decoded - begun))
    pairs = zip(theirs, ours, strict=True)
    return {**found, "difference": max(int(np.abs(a[0].cpu().numpy() - b.astype(int)).max()) for a, b in pairs)}


def report_nvjpeg(found: dict, planes: int, views: list[float], workers: int) -> None:
    """Print and record whether nvJPEG is faster; `views`: items per second of the CPU loader in every round."""
    loaded = [2 * LENGTH * rate for rate in views]
    who = f"{workers} processes" if workers else "this process"
    rows = [
        (f"nvJPEG, batches of {planes} planes, planes/s", spread(found["torchvision"], 0)),
        (f"store, views, {who}, planes/s", spread(loaded, 0)),
        ("decoding as the store does, one thread, planes/s", spread(found["ours"], 0)),
        ("nvJPEG / store, views", f"{statistics.median(found['torchvision']) / statistics.median(loaded):.2f}"),
        ("largest difference of a decoded byte", str(found["difference"])),
    ]
    show("loader nvjpeg", rows, {**found, "planes": planes, "loader": loaded, "workers": workers})


def main() -> None:
    multiprocessing.set_forkserver_preload(PRELOADED)  # before the usual reader starts the fork server
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a flow store whose short side is 256; else one is written")
    parser.add_argument("--clips", type=int, default=CLIPS, help="clips written, or taken from the store")
    parser.add_argument("--fields", type=int, default=FIELDS, help="of each clip that is written")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality of the store that is written")
    parser.add_argument(
        "--kind", choices=("stack", "trajectory"), default="stack", help="what ours makes of the fields"
    )
    parser.add_argument("--workers", type=int, default=0, help="loading processes; 0: this one")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--items", type=int, help=f"items in a round; {ITEMS_A_PROCESS} for each process")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.items = arguments.items or ITEMS_A_PROCESS * max(1, arguments.workers)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.store or Path(scratch) / "store"
        if not arguments.store:
            drawn = clips_drawn(clips=arguments.clips, fields=arguments.fields, quality=arguments.quality)
            write_store(folder, "flow", drawn, shard_clips=CLIPS_A_SHARD, bound_px=BOUND_PX)
        flow = store.open_flow(folder)
        size = next(((clip.height, clip.width) for clip in flow.values()), (0, 0))
        if min(size) < SIDE:
            parser.error(f"--store holds clips of {size[1]} x {size[0]}; crops are {SIDE} x {SIDE}")
        ids = [video_id for video_id in flow if len(flow[video_id]) >= LENGTH][: arguments.clips]
        clips = [Clip(video_id, video_id, n % 2, "x", "g", "train", 1, 1, "0" * 16) for n, video_id in enumerate(ids)]
        count = write_files(Path(scratch) / "files", flow, ids)
        rounds = [read_rates(folder, Path(scratch) / "files", clips, arguments) for _ in range(arguments.rounds)]
        names = {flow.rows[video_id]["shard"] for video_id in ids}
        shards = [flow.path, *(path for path in flow.shard_paths() if path.stem in names)]
        sizes = {"files": count, "hdf5_files": len(shards), "hdf5_bytes": sum(path.stat().st_size for path in shards)}
        sizes["jpeg_bytes"] = sum(flow[video_id].nbytes for video_id in ids)
        planes = some_planes(flow, ids[: arguments.batch])
    report(rounds, sizes, arguments)
    if torch.cuda.is_available():  # after the report: if torchvision lacks nvJPEG, only its own rows are lost
        found = by_torchvision(planes, arguments.rounds)
        report_nvjpeg(found, len(planes), [one["views"] for one in rounds], arguments.workers)


def report(rounds: list[dict], sizes: dict, arguments) -> None:
    """Print and record what was measured."""
    rates = {name: [one[name] for one in rounds] for name in rounds[0]}
    ratios = {name: [one[name] / one["usual"] for one in rounds] for name in ("views", "inputs")}
    rows = [
        ("loading processes wanted", str(arguments.workers or "none: this one")),
        ("usual reader, items/s", spread(rates["usual"], 0)),
        ("store, views, items/s", spread(rates["views"], 0)),
        ("store, inputs, items/s", spread(rates["inputs"], 0)),
        ("store, views left as JPEG for a GPU to decode, items/s", spread(rates["encoded"], 0)),
        ("store / usual, views", spread(ratios["views"])),
        ("store / usual, inputs", spread(ratios["inputs"])),
        ("JPEG files / HDF5 files", f"{sizes['files']} / {sizes['hdf5_files']}"),
        ("JPEG files for each HDF5 file", f"{sizes['files'] / sizes['hdf5_files']:.0f}"),
        ("MB of JPEG / of HDF5", f"{sizes['jpeg_bytes'] / 1e6:.1f} / {sizes['hdf5_bytes'] / 1e6:.1f}"),
        ("KB a plane", f"{sizes['jpeg_bytes'] / sizes['files'] / 1e3:.1f}"),
    ]
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    show(
        "loader" if arguments.kind == "stack" else "loader of trajectories",
        rows,
        {"rounds": rounds, "ratios": medians, "sizes": sizes},
    )


if __name__ == "__main__":
    main()
