"""Several processes that train one network: each takes its share of every batch, and gradients are averaged.

The result does not depend on the number of processes. A step's batch is cut into `accumulate` parts, and each part into
one piece per process. Item i of step s is the same picture whichever process reads it; batch normalisation sees the
same items (SyncBatchNorm, on CUDA only); dropout draws the mask of the whole batch and keeps the rows of its piece.
Only the rounding of sums differs. On a CPU, however, each process normalises by the statistics of its own piece (torch
has no SyncBatchNorm there), and the running statistics are those of process 0.
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
from torchvision.ops import StochasticDepth

from pipeline.networks import check_deterministic, resolve_device
from pipeline.specs import StreamSpec

_TIMEOUT = timedelta(minutes=30)  # longest wait for another process, which may be reading slow disks


@dataclass(frozen=True)
class World:
    """The processes of a training, as seen by one of them; by default it is the only one."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # processes on this machine

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of the tensor over all processes; each process gets it."""
        if self.size > 1:
            distributed.all_reduce(value)
            value = value / self.size
        return value

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def share_buffers(self, network: nn.Module) -> None:
        """Copy the buffers of process 0 (running statistics) to all processes."""
        if self.size > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, 0)


def process_count(spec: StreamSpec, device: str) -> int:
    """How many processes train on this machine.

    Raises:
        ValueError: more processes than GPUs, one GPU named for several processes, a batch that they do not divide, or
            `deterministic` for a network that CUDA cannot train deterministically.
    """
    target = resolve_device(device)
    if target.type != "cuda":
        return max(1, spec.processes)
    found = torch.cuda.device_count()
    count = spec.processes or (1 if target.index is not None else found)
    if count * spec.machines > 1 and target.index is not None:
        raise ValueError(
            f"device is {device!r}, one GPU, but [{spec.stream}] processes is {count} and machines is {spec.machines}; "
            "use auto or cuda"
        )
    if count > found:
        raise ValueError(f"[{spec.stream}] processes is {count}, but torch sees {found} CUDA devices here")
    if spec.batch % (spec.accumulate * count * spec.machines):
        raise ValueError(
            f"[{spec.stream}] batch is {spec.batch}; accumulate ({spec.accumulate}) x processes ({count}) "
            f"x machines ({spec.machines}) must divide it"
        )
    check_deterministic(spec)
    return count


@contextlib.contextmanager
def process_group(device: str, meeting: Path) -> Iterator[tuple[World, torch.device]]:
    """Join the process group that torchrun or `launch` describes in the environment; leave it at the end.

    After an exception the group is not left: with NCCL that may wait for ever for processes that wait for this one.

    Args:
        device: "auto", "cpu" or "cuda"; on CUDA the process takes the GPU with its local rank.
        meeting: file through which processes of one machine meet if MASTER_ADDR is not set; no port is opened.
    """
    rank, size, local, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    target = resolve_device(device)
    if target.type == "cuda":
        target = torch.device("cuda", local)
        torch.cuda.set_device(target)
    backend = "cpu:gloo,cuda:nccl" if target.type == "cuda" else "gloo"
    where = "env://" if "MASTER_ADDR" in os.environ else meeting.absolute().as_uri()
    distributed.init_process_group(backend, init_method=where, rank=rank, world_size=size, timeout=_TIMEOUT)
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
        """Number of the item at this place; as in every sequence, a negative one counts from the end."""
        step, place = divmod(range(len(self))[place], self.per_step)
        part, i = divmod(place, self.piece)
        pieces = part * self.world.size + self.world.rank
        return (self.first_step + step) * self.spec.items_per_step + pieces * self.piece + i


def data_parallel(network: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The module that training calls: the network, or a wrapper that averages gradients over all processes."""
    if world.size == 1:
        return network
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    devices = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=devices)


# --- random layers whose draws do not depend on how a batch is cut ----------------------------------------------------


@dataclass
class Piece:
    """The piece of a batch that a network gets: number `place` (from 0) of `count` equal pieces."""

    count: int
    place: int = 0


def draw_for_whole_batch(network: nn.Module, piece: Piece) -> None:
    """Let dropout and stochastic depth draw for the whole batch and keep the rows of the piece.

    If batches are not cut (`piece.count` is 1), the network stays as it is. Each piece must begin from the same random
    state.
    """
    if piece.count == 1:
        return
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Dropout:
                setattr(parent, name, _DropoutOfPiece(layer.p, piece))
            elif type(layer) is StochasticDepth and layer.mode == "row":
                setattr(parent, name, _DepthOfPiece(layer.p, piece))


class _DropoutOfPiece(nn.Dropout):
    def __init__(self, p: float, piece: Piece):
        super().__init__(p)
        self.piece = piece

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return inputs
        ones = inputs.new_ones(len(inputs) * self.piece.count, *inputs.shape[1:])
        if inputs.ndim == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
            ones = ones.contiguous(memory_format=torch.channels_last)  # random numbers are drawn in memory order
        return inputs * _own_rows(super().forward(ones), self.piece)


class _DepthOfPiece(StochasticDepth):
    def __init__(self, p: float, piece: Piece):
        super().__init__(p, "row")
        self.piece = piece

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return inputs
        ones = inputs.new_ones(len(inputs) * self.piece.count, *[1] * (inputs.ndim - 1))
        return inputs * _own_rows(super().forward(ones), self.piece)


def _own_rows(whole: torch.Tensor, piece: Piece) -> torch.Tensor:
    return whole.chunk(piece.count)[piece.place]
