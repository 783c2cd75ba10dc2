"""Training from the store: does the network wait for data, and do two processes train as one does?

    python benchmarks/training.py                         # cnn_m_2048, temporal; batch 256 on a GPU, 8 on a CPU
    python benchmarks/training.py --stream spatial --network resnet50 --batch 64

It writes its own store (340 x 256, smooth noise). Rounds alternate between steps on batches from the store and steps on
one batch that is already on the device; the ratio of their rates shows the cost of reading. Waiting is the time in
which no step ran because no batch was ready. On a CPU it also compares the losses of a training by two processes with
those of one. Needs neither luigi nor dask.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from common import show, spread
from synthetic import Drawn, class_of, write_store

from pipeline import quantize
from pipeline.catalog import Catalog, Clip
from pipeline.dataset import TrainingSet, stack_items
from pipeline.dataset.inputs import to_inputs
from pipeline.dataset.loading import fitting_workers, loader_workers
from pipeline.networks import resolve_device
from pipeline.specs import STREAMS, StackSpec, StreamSpec
from pipeline.training import train, train_step
from pipeline.training.feeding import training_batches
from pipeline.training.parallel import ItemSampler, World
from pipeline.training.recipe import algorithms
from pipeline.training.state import TrainingState
from pipeline.video import jpeg

WIDTH_PX, HEIGHT_PX, FRAMES, CLASSES = 340, 256, 40, 8
SKIPPED = 3  # first steps of a round: loading processes are starting, and the GPU's algorithms are being chosen
WAITED = 0.25  # share of a step: whoever waits so long for a batch has used up those that were ready
DRAINED = 10  # times as many steps as batches may be ready: if none waits, loading is at least 0.9 as fast as the steps
BOUND_PX = 20.0
COMPARED = 20  # steps of the trainings with one and with two processes
# without and with batch normalization; the larger the steps, the sooner rounding makes trainings diverge
COMPARED_RATES = (("cnn_m_2048", 1e-3), ("cnn_m_2048", 1e-2), ("small", 1e-3), ("small", 1e-2), ("small", 1e-1))


def write_data(folder: Path, kind: str, clips: int) -> Catalog:
    """Write a frames or flow store of smooth noise; one clip per class is for validation, all others for training."""
    rng, parts = np.random.default_rng(0), ["val"] * CLASSES + ["train"] * (clips - CLASSES)
    drawn = [Drawn(f"c{n}", n % CLASSES, f"g{n}", (), (HEIGHT_PX, WIDTH_PX), part) for n, part in enumerate(parts)]
    with_images = (clip._replace(images=images(rng, kind, clip.label)) for clip in drawn)
    write_store(folder, kind, with_images, shard_clips=1, bound_px=BOUND_PX)
    rows = (
        Clip(of.id, f"{of.id}.avi", of.label, class_of(of.label), of.group, of.part, 1, 1, "0" * 16) for of in drawn
    )
    return Catalog(tuple(rows), tuple(map(class_of, range(CLASSES))), "1", ())


def images(rng: np.random.Generator, kind: str, label: int) -> Iterator[bytes]:
    """The images of one clip as JPEG: frames, or the x and y planes of its flow in turn."""
    for _ in range(FRAMES if kind == "frames" else 2 * (FRAMES - 1)):
        coarse = rng.normal(size=(HEIGHT_PX // 8, WIDTH_PX // 8, 3)).astype(np.float32)
        smooth = cv2.resize(coarse, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC)
        if kind == "frames":
            image = (smooth * 40 + 100 + 5 * label).clip(0, 255).astype(np.uint8)
        else:
            image = quantize.to_bytes(smooth[..., 0] * 2 + label - CLASSES / 2, bound_px=BOUND_PX)
        yield jpeg.encode(image, quality=95)


def settings(stream: str, **values) -> StreamSpec:
    return StreamSpec(stream=stream, stack=StackSpec() if stream == "temporal" else None, **values)


def processes(spec: StreamSpec, data: TrainingSet, device: torch.device) -> int:
    """Number of loading processes that a training uses: those wanted for which there is enough shared memory."""
    wanted = loader_workers(spec.loader_workers, device)
    return fitting_workers(data, ItemSampler(spec, World(), 0), batch=spec.batch, workers=wanted)


def from_store(run: TrainingState, data: TrainingSet, steps: int) -> dict[str, float]:
    """Mean seconds that a step waits and computes, once the batches are used up that were made during the first ones.

    Before that, steps wait for nothing, however slow the loading processes are.
    """
    ready_at_first = max(SKIPPED, 2 * processes(run.spec, data, run.device))
    batches, waits, works = training_batches(data, ItemSampler(run.spec, World(), run.step), run.device), [], []
    skipped = None
    while skipped is None or len(waits) < skipped + steps:
        begun = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        train_step(run, *batch)
        waits.append(ready - begun)
        works.append(time.perf_counter() - ready)
        run.step += 1
        waited, done = waits[-1] > WAITED * works[-1], len(waits)
        if skipped is None and (done >= DRAINED * ready_at_first or (waited and done >= ready_at_first)):
            skipped = done
    return {"waiting": float(np.sum(waits[skipped:])) / steps, "stepping": float(np.sum(works[skipped:])) / steps}


def on_device(run: TrainingState, data: TrainingSet, steps: int) -> float:
    """Seconds of a step whose batch is already on the device."""
    batch = stack_items([data[number] for number in range(run.spec.batch)])
    batch, seconds = (to_inputs(batch[0], run.device), batch[1].to(run.device)), []
    for _ in range(SKIPPED + steps):
        begun = time.perf_counter()
        train_step(run, *batch)
        seconds.append(time.perf_counter() - begun)
    return float(np.mean(seconds[SKIPPED:]))


def one_against_two(folder: Path, index: Path, catalog: Catalog, network: str, rate: float) -> tuple[float, float]:
    """Largest difference over all steps between the losses of one process and of two (CPU, float32, dropout 0.5).

    Each process has as many threads as one of the two. The second figure is what rounding alone does: the same for one
    process with so many threads and with all of them.
    """
    recipe = {"network": network, "resize_px": 64, "crop_px": 56, "batch": 8, "steps": COMPARED, "dropout": 0.5}
    losses, threads = [], torch.get_num_threads()
    for processes, used in ((1, max(1, threads // 2)), (2, threads), (1, threads)):
        torch.set_num_threads(used)
        spec = settings("spatial", **recipe, learning_rate=rate, milestones=(), processes=processes)
        out = folder / f"{network} {rate} {processes} {used}"
        train(spec, store_path=index, catalog=catalog, folder=out, inputs_key="benchmark", device="cpu")
        losses.append(json.loads((out / "curve.json").read_text())["loss"])
    torch.set_num_threads(threads)
    return tuple(float(np.abs(np.subtract(losses[0], other)).max()) for other in losses[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=STREAMS, default="temporal")
    parser.add_argument("--network", default="cnn_m_2048")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="measured in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--loader-workers", type=int, default=-1)
    parser.add_argument("--gpu-decoding", type=float, default=-1, help="share of the stacks that a GPU decodes")
    given = parser.parse_args()
    if given.clips <= CLASSES:
        parser.error(
            f"--clips is {given.clips}; it must be above {CLASSES}, as one clip of each class is for validation"
        )
    device = resolve_device(given.device)
    small = device.type == "cpu"
    cv2.setNumThreads(1)
    batch, steps = given.batch or (8 if small else 256), given.steps or (4 if small else 40)
    recipe = {"network": given.network, "batch": batch, "loader_workers": given.loader_workers}
    recipe |= {"precision": given.precision, "gpu_decoding": given.gpu_decoding}
    spec = settings(given.stream, **recipe, learning_rate=1e-4, steps=100_000)
    with tempfile.TemporaryDirectory() as scratch:
        kind = "frames" if given.stream == "spatial" else "flow"
        catalog = write_data(Path(scratch) / kind, kind, given.clips)
        run, data = TrainingState(spec, CLASSES, device), TrainingSet(spec, Path(scratch) / kind, catalog.part("train"))
        with algorithms(spec):
            rounds = []
            for number in range(given.rounds):
                stored = from_store(run, data, steps)
                parts = ", ".join(f"{name} {seconds:.4f} s" for name, seconds in stored.items())
                print(f"round {number + 1}: a step from the store {parts}", flush=True)
                rounds.append((stored, on_device(run, data, steps)))
                print(f"round {number + 1}: a step on the device {rounds[-1][1]:.4f} s", flush=True)
        differences = []
        if small:
            frames = write_data(Path(scratch) / "small", "frames", 2 * CLASSES)
            for compared in COMPARED_RATES:
                found = one_against_two(Path(scratch), Path(scratch) / "small" / "index.h5", frames, *compared)
                differences.append((*compared, *found))
        report(run, processes(spec, data, device), rounds, differences)


def report(run: TrainingState, workers: int, rounds: list, differences: list) -> None:
    """Print and record what was measured, with so many loading processes."""
    spec = run.spec
    totals = [stored["waiting"] + stored["stepping"] for stored, _ in rounds]
    shares = [stored["waiting"] / total for (stored, _), total in zip(rounds, totals, strict=True)]
    ratios = [ready / total for (_, ready), total in zip(rounds, totals, strict=True)]
    rows = [
        ("what", f"{spec.stream} {spec.network}, batch {spec.batch}, {spec.crop_px} px, on {run.device}"),
        ("precision", spec.precision),
        ("loading processes", str(workers)),
        ("share that a GPU decodes", f"{spec.gpu_decoding:g}" if spec.gpu_decoding >= 0 else "as each round says"),
        ("a step from the store waits for data, share of its time", spread(shares, 3)),
        ("from the store, clips/s", spread([spec.batch / total for total in totals], 1)),
        ("batch on the device already, clips/s", spread([spec.batch / ready for _, ready in rounds], 1)),
        ("from the store : on the device, clips/s", spread(ratios, 3)),
    ]
    for network, rate, found, by_threads in differences:
        what = f"{network}, learning rate {rate:g}: largest difference of {COMPARED} losses, 1 process against 2"
        rows.append((what, f"{found:.1e} (1 process, half the threads against all: {by_threads:.1e})"))
    record = {
        "spec": spec.as_dict(),
        "workers": workers,
        "rounds": rounds,
        "waiting": shares,
        "ratio": ratios,
        "differences": differences,
    }
    decoding = "" if spec.gpu_decoding < 0 else f" {spec.gpu_decoding:g} decoded there"
    show(f"training {spec.stream} {spec.network} {spec.precision}{decoding}", rows, record)


if __name__ == "__main__":
    main()
