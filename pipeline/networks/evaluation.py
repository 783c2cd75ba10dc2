"""Evaluate a network on the test views of clips: mean softmax and mean features over the views of each clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from pipeline.dataset import EvalBatch, EvalSet, stack_test_items
from pipeline.dataset.inputs import ViewBatch, to_inputs
from pipeline.dataset.loading import fitting_workers, loader, loader_workers
from pipeline.networks import Network
from pipeline.system.errors import is_out_of_memory
from pipeline.system.progress import Progress
from pipeline.system.tensors import true_float32

_BATCH = {"cpu": 64, "cuda": 256}  # views in a forward pass


class Evaluation(NamedTuple):
    """A network's outputs for N clips; rows of clips that failed in the store are NaN."""

    probabilities: np.ndarray
    """(N, K) float32, mean softmax."""
    features: np.ndarray
    """(N, D) float32, penultimate."""
    failed: dict[str, str]
    """Clip id -> why it failed in the store."""


def evaluate(
    network: Network,
    test_set: EvalSet,
    *,
    device: torch.device,
    batch: int = 0,
    workers: int = -1,
    sharing: int = 1,
    progress: Progress | None = None,
    keep: Callable[[int, int, np.ndarray, np.ndarray], None] | None = None,
) -> Evaluation:
    """Score every clip of a test set; leaves the network in evaluation mode.

    Args:
        network: on `device`.
        test_set: the clips and their views.
        device: where the network runs.
        batch: views in one forward pass, rounded down to whole pictures (all crops of a frame or a stack), at least one
            picture; 0 chooses by device. If they do not fit into the device's memory, they take several passes.
        workers: loading processes; -1 chooses by device.
        sharing: number of processes on this machine that score at the same time and share its cores and memory.
        progress: advanced by the number of pictures done.
        keep: called for each picture with the index of its clip, the index of its first view within the clip,
            probabilities (crops, K) and features (crops, D) float32; not called for clips that failed.

    Returns:
        Means over the views of each clip, summed in float64.

    Raises:
        DamagedFile, OSError: a clip that has not failed in the store cannot be read; it must not count as wrong for
            that, in scores that no later run would redo.
        KeyError: the store does not know a clip.
        torch.OutOfMemoryError: the device has no room for a single view.
    """
    network.eval()
    batch = max(1, (batch or _BATCH.get(device.type, 64)) // test_set.views.crops)
    numbers, wanted = range(len(test_set)), loader_workers(workers, device, sharing)
    workers = fitting_workers(test_set, numbers, batch=batch, workers=wanted, sharing=sharing)
    pin = device.type == "cuda"
    batches = loader(test_set, numbers, batch=batch, workers=workers, pin=pin, collate=stack_test_items)
    classes, crops = network.num_classes, test_set.views.crops
    means = np.full((len(test_set.clips), classes + network.head.in_features), np.nan, np.float32)
    total, reasons, forward = np.zeros(means.shape[1]), {}, _Forward(network, device)
    for found in batches:
        reasons |= {number // test_set.frames: reason for number, reason in found.failed.items()}
        for number, both in zip(found.numbers, forward.of_pictures(found, crops), strict=True):
            place, j = divmod(number, test_set.frames)
            total = both.sum(0, dtype=np.float64) + (total if j else 0)
            if j == test_set.frames - 1:  # the pictures of a clip come one after another
                means[place] = total / (test_set.frames * crops)
            if keep:
                keep(place, j * crops, both[:, :classes], both[:, classes:])
        if progress:
            progress.advance(len(found.numbers) + len(found.failed))
    failed = {test_set.clips[place].id: reason for place, reason in reasons.items()}
    return Evaluation(means[:, :classes], means[:, classes:], failed)


class _Forward:
    """The network's softmax and features of batches of views, each in as many passes as the device's memory needs."""

    def __init__(self, network: Network, device: torch.device):
        self.network, self.device, self.passes = network, device, 1

    @true_float32()
    @torch.inference_mode()
    def of_pictures(self, batch: EvalBatch, crops: int) -> np.ndarray:
        """(pictures, crops, K + D) float32: softmax and features of each view."""
        if batch.views is None:
            return np.empty((0, crops, 0), np.float32)
        while True:  # a validation runs beside what the training keeps on the device
            try:
                parts = [self._pass(part) for part in batch.views.chunk(self.passes)]
                return torch.cat(parts).reshape(len(batch.numbers), crops, -1).numpy()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.passes >= len(batch.views):
                    raise
            torch.cuda.empty_cache()  # outside the handler, whose traceback would keep the tensors alive
            self.passes *= 2

    def _pass(self, views: ViewBatch) -> torch.Tensor:
        features = self.network.features(to_inputs(views, self.device))
        return torch.cat([self.network.probabilities(features), features], 1).cpu()
