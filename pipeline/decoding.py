"""Which share of the training items the GPU decodes: by how fast it and the loading processes are."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import torch
from torch.utils.data import Dataset

from pipeline.console import one_line
from pipeline.dataset import stack_items
from pipeline.encoded import EncodedBatch, decode
from pipeline.inputs import ViewBatch
from pipeline.progress import say
from pipeline.specs import StreamSpec
from pipeline.transforms import EncodedView, View

_TRIED = 32  # items by which the speeds are measured
_ROUNDS = 3
_SPEED_IN_TRAINING = 0.7  # of the speed that the GPU decodes with alone
_LEAST_SHARE = 0.1  # a smaller one gains less than what the extra copies may cost


class PartlyEncoded(Dataset):
    """The items of a training, of which a share is handed over as JPEG, spread evenly over each batch."""

    def __init__(self, items: Dataset, share: float, *, batch: int):
        """`items` is a `TrainingSet` or `TakingTurns`, whose batches hold `batch` items."""
        self.items, self.share, self.batch = items, share, batch

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[View | list[EncodedView], int]:
        """(view, label) of one item; which ones are encoded follows from their place in the batch alone."""
        place = number % self.batch
        encoded = int((place + 1) * self.share) > int(place * self.share)
        return self.items.encoded(number) if encoded else self.items[number]


def partly_encoded(
    spec: StreamSpec, items: Dataset, numbers: Sequence[int], device: torch.device, workers: int
) -> Dataset:
    """The same items; for CUDA some of them as JPEG, if nvJPEG works and the spec wants that or it saves time.

    A share s for the GPU and 1 - s for the loading processes take equally long if s is the GPU's part of both speeds.

    Args:
        spec: the stream, with `gpu_decoding`.
        items: a `TrainingSet` or `TakingTurns`.
        numbers: the items that will be read.
        device: where the network is trained.
        workers: number of loading processes.
    """
    measured = spec.gpu_decoding < 0
    if device.type != "cuda" or spec.stack is None or not spec.gpu_decoding or (measured and spec.deterministic):
        return items
    tried = list(itertools.islice(numbers, _TRIED))
    encoded, _ = stack_items([items.encoded(number) for number in tried])
    if isinstance(encoded, ViewBatch):
        return items
    try:
        decode(encoded.data.split(encoded.sizes), device)  # which `encoded.to` would leave to the CPU if it fails
        on_gpu = _rate(lambda: _finished(encoded, device), len(encoded))
    except (RuntimeError, ImportError) as error:
        say(f"{spec.stream}: torchvision cannot decode JPEG on this GPU, so the CPU does ({one_line(str(error))})")
        return items
    on_cpu = max(1, workers) * _rate(lambda: [items[number] for number in tried], len(tried))
    share = _balanced(on_gpu, on_cpu) if measured else spec.gpu_decoding
    told = f"alone it makes {on_gpu:,.0f} items/s, {max(1, workers)} loading processes {on_cpu:,.0f}"
    say(f"{spec.stream}: the GPU decodes {share:.0%} of the stacks ({told}; gpu_decoding changes it)")
    return PartlyEncoded(items, share, batch=spec.items_per_step) if share else items


def _finished(encoded: EncodedBatch, device: torch.device) -> None:
    encoded.to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _balanced(on_gpu: float, on_cpu: float) -> float:
    share = _SPEED_IN_TRAINING * on_gpu / (_SPEED_IN_TRAINING * on_gpu + on_cpu)
    return round(share, 2) if share >= _LEAST_SHARE else 0.0


def _rate(work: Callable[[], object], count: int) -> float:
    """Pieces of work per second, the best of a few rounds; the first, in which a decoder is set up, does not count."""
    work()
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return count / min(seconds)
