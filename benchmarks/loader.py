"""Random temporal inputs a second: from a flow store, and from a folder of JPEG files with the usual reader.

    python benchmarks/loader.py                       # a synthetic store of 340 x 256 that it writes itself
    python benchmarks/loader.py --store data/artifacts/ucf101/flow/DIGEST --workers 16

Both read the same JPEG bytes, with the same number of processes, in turn; items are stacks of L = 10, 224 x 224,
cropped and mirrored at random. The usual reader is a torch Dataset that reads 2L gray images with cv2.imread, crops and
mirrors in bytes, and normalises in numpy. Ours subtracts mean flow as well. It is counted twice: as batches of views,
whose arithmetic is left to the device, and as inputs, with that arithmetic done on the CPU, in the first process.
Without processes ours makes the next batch in a thread: pin both to one core (taskset -c 0) to compare.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from common import show, spread
from torch.utils.data import DataLoader, Dataset

from pipeline import jpeg, quantize, store
from pipeline.catalog import Clip
from pipeline.dataset import TrainingSet, loader, stack_items
from pipeline.inputs import to_inputs
from pipeline.specs import StackSpec, StreamSpec

LENGTH, SIDE, BOUND_PX = 10, 224, 20.0


def write_store(folder: Path, *, clips: int, fields: int, quality: int) -> None:
    """A flow store of smooth motions, 340 x 256, eight clips a shard."""
    rng, records = np.random.default_rng(0), []
    for first in range(0, clips, 8):
        name = f"shard-{first // 8}"
        with store.ShardWriter(folder / "shards" / f"{name}.h5", "flow", {"digest": "d"}) as shard:
            for number in range(first, min(first + 8, clips)):
                writer = shard.clip(f"clip{number:04}")
                for plane in _planes(rng, fields):
                    writer.append(jpeg.encode(plane, quality=quality))
                crc32 = writer.finish({"height": 256, "width": 340, "bound_px": BOUND_PX})
                record = store.Record(writer.id, "x", number % 2, "g", fields + 1, "ok", "", crc32)
                shard.record(record)
                records.append((record, name))
    store.write_index(folder / "index.h5", "flow", records, {}, {"digest": "d"})


def _planes(rng: np.random.Generator, fields: int):
    """x and y of each field in turn, (256, 340) uint8: a few moving blobs over a camera's drift, and some noise."""
    texture = cv2.GaussianBlur(
        rng.normal(0, 1, (2, 256 + fields, 340)).astype(np.float32).transpose(1, 2, 0), (0, 0), 12
    )
    texture *= 4 / texture.std()
    for t in range(fields):
        field = texture[t : t + 256].transpose(2, 0, 1) + rng.normal(0, 0.15, (2, 256, 340))
        yield from quantize.to_bytes(field.astype(np.float32), bound_px=BOUND_PX)


def write_files(folder: Path, flow: store.Store, ids: list[str]) -> int:
    """The same bytes as files, `<clip>/x_00000.jpg` and `y_00000.jpg`; returns how many."""
    count = 0
    for video_id in ids:
        (folder / video_id).mkdir(parents=True)
        for k, data in enumerate(flow[video_id].jpegs()):
            (folder / video_id / f"{'xy'[k % 2]}_{k // 2:05}.jpg").write_bytes(data.tobytes())
            count += 1
    return count


class UsualReader(Dataset):
    """Random stacks from a folder of JPEG files, as they are usually read."""

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


def stream(batch: int, items: int) -> StreamSpec:
    """A temporal stream of the paper's inputs."""
    steps = -(-items // batch)
    return StreamSpec(stream="temporal", crop_px=SIDE, batch=batch, steps=steps, stack=StackSpec(length=LENGTH))


def _begin_worker(worker: int) -> None:
    cv2.setNumThreads(1)


def rate_of(batches, use=lambda views: views) -> float:
    """Items a second, the first batch (which waits for processes to start) not counted."""
    items, begun = 0, None
    for views, _ in batches:
        use(views)
        if begun is None:
            begun = time.perf_counter()
        else:
            items += len(views)
    return items / (time.perf_counter() - begun)


def read_rates(flow: Path, files: Path, clips: list[Clip], arguments) -> dict[str, float]:
    """One round of each, in turn."""
    ours = TrainingSet(stream(arguments.batch, arguments.items), flow, clips)
    usual = UsualReader(files, len(ours))
    parallel = {"num_workers": arguments.workers}
    if arguments.workers:
        parallel |= {"multiprocessing_context": "forkserver", "worker_init_fn": _begin_worker}

    def batches():
        options = {"batch": arguments.batch, "workers": arguments.workers, "pin": False, "collate": stack_items}
        return loader(ours, range(len(ours)), **options)

    return {
        "usual": rate_of(DataLoader(usual, arguments.batch, **parallel)),
        "views": rate_of(batches()),
        "inputs": rate_of(batches(), lambda views: to_inputs(views, torch.device("cpu"))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a flow store whose short side is 256; else one is written")
    parser.add_argument("--clips", type=int, default=16, help="clips written, or taken from the store")
    parser.add_argument("--fields", type=int, default=60)
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality of the store that is written")
    parser.add_argument("--workers", type=int, default=0, help="loading processes; 0: this one")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--items", type=int, default=160, help="items in a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.store or Path(scratch) / "store"
        if not arguments.store:
            write_store(folder, clips=arguments.clips, fields=arguments.fields, quality=arguments.quality)
        flow = store.open_flow(folder)
        ids = [video_id for video_id in flow if len(flow[video_id]) >= LENGTH][: arguments.clips]
        clips = [Clip(video_id, video_id, n % 2, "x", "g", "train", 1, 1, "0" * 16) for n, video_id in enumerate(ids)]
        count = write_files(Path(scratch) / "files", flow, ids)
        rounds = [read_rates(folder, Path(scratch) / "files", clips, arguments) for _ in range(arguments.rounds)]
        names = {flow.rows[video_id]["shard"] for video_id in ids}
        shards = [flow.path, *(path for path in flow.shard_paths() if path.stem in names)]
        sizes = {"files": count, "hdf5_files": len(shards), "hdf5_bytes": sum(path.stat().st_size for path in shards)}
        sizes["jpeg_bytes"] = sum(flow[video_id].nbytes for video_id in ids)
    report(rounds, sizes, arguments)


def report(rounds: list[dict], sizes: dict, arguments) -> None:
    """Print and record what was measured."""
    rates = {name: [one[name] for one in rounds] for name in rounds[0]}
    ratios = {name: [one[name] / one["usual"] for one in rounds] for name in ("views", "inputs")}
    rows = [
        ("loading processes", str(arguments.workers or "none: this one")),
        ("usual reader, items/s", spread(rates["usual"], 0)),
        ("store, views, items/s", spread(rates["views"], 0)),
        ("store, inputs, items/s", spread(rates["inputs"], 0)),
        ("store / usual, views", spread(ratios["views"])),
        ("store / usual, inputs", spread(ratios["inputs"])),
        ("JPEG files / HDF5 files", f"{sizes['files']} / {sizes['hdf5_files']}"),
        ("MB of JPEG / of HDF5", f"{sizes['jpeg_bytes'] / 1e6:.1f} / {sizes['hdf5_bytes'] / 1e6:.1f}"),
        ("KB a plane", f"{sizes['jpeg_bytes'] / sizes['files'] / 1e3:.1f}"),
    ]
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    show("loader", rows, {"rounds": rounds, "ratios": medians, "sizes": sizes})


if __name__ == "__main__":
    main()
