"""Batches of a dataset's items, made and sent to the device ahead of their use."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import multiprocessing.queues
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.dataset.encoded import EncodedBatch
from pipeline.dataset.inputs import ViewBatch
from pipeline.dataset.pictures import wait_no_longer_than
from pipeline.system.console import one_line
from pipeline.system.errors import DamagedFile, MachineFault
from pipeline.system.limits import usable_cores
from pipeline.system.processes import children_ignore_sigint, end_with_parent
from pipeline.system.progress import say_once

_SHARED_MEMORY = "/dev/shm"  # where torch's loading processes put their batches, on Linux
_MAX_WORKERS = 16
PRELOADED = ["pipeline.dataset", "pipeline.dataset.loading"]
_DEAD = "DataLoader worker (pid"  # how torch's message begins
_BATCHES_AHEAD = 2  # per loading process; a batch of 256 temporal inputs is 250 MB even in bytes


def loader(
    dataset: Dataset,
    numbers: Sequence[int],
    *,
    batch: int,
    workers: int,
    pin: bool,
    collate: Callable,
) -> Iterable:
    """Batches of the items with these numbers, in this order, made ahead of their use.

    Args:
        dataset: picklable; its store is opened again in each process.
        numbers: numbers of the items.
        batch: items in a batch.
        workers: number of loading processes, as `fitting_workers` gives it; 0 loads in a thread of this process.
        pin: whether batches go to page-locked memory, for a GPU.
        collate: makes a batch from a list of items; with `pin`, a GPU and loading processes it is also given `room`, as
            `inputs.stack_views` is.
    """
    parallel: dict[str, Any] = {}
    if workers:  # not forked: neither HDF5 nor CUDA survives a fork
        # the fork server has imported torch; else each process would import it again, for seconds
        multiprocessing.set_forkserver_preload(PRELOADED)
        with children_ignore_sigint():
            forkserver.ensure_running()
        parallel = {
            "multiprocessing_context": "forkserver",
            "prefetch_factor": _BATCHES_AHEAD,
            "worker_init_fn": _begin_worker,
        }
    if workers and pin and torch.accelerator.is_available():  # only then does torch pin
        collate = _InReusedMemory(collate)
    batches = _Loader(
        _Items(dataset),
        batch_size=batch,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pin,
        collate_fn=functools.partial(_collated, collate),
        generator=torch.Generator(),  # torch's loader draws a number for its processes; not from the caller's state
        **parallel,
    )
    return batches if workers else _ahead(batches)


def fitting_workers(dataset: Dataset, numbers: Sequence[int], *, batch: int, workers: int, sharing: int = 1) -> int:
    """As many of the wanted loading processes as have work, and batches that shared memory has room for.

    If that is fewer for lack of memory, a line says so. The size of a batch is estimated by the largest of three items.

    Args:
        dataset, numbers, batch: as for `loader`.
        workers: the wanted number.
        sharing: number of processes of this machine that load at the same time.
    """
    if not workers or not len(numbers):
        return 0
    some = {numbers[0], numbers[len(numbers) // 2], numbers[-1]}  # a single one may be empty: its clip failed
    workers = min(workers, -(-len(numbers) // batch))
    return _that_fit(workers, batch * max(len(pickle.dumps(dataset[k])) for k in some) * sharing)


class _Items(Dataset):
    """The items of a dataset, or the fault for which they cannot be read.

    torch passes on only the type of an error, with the whole traceback as its message.
    """

    def __init__(self, items: Dataset):
        self.items = items

    def __getitems__(self, numbers: list[int]) -> list | Exception:
        try:
            return [self.items[number] for number in numbers]
        except (OSError, DamagedFile, MachineFault) as fault:
            return fault


def _collated(collate: Callable, items: list | Exception) -> Any:
    """A batch of items; a fault remains what it is."""
    return items if isinstance(items, Exception) else collate(items)


class _InReusedMemory:
    """Makes the batches of a loading process in shared memory that serves again and again.

    In new memory 256 temporal inputs take 190 ms to write, in used memory 23 ms (2 cores, one busy with other work):
    the system clears every page before it is used. A process has pieces of memory, as many as the parts of a batch, for
    each batch that it may be ahead. torch asks it for a batch once it has taken, and thus pinned, the one that lies
    where this one will be.
    """

    def __init__(self, collate: Callable):
        self.collate, self.batches, self.parts = collate, 0, 0
        self.pieces: dict[tuple[int, int], torch.Tensor] = {}  # by batch and part

    def __call__(self, items: list) -> Any:
        self.batches, self.parts = self.batches + 1, 0
        return self.collate(items, room=self._room)

    def _room(self, shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
        place, size = (self.batches % _BATCHES_AHEAD, self.parts), math.prod(shape) * dtype.itemsize
        self.parts += 1
        if place not in self.pieces or len(self.pieces[place]) < size:
            # JPEG bytes are never as many twice: a tenth more, else nearly every batch would be written to new memory
            more = size // 10 if len(shape) == 1 else 0
            self.pieces[place] = torch.empty(size + more, dtype=torch.uint8).share_memory_()
        return self.pieces[place][:size].view(torch.from_numpy(np.empty(0, dtype)).dtype).view(shape)


class _Loader(DataLoader):
    """torch's, but that a loading process dies, or cannot be started, is a fault of the machine.

    Raises:
        OSError, DamagedFile, MachineFault: as the dataset raised it.
    """

    def __iter__(self) -> Iterator:
        for batch in self._batches():
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _batches(self) -> Iterator:
        try:
            with children_ignore_sigint() if self.num_workers else contextlib.nullcontext():
                batches = super().__iter__()
            yield from batches
        except KeyboardInterrupt as interrupt:
            # the iterator ends the loading processes, but the frames would keep it until their semaphores are gone: a
            # process that was about to begin would then print a traceback
            interrupt.__traceback__ = batches = None
            raise
        except (RuntimeError, ConnectionError, EOFError) as error:
            text = str(error)
            # an error of the dataset begins with "Caught ... in DataLoader worker process", whatever its type
            if text.startswith("Caught ") or (isinstance(error, RuntimeError) and not text.startswith(_DEAD)):
                raise
            raise MachineFault(
                f"a loading process has died, perhaps for lack of memory ({one_line(text)}); the same command "
                "goes on; fewer of them (loader_workers) need less"
            ) from None


def sent_ahead(batches: Iterable[tuple[ViewBatch | EncodedBatch, torch.Tensor]], device: torch.device) -> Iterator:
    """The same batches; for CUDA each is copied to the device, and decoded there, while the previous one is in use.

    A training step waits for its loss before the weights change, so a copy that the step itself began would not overlap
    with it. 250 MB take about 10 ms, which is a tenth of a step of 256 temporal inputs. Decoding takes longer than that
    and waits for the decoder, so a thread does both.

    Args:
        batches: (views, labels), in page-locked memory.
        device: target of the copy; for the CPU nothing is done.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device, priority=-1)  # its small kernels need not wait for those of the training

    def sent(batch: tuple) -> tuple[list[ViewBatch | torch.Tensor], torch.cuda.Event]:
        return [part.to(device, non_blocking=True) for part in batch], stream.record_event()

    # a thread begins on GPU 0, on its default stream
    for parts, event in _ahead(map(sent, batches), begin=lambda: torch.cuda.set_stream(stream)):
        yield _received(parts, event, device)


def _received(parts: list[ViewBatch | torch.Tensor], sent: torch.cuda.Event, device: torch.device) -> tuple:
    """Make a batch that was copied on another CUDA stream usable on the current stream."""
    current = torch.cuda.current_stream(device)
    current.wait_event(sent)
    for part in parts:
        part.record_stream(current)
    return tuple(parts)


def loader_workers(wanted: int, device: torch.device, sharing: int = 1) -> int:
    """Number of loading processes: `wanted`; if that is -1, one per core up to 16 for a GPU, and none on a CPU.

    `sharing` is the number of processes that each want their own and share the cores.
    """
    if wanted >= 0:
        return wanted
    cores = max(1, usable_cores() // sharing)
    return min(cores, _MAX_WORKERS) if device.type == "cuda" else 0


def _that_fit(workers: int, batch_bytes: int) -> int:
    """As many loading processes as shared memory has room for; a process that finds it full dies."""
    try:
        memory = os.statvfs(_SHARED_MEMORY)
    except OSError:  # not on Linux: torch takes files elsewhere
        return workers
    if not memory.f_blocks:  # how tmpfs says that it has no limit
        return workers
    free = memory.f_bavail * memory.f_frsize
    # besides the batches ahead, one is being handed over and one is in use
    found = max(0, min(workers, int(free / batch_bytes - 2) // _BATCHES_AHEAD))
    if found < workers:
        needed = (workers * _BATCHES_AHEAD + 2) * batch_bytes
        say_once(
            f"{found} loading processes instead of {workers}: {_SHARED_MEMORY} has {free >> 20} MiB free, they need "
            f"{-(-needed >> 20)}; enlarge it (in a container, --shm-size), or set loader_workers"
        )
    return found


def _ahead(batches: Iterable, begin: Callable[[], None] | None = None) -> Iterator:
    """The same batches; a thread makes the next one while one is in use (decoding and numpy release the GIL).

    `begin` is called in the thread first.
    """
    rest, over = iter(batches), threading.Event()

    def start() -> None:
        wait_no_longer_than(over)
        if begin:
            begin()

    with ThreadPoolExecutor(1, initializer=start) as thread:
        try:
            coming = thread.submit(next, rest, None)
            while (batch := coming.result()) is not None:
                coming = thread.submit(next, rest, None)
                yield batch
        finally:
            over.set()  # before the thread is waited for: it may be waiting for a disk


def _begin_worker(worker: int) -> None:
    cv2.setNumThreads(1)
    end_with_parent()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_instead_of_losing)


def _end_instead_of_losing(error: Exception, batch: object) -> None:
    """End this loading process: its thread that sends batches failed, as where shared memory is full.

    Python would go on without the batch, which torch would wait for forever.
    """
    traceback.print_exception(error)
    os._exit(1)
