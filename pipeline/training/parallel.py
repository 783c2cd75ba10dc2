"""Several processes that train one network: each takes its share of every batch, and gradients are averaged.

The result does not depend on the number of processes, except for the rounding of sums. A step's batch is cut into
`accumulate` parts, and each part into one piece per process. Item i of step s is the same picture whichever process
reads it, and layers that depend on how a batch is cut act as on the whole batch (`whole_batch`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from pipeline.networks import check_deterministic, resolve_device
from pipeline.specs import StreamSpec
from pipeline.system.errors import UserError
from pipeline.system.gpus import cuda_count
from pipeline.training.whole_batch import normalize_over_processes

_TIMEOUT = timedelta(minutes=30)  # longest wait for another process, which may be reading slow disks


@dataclass(frozen=True)
class World:
    """The processes of a training, as seen by one of them; by default the only one."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # processes on this machine

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, ordered by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found


def process_count(spec: StreamSpec, device: str) -> int:
    """Number of processes that train on this machine.

    Raises:
        UserError: more processes than GPUs, one GPU named for several processes, a batch not divisible among them, or
            `deterministic` for a network that CUDA cannot train deterministically.
    """
    target = resolve_device(device)
    if target.type != "cuda":
        return max(1, spec.processes)
    found = cuda_count()
    count = spec.processes or (1 if target.index is not None else found)
    if count * spec.machines > 1 and target.index is not None:
        raise UserError(
            f"device is {device!r}, one GPU, but [{spec.stream}] processes is {count} and machines is {spec.machines}; "
            "use auto or cuda"
        )
    if count > found:
        raise UserError(f"[{spec.stream}] processes is {count}, but torch sees {found} CUDA devices here")
    spec.check_divides(count)
    check_deterministic(spec)
    return count


@contextlib.contextmanager
def process_group(device: str, meeting: Path) -> Iterator[tuple[World, torch.device]]:
    """Join the process group that torchrun or `launch` describes in the environment; leave it at the end.

    After an exception the group is not left: with NCCL, leaving may wait forever for processes that wait for this one.

    Args:
        device: "auto", "cpu" or "cuda"; on CUDA the process uses the GPU numbered by its local rank.
        meeting: file through which the processes of one machine meet if MASTER_ADDR is not set; no port is opened.
    """
    rank, size, local, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    target = resolve_device(device)
    if target.type == "cuda":
        target = torch.device("cuda", local)
        torch.cuda.set_device(target)
    backend = "cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo"
    store = None
    if "MASTER_ADDR" not in os.environ:  # not a file URI: torch misreads a space or `#` in it
        store = distributed.FileStore(str(meeting), size)
        store.set_timeout(_TIMEOUT)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    yield World(rank, size, local_size), target
    distributed.destroy_process_group()


class ItemSampler(Sequence):
    """Numbers of the items that one process reads, in reading order; item i of step s is s * items_per_step + i.

    Example: a batch of 8, 2 parts, 2 processes: in each step process 0 takes items 0 1 4 5, process 1 takes 2 3 6 7.
    """

    def __init__(self, spec: StreamSpec, world: World, first_step: int):
        self.spec, self.world, self.first_step = spec, world, first_step
        self.per_step = spec.items_per_step // world.size
        self.piece = self.per_step // spec.accumulate

    def __len__(self) -> int:
        return (self.spec.steps - self.first_step) * self.per_step

    def __getitem__(self, place: int) -> int:
        """Number of the item at this place; a negative place counts from the end, as in any sequence."""
        step, place = divmod(range(len(self))[place], self.per_step)
        part, i = divmod(place, self.piece)
        pieces = part * self.world.size + self.world.rank
        return (self.first_step + step) * self.spec.items_per_step + pieces * self.piece + i


def data_parallel(network: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The module that training calls: the network, or a wrapper that averages gradients over all processes."""
    if world.size > 1 or device.type == "cpu":
        normalize_over_processes(network, device)
    if world.size == 1:
        return network
    devices = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=devices)
