"""A training step by the layout of its tensors in memory, and with cuDNN trying its algorithms first.

    python benchmarks/training_layouts.py                # cnn_m_2048, temporal; batch 256 on a GPU, 8 on a CPU

Networks and inputs have their channels last, which suits the matrix units that compute in half precision. Whether it
also suits true float32, and whether cuDNN chooses well without trying (`cudnn.benchmark`), depends on the GPU: here all
four combinations take the same steps, on one batch that is already on the device.
"""

from __future__ import annotations

import argparse
import itertools
import time

import torch
from common import show, spread
from torch.nn.functional import cross_entropy

from pipeline.networks import resolve_device
from pipeline.specs import STREAMS, StackSpec, StreamSpec
from pipeline.training.recipe import algorithms
from pipeline.training.state import TrainingState

CLASSES, WARM_UP = 101, 3  # the first steps choose algorithms and take memory
LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}


def rates(run: TrainingState, inputs: torch.Tensor, labels: torch.Tensor, steps: int) -> list[float]:
    """Clips per second of each measured step."""
    found = []
    for _ in range(WARM_UP + steps):
        begun = time.perf_counter()
        run.optimizer.zero_grad()
        with torch.autocast(run.device.type, dtype=run.precision, enabled=run.precision is not None):
            loss = cross_entropy(run.network(inputs), labels)
        loss.backward()
        run.optimizer.step()
        loss.item()
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        found.append(len(labels) / (time.perf_counter() - begun))
    return found[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", choices=STREAMS, default="temporal")
    parser.add_argument("--network", default="cnn_m_2048")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    device = resolve_device(given.device)
    batch = given.batch or (256 if device.type == "cuda" else 8)
    stack = StackSpec() if given.stream == "temporal" else None
    rows, record = [], {}
    for precision, (name, layout) in itertools.product(given.precisions, LAYOUTS.items()):
        spec = StreamSpec(stream=given.stream, stack=stack, network=given.network, batch=batch, precision=precision)
        run = TrainingState(spec, CLASSES, device)
        run.network.to(memory_format=layout)
        inputs = torch.rand(batch, spec.channels, spec.crop_px, spec.crop_px, device=device).to(memory_format=layout)
        labels = torch.arange(batch, device=device) % CLASSES
        for tries in (False, True) if device.type == "cuda" else (False,):
            with algorithms(spec):  # which restores what is set here
                torch.backends.cudnn.benchmark = tries
                found = rates(run, inputs, labels, given.steps)
            rows.append((f"{precision}, {name}{', cuDNN tries first' if tries else ''}, clips/s", spread(found, 1)))
            record[rows[-1][0]] = found
            print(*rows[-1], sep=": ", flush=True)
    show(f"layouts of a step of {given.network}", rows, record)


if __name__ == "__main__":
    main()
