"""Jobs run by workers: in this process, or on dask workers, wherever `connect` finds them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from typing import Any

from pipeline.cluster.kept import CACHE, Connection, ConnectionKey
from pipeline.cluster.portable import carrier, packed
from pipeline.specs import ClusterSpec
from pipeline.system.errors import MachineFault, WorkerDied
from pipeline.system.limits import usable_cores
from pipeline.system.progress import say

_PATIENCE_SECONDS = 10.0  # after which the absence of workers is reported
_GIVE_UP_AFTER = 6  # times that long


def worker_count(spec: ClusterSpec, devices: tuple[str, ...] = ()) -> int:
    """Number of workers: `spec.workers`, or one per usable core; with devices here, at most one per device."""
    if devices and spec.is_here:
        return min(spec.workers or len(devices), len(devices))
    return spec.workers or usable_cores()


def threads_each(spec: ClusterSpec, devices: tuple[str, ...]) -> int:
    """Threads of a worker: `spec.threads`, or 1 without devices, or its share of the cores of this machine.

    For workers on other machines it is 0: each finds out its own share.
    """
    if spec.threads or not devices:
        return spec.threads or 1
    if not spec.is_here:
        return 0
    workers = 1 if spec.kind == "inline" else worker_count(spec, devices)
    return max(1, usable_cores() // workers)


def shared_by(spec: ClusterSpec, devices: tuple[str, ...] = (), *, most: int) -> int:
    """Number of local workers that share `most` jobs; 1 if `kind` is not "local", where the number is not known yet."""
    return min(worker_count(spec, devices), max(most, 1)) if spec.kind == "local" else 1


class Workers:
    """Runs a function over jobs, `at_once` of them at a time in each worker process.

    Args:
        spec: where the workers are.
        most: number of workers that the work can occupy; no more are started.
        at_once: jobs that a worker which is started here runs at the same time, in threads. Workers of a running
            scheduler decide that by their threads and resources.
        devices: CUDA devices; none for work on the CPU. On this machine (`inline`, `local`) one worker is started per
            device, and the field `device` of each job is set to that of its worker. Elsewhere a job keeps its `device`,
            and is sent to workers that offer the dask resource GPU, if there are any.
    """

    def __init__(self, spec: ClusterSpec, *, most: int, devices: tuple[str, ...] = (), at_once: int = 1):
        self.spec, self.devices, self.at_once = spec, devices, at_once
        self.count = min(worker_count(spec, devices), max(most, 1))
        self._connection: Connection | None = None
        self._running: dict[Any, Any] = {}  # future -> job

    def __enter__(self) -> Workers:
        if self.spec.kind != "inline":
            key = ConnectionKey(self.spec, self.count, self.devices, self.at_once)
            self._connection = CACHE.take(key) or Connection(key)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._connection is None:
            return
        if kind is None and not self.devices:  # idle workers would keep the memory of a GPU, which training wants next
            CACHE.keep(self._connection)
            return
        try:
            if kind is not None:
                self._await_running()
        finally:
            self._connection.close()

    def _await_running(self) -> None:
        """After an error, wait for the jobs that have begun: they must not write at the same time as a later stage.

        Closing our own workers ends them; those of a running scheduler go on with what they have begun. Jobs that none
        of them has begun are taken back.
        """
        from distributed import wait as wait_for

        left = [future for future in self._running if not future.done()]
        if not left or self.spec.kind != "address":
            return
        with contextlib.suppress(Exception):  # the scheduler may be gone; the error that led here is what counts
            begun = _begun(self._connection.client)
            self._connection.client.cancel([future for future in left if future.key not in begun])
            if left := [future for future in left if future.key in begun]:
                say(f"jobs still running at {self.spec.address}: {len(left)}; waiting for them to end")
                with self._connection.client.as_current():
                    wait_for(left)

    def run(self, function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield (job, result) as jobs end; the result of a job that raised is its exception.

        A bounded number of jobs is handed out at a time, so that a million clips cost no more memory than a thousand.
        The result of a job whose worker died is a `WorkerDied`.
        """
        if self._connection is None:
            yield from self._run_here(function, iter(jobs))
            return
        if self.devices and self.spec.kind == "local":
            function = functools.partial(_on_own_device, function, self.devices)
        yield from self._run_on_dask(function, iter(jobs))

    def _run_here(self, function: Callable[[Any], Any], jobs: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        device = self.devices[0] if self.devices else None
        if self.at_once == 1:
            yield from ((job, _outcome(function, _on(device, job))) for job in jobs)
            return
        running: dict[Any, Any] = {}
        with ThreadPoolExecutor(self.at_once) as threads, _saying_what_is_waited_for(running):
            while True:
                for job in itertools.islice(jobs, self.at_once - len(running)):
                    running[threads.submit(_outcome, function, _on(device, job))] = job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()

    def _width(self) -> int:
        """Number of jobs that are handed out at the same time; workers may join a running scheduler at any moment."""
        elsewhere = self.spec.kind == "address"
        lanes = sum(self._connection.client.nthreads().values()) if elsewhere else self.count * self.at_once
        return self.spec.in_flight * max(lanes, 1)

    def _resources(self) -> dict[str, int] | None:
        """What a job takes of its worker. Jobs of a queue offer GPUs, whenever they start; other workers are asked."""
        if not self.devices or self.spec.kind == "local":
            return None
        if self.spec.kind == "address":
            self._connection.client.wait_for_workers(1)
        return {"GPU": 1} if self.spec.kind == "jobqueue" or _offer_gpus(self._connection.client) else None

    def _run_on_dask(self, function: Callable[[Any], Any], jobs: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        from distributed import as_completed

        client, elsewhere = self._connection.client, not self.spec.is_here
        resources = functools.cache(self._resources)
        ended, carry = as_completed(loop=client.loop), carrier() if elsewhere else None

        def hand_out() -> None:
            for job in itertools.islice(jobs, max(0, self._width() - len(self._running))):
                work = (carry, packed(function, job)) if carry else (function, job)
                future = client.submit(*work, pure=False, resources=resources())
                self._running[future] = job
                ended.add(future)

        # a job of a queue that has ended, by its time limit or a failed machine, is submitted again
        renew = functools.partial(client.cluster.scale, jobs=self.count) if self.spec.kind == "jobqueue" else None
        with _watching(client, self._running, give_up=not elsewhere, renew=renew):
            hand_out()
            while self._running:
                future = next(ended)
                yield self._running.pop(future), _result_of(future, carried=elsewhere)
                future.release()
                hand_out()


@contextlib.contextmanager
def _saying_what_is_waited_for(running: dict[Any, Any]) -> Iterator[None]:
    try:
        yield
    except BaseException:  # Ctrl-C, or the reader of the results gives up
        if left := sum(not future.done() for future in running):
            say(f"jobs still running in threads of this process: {left}; waiting for them to end")
        raise


def _on(device: str | None, job: Any) -> Any:
    return dataclasses.replace(job, device=device) if device else job


def _on_own_device(function: Callable[[Any], Any], devices: tuple[str, ...], job: Any) -> Any:
    """Run a job on the device of its local worker. Workers are named 0, 1, ..., and keep their name when restarted."""
    from distributed import get_worker

    return function(_on(devices[int(get_worker().name)], job))


def _offer_gpus(client: Any) -> bool:
    # a lambda is pickled by value: a scheduler need not have the project installed
    return client.run_on_scheduler(
        lambda dask_scheduler: any(worker.resources.get("GPU") for worker in dask_scheduler.workers.values())
    )


def _workers(client: Any) -> tuple[int, int]:
    """How many workers take jobs, and how many are paused: dask gives those no more until they use less memory."""

    def count(dask_scheduler: Any) -> tuple[int, int]:
        states = [worker.status.name for worker in dask_scheduler.workers.values()]
        return states.count("running"), states.count("paused")

    return client.run_on_scheduler(count)  # pickled by value, too


def _begun(client: Any) -> set[str]:
    """Keys of the jobs that workers are computing now; others wait, at a worker or for one."""
    found = client.run(lambda dask_worker: [task.key for task in dask_worker.state.executing])  # pickled by value, too
    return {key for keys in found.values() for key in keys}


def _outcome(function: Callable[[Any], Any], job: Any) -> Any:
    try:
        return function(job)
    except Exception as error:
        return error


@contextlib.contextmanager
def _watching(
    client: Any, running: dict[Any, Any], *, give_up: bool, renew: Callable[[], None] | None = None
) -> Iterator[None]:
    """Within the block, say so if no worker is there for a while: jobs wait for one forever.

    Workers elsewhere may come at any time, and a line says when one comes. Those of this machine are started again when
    they die; if none has been for long (`give_up`), there is no memory or the like for them, and the jobs are dropped.
    `renew` is called again and again, to replace workers that are gone for good.
    """
    over = threading.Event()

    def watch() -> None:
        absent, said_paused = 0, False
        while not over.wait(_PATIENCE_SECONDS):
            try:
                count, paused = _workers(client)
                if renew:
                    renew()
            except Exception:  # the scheduler is gone; whoever waits for a job gets that error
                return
            if count and (absent or said_paused):
                say(f"workers at {client.scheduler.address}: {count}; going on")
            absent = 0 if count or paused else absent + 1
            if paused and not count and not said_paused:
                say(
                    f"no worker at {client.scheduler.address} takes another job: dask has paused {paused}, for their "
                    "use of memory; start workers with --memory-limit 0, or give them more memory"
                )
            said_paused = bool(paused and not count)
            if absent == 1:
                say(f"no worker at {client.scheduler.address} (the logs of workers say why); waiting for one")
            if absent == _GIVE_UP_AFTER and give_up:
                client.cancel(list(running), force=True)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _result_of(future: Any, *, carried: bool) -> Any:
    from distributed.scheduler import KilledWorker

    try:
        done, result = future.result() if carried else (True, future.result())
    except KilledWorker:
        return WorkerDied(
            "its worker processes died, each time: a crash in native code, a kill from outside (such as the time limit "
            "of a queue), or too little memory"
        )
    except CancelledError as error:
        return MachineFault(f"its workers, or the dask scheduler, are gone and did not come back ({error})")
    except Exception as error:
        return error
    return result if done else MachineFault(result)
