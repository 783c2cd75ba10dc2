"""One way to get dask workers: in this process, local processes, a running scheduler, or a job queue."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipeline.specs import ClusterSpec

LINGER_SECONDS = 3.0
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1),
    # freed arrays stay with the process for the next ones, up to its (bounded) peak; dask's own choice is to hand each
    # back to the system, which made Flow 15 per cent slower
    "MALLOC_TRIM_THRESHOLD_": 512 << 20,
    "MALLOC_MMAP_THRESHOLD_": 32 << 20,
}
_DASK_SETTINGS = {
    # a worker that dies takes the tasks it held with it; once more tells the guilty one from its neighbours
    "distributed.scheduler.allowed-failures": 1,
    "distributed.worker.daemon": False,
    "distributed.admin.tick.limit": "60s",
    "distributed.nanny.pre-spawn-environ": _ENVIRONMENT,
    # dask's profiler stops the worker a hundred times a second
    "distributed.worker.profile.enabled": False,
}


def worker_count(spec: ClusterSpec) -> int:
    """Workers that `spec` asks for: its number, or one a core this process may use."""
    return spec.workers or len(os.sched_getaffinity(0))


class Workers:
    """Runs a function over jobs, each job in one worker process with one thread.

    Args:
        spec: where the workers are.
        most: workers that the work at hand can occupy; no more are started.
    """

    def __init__(self, spec: ClusterSpec, *, most: int):
        self.spec = spec
        self.count = min(worker_count(spec), max(most, 1))
        self._held: _Held | None = None

    def __enter__(self) -> Workers:
        if self.spec.kind != "inline":
            self._held = _KEPT.take(self.spec, self.count) or _Held(self.spec, self.count)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._held is not None and kind is None:
            _KEPT.keep(self._held)
        elif self._held is not None:  # jobs may still be running: they must not write beside whoever comes next
            self._held.close()

    def run(self, function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield (job, result) as jobs end; a job that raised gives its exception as result.

        A bounded number of jobs is handed out at a time, so that a million clips cost no more memory than a thousand.
        A job whose worker died gives a `WorkerDied`.
        """
        if self._held is None:
            for job in jobs:
                yield job, _outcome(function, job)
            return
        yield from self._run_on_dask(function, iter(jobs))

    def _run_on_dask(self, function: Callable[[Any], Any], jobs: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        from distributed import as_completed

        client = self._held.client
        threads = sum(client.nthreads().values()) if self.spec.kind == "address" else 0
        width = self.spec.in_flight * max(threads, self.count)
        held, running = {}, as_completed(loop=client.loop)

        def hand_out() -> None:
            for job in jobs:
                future = client.submit(function, job, pure=False)
                held[future.key] = job
                running.add(future)
                return

        for _ in range(width):
            hand_out()
        while held:
            future = next(running)
            yield held.pop(future.key), _result_of(future)
            future.release()
            hand_out()


class _Held:
    """Connected workers, and what must be closed after them."""

    def __init__(self, spec: ClusterSpec, count: int):
        self.key = (spec, count, os.getpid())
        self._stack = contextlib.ExitStack()
        try:
            self.client = _connect(spec, count, self._stack)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Disconnect; workers that were started for this are ended. In a forked child they are the parent's."""
        if self.key[-1] == os.getpid():
            self._stack.close()


class _Kept:
    """The workers of the stage that has just ended, kept a few seconds: most often the next stage wants the same.

    Starting them takes a second, as long as a whole stage of a small data set. They are not kept longer, so that no
    idle process stands beside a training.
    """

    def __init__(self):
        self._lock, self._held = threading.Lock(), None
        self._timer = threading.Timer(0, lambda: None)
        atexit.register(self.close)

    def take(self, spec: ClusterSpec, count: int) -> _Held | None:
        """The kept workers if they are such as are wanted; others are closed."""
        held = self._release()
        if held is not None and held.key != (spec, count, os.getpid()):
            held.close()
            return None
        return held

    def keep(self, held: _Held) -> None:
        """Keep these workers for LINGER_SECONDS."""
        self.close()
        with self._lock:
            self._held = held
            self._timer = threading.Timer(LINGER_SECONDS, self._close_if, [held])
            self._timer.daemon = True
            self._timer.start()

    def _close_if(self, held: _Held) -> None:
        with self._lock:
            if self._held is not held:  # taken meanwhile
                return
            self._held = None
        held.close()

    def close(self) -> None:
        """Close what is kept."""
        if (held := self._release()) is not None:
            held.close()

    def _release(self) -> _Held | None:
        with self._lock:
            self._timer.cancel()
            held, self._held = self._held, None
        return held


_KEPT = _Kept()


class StageFailed(RuntimeError):
    """A stage could not be finished; the message says why and what to do."""


class WorkerDied(RuntimeError):
    """The process that ran a job ended without an answer: a crash in native code, a kill, or too little memory."""


def _outcome(function: Callable[[Any], Any], job: Any) -> Any:
    try:
        return function(job)
    except Exception as error:
        return error


def _result_of(future: Any) -> Any:
    from distributed.scheduler import KilledWorker

    error = future.exception()
    if isinstance(error, KilledWorker):
        return WorkerDied(
            "its worker process died twice: a crash in native code, a kill from outside, or too little memory"
        )
    return error if error is not None else future.result()


def _connect(spec: ClusterSpec, workers: int, stack: contextlib.ExitStack) -> Any:
    import dask
    from distributed import Client

    with dask.config.set(_DASK_SETTINGS):
        where = spec.address if spec.kind == "address" else _start_cluster(spec, workers, stack)
        client = Client(where, timeout="30s")
    stack.callback(client.close)  # not as a context manager: it may be closed by the thread of a timer
    return client


def _start_cluster(spec: ClusterSpec, workers: int, stack: contextlib.ExitStack) -> Any:
    if spec.kind == "jobqueue":
        cluster = _job_queue(spec)
        cluster.scale(jobs=workers)
    else:
        from distributed import LocalCluster

        # nothing listens on anything but loopback; memory is bounded by the batches, not by killing workers
        options = {
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            "memory_limit": 0,
            "silence_logs": logging.CRITICAL,
        }
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, **options)
    stack.callback(cluster.close)
    return cluster


def _job_queue(spec: ClusterSpec) -> Any:
    try:
        import dask_jobqueue
    except ImportError:
        raise ValueError("[cluster] kind = jobqueue needs dask-jobqueue: pip install dask-jobqueue") from None
    name = {
        "slurm": "SLURMCluster",
        "pbs": "PBSCluster",
        "sge": "SGECluster",
        "lsf": "LSFCluster",
        "htcondor": "HTCondorCluster",
    }[spec.queue_system]
    queue = {"queue": spec.queue} if spec.queue and spec.queue_system != "htcondor" else {}
    walltime = {} if spec.queue_system == "htcondor" else {"walltime": spec.walltime}
    return getattr(dask_jobqueue, name)(cores=1, processes=1, memory=spec.memory, **queue, **walltime)
