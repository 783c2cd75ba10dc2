"""A network over the test views of clips: the mean of the softmax, and of the features, over each clip's views."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pipeline.dataset import TestItem, TestSet, loader, loader_workers
from pipeline.networks import Network
from pipeline.progress import Progress

_BATCH = {"cpu": 64, "cuda": 256}  # views in a forward pass


class Evaluation(NamedTuple):
    """What a network says of N clips; rows of clips that could not be read are NaN."""

    probabilities: np.ndarray
    """(N, K) float32."""
    features: np.ndarray
    """(N, D) float32, penultimate."""
    failed: dict[str, str]
    """Clip id -> why it could not be read."""


def evaluate(
    network: Network,
    test_set: TestSet,
    *,
    device: torch.device,
    batch: int = 0,
    workers: int = -1,
    progress: Progress | None = None,
) -> Evaluation:
    """Score every clip of a test set; leaves the network in evaluation mode.

    Args:
        network: on `device`.
        test_set: the clips and their views.
        device: where it runs.
        batch: views in one forward pass, rounded down to whole pictures, at least one; 0 chooses by device.
        workers: loading processes; -1 chooses by device.
        progress: counts pictures.

    Returns:
        Means over the views of each clip, summed in float64.
    """
    network.eval()
    batch = max(1, (batch or _BATCH.get(device.type, 64)) // test_set.views.crops)
    batches = loader(
        test_set,
        range(len(test_set)),
        batch=batch,
        workers=loader_workers(workers, device),
        pin=device.type == "cuda",
        collate=list,
    )
    classes, width = network.head.out_features, network.head.in_features
    sums, reasons = np.zeros((len(test_set.clips), classes + width)), {}
    for items in batches:
        reasons |= {item.clip: item.reason for item in items if item.views is None}
        read = [item for item in items if item.views is not None]
        if read:
            np.add.at(sums, [item.clip for item in read], _sum_over_crops(network, read, device))
        if progress:
            progress.advance(len(items))
    sums[list(reasons)] = np.nan
    means = (sums / (test_set.frames * test_set.views.crops)).astype(np.float32)
    failed = {test_set.clips[place].id: reason for place, reason in reasons.items()}
    return Evaluation(means[:, :classes], means[:, classes:], failed)


@torch.inference_mode()
def _sum_over_crops(network: Network, items: list[TestItem], device: torch.device) -> np.ndarray:
    """(items, K + D) float64: softmax and features of each picture, summed over its crops."""
    views = torch.cat([item.views for item in items]).to(device, memory_format=torch.channels_last)
    features = network.features(views)
    both = torch.cat([network.head(features).softmax(1), features], 1).double()
    return both.reshape(len(items), -1, both.shape[1]).sum(1).cpu().numpy()
