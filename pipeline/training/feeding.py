"""The batches of a training: made by loading processes, and on a GPU partly decoded by it.

Which share the GPU decodes follows from how fast it and the loading processes are.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Dataset

from pipeline.dataset import stack_items
from pipeline.dataset.encoded import EncodedBatch, decode
from pipeline.dataset.inputs import ViewBatch
from pipeline.dataset.loading import fitting_workers, loader, loader_workers, sent_ahead
from pipeline.system.console import one_line
from pipeline.system.limits import speed_of
from pipeline.system.progress import say
from pipeline.training.parallel import ItemSampler
from pipeline.transforms import EncodedView, View
from pipeline.video import jpeg

_TRIED = 32  # items by which the speeds are measured
_ROUNDS = 3
_MOST_ROUNDED = 3  # levels of 255; two decoders may round the transform, and then the pixel, otherwise
_LEAST_SHARE = 0.1  # a smaller one gains less than what the extra copies may cost


def training_batches(training: Dataset, numbers: ItemSampler, device: torch.device) -> Iterator:
    """(views, labels) of the training items with these numbers, batch by batch, made ahead and on the device.

    On the CPU they come in host memory, as bytes where possible.
    """
    spec, world = numbers.spec, numbers.world
    batch, pin = spec.items_per_step // world.size, device.type == "cuda"
    wanted = loader_workers(spec.loader_workers, device, world.local_size)
    workers = fitting_workers(training, numbers, batch=batch, workers=wanted, sharing=world.local_size)
    items = partly_encoded(training, numbers, device, workers)
    return sent_ahead(loader(items, numbers, batch=batch, workers=workers, pin=pin, collate=stack_items), device)


class PartlyEncoded(Dataset):
    """The items of a training, of which a share is handed over as JPEG, spread evenly over each batch."""

    def __init__(self, items: Dataset, share: float, *, batch: int, sets: int = 1):
        """`items` is a `TrainingSet`, or `TakingTurns` of two `sets`, whose batches hold `batch` items."""
        self.items, self.share, self.batch, self.sets = items, share, batch, sets

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[View | list[EncodedView], int]:
        """(view, label) of one item; which ones are encoded follows from their place in the batch alone."""
        of_each = self.batch // self.sets
        place, encoded = number % self.batch // self.sets, round(self.share * of_each)
        now = (place + 1) * encoded // of_each > place * encoded // of_each
        return self.items.encoded(number) if now else self.items[number]


def partly_encoded(items: Dataset, numbers: ItemSampler, device: torch.device, workers: int) -> Dataset:
    """The same items; for CUDA some of them as JPEG, if nvJPEG works and the spec wants that or it saves time.

    Args:
        items: a `TrainingSet` or `TakingTurns`.
        numbers: the items that will be read.
        device: where the network is trained.
        workers: number of loading processes.
    """
    spec, wanted = numbers.spec, numbers.spec.gpu_decoding
    if device.type != "cuda" or spec.stack is None or wanted == 0 or spec.deterministic or not len(numbers):
        return items
    tried = list(itertools.islice(numbers, _TRIED))
    encoded, _ = stack_items([items.encoded(number) for number in tried])
    if isinstance(encoded, ViewBatch):
        if wanted > 0:
            _say(numbers, "planes that are resized before the crop are decoded by the CPU")
        return items
    try:
        _compare(encoded.data.split(encoded.sizes), device)
        alone = _seconds(lambda: _finished(encoded, device)) / len(tried)
    except Exception as error:  # whatever a decoder, a driver or another version of torchvision may raise
        _say(numbers, f"JPEG is not decoded on this GPU, but on the CPU ({one_line(str(error))})")
        return items
    makers = speed_of(max(1, workers))
    loading, leaving = (
        _seconds(lambda make=make: [make(number) for number in tried]) / len(tried) / makers
        for make in (items.__getitem__, items.encoded)
    )
    share = wanted if wanted > 0 else balanced_share(alone, loading, leaving)
    rates = f"alone it makes {1 / alone:,.0f} items/s, {max(1, workers)} loading processes {1 / loading:,.0f}"
    _say(numbers, f"the GPU decodes {share:.0%} of the stacks ({rates}; gpu_decoding sets another share)")
    sets = spec.items_per_step // spec.batch
    return PartlyEncoded(items, share, batch=spec.items_per_step, sets=sets) if share else items


def balanced_share(gpu: float, loading: float, leaving: float) -> float:
    """The share s of the items with which the GPU, and the loading processes beside it, need equally long.

    That is s * gpu = (1 - s) * loading + s * leaving.

    Args:
        gpu: seconds in which the GPU decodes and finishes an item.
        loading: seconds in which all loading processes together make an item.
        leaving: seconds in which they make one that is left encoded.

    Returns:
        0 to 1, in whole per cent; 0 if it would be too small to pay.
    """
    share = min(1.0, loading / (gpu + loading - leaving)) if loading > leaving else 0.0
    return round(share, 2) if share >= _LEAST_SHARE else 0.0


def _say(numbers: ItemSampler, text: str) -> None:
    """Say it once for all processes: each finds its own share, but they are alike."""
    if numbers.world.rank == 0:
        say(f"[{numbers.spec.stream}] {text}")


def _compare(planes: Sequence[torch.Tensor], device: torch.device) -> None:
    """Decode planes on the device and on the CPU: the device must do it, and may only round otherwise.

    Raises:
        RuntimeError: of torchvision, or decoded planes that differ by more than rounding.
    """
    for plane, image in zip(planes, decode(planes, device), strict=True):
        here = torch.from_numpy(jpeg.decode(plane.numpy(), gray=True))
        found = int((image[0].cpu().int() - here.int()).abs().max())
        if found > _MOST_ROUNDED:
            raise RuntimeError(f"its planes differ from those of the CPU by up to {found} levels of 255")


def _finished(encoded: EncodedBatch, device: torch.device) -> None:
    encoded.to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few rounds; the first, in which a decoder is set up, does not count."""
    work()
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
