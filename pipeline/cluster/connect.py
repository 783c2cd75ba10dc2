"""How to get dask workers: processes on this machine, those of a running scheduler, or jobs of a queue."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from pipeline.specs import ClusterSpec
from pipeline.system.console import one_line
from pipeline.system.errors import MachineFault, UserError
from pipeline.system.processes import children_ignore_sigint

_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1),
    # workers keep freed memory for the next arrays, up to their (bounded) peak; dask's default of returning it to the
    # system made Flow 15 percent slower
    "MALLOC_TRIM_THRESHOLD_": 512 << 20,
    "MALLOC_MMAP_THRESHOLD_": 32 << 20,
}
_DASK_SETTINGS = {
    # a worker that dies loses all its tasks; a second try distinguishes the task that killed it from the others
    "distributed.scheduler.allowed-failures": 1,
    "distributed.worker.daemon": False,
    "distributed.admin.tick.limit": "60s",
    "distributed.nanny.pre-spawn-environ": _ENVIRONMENT,
    # dask's profiler interrupts the worker a hundred times a second
    "distributed.worker.profile.enabled": False,
}


def connect(
    spec: ClusterSpec, workers: int, devices: tuple[str, ...], at_once: int, stack: contextlib.ExitStack
) -> Any:
    """A dask client with its workers.

    Args:
        spec: where the workers are.
        workers: how many to start; a running scheduler keeps those it has.
        devices: CUDA devices that they will use; empty for work on the CPU.
        at_once: jobs that each started worker runs at the same time; in a queue only with devices.
        stack: receives what must be closed after use.

    Raises:
        UserError: dask-jobqueue is not installed.
        OSError: the scheduler does not answer.
        MachineFault: processes cannot be started here, for lack of memory, open files or the like.
    """
    import dask
    from distributed import Client

    with dask.config.set(_DASK_SETTINGS):
        where = spec.address if spec.kind == "address" else _start_cluster(spec, workers, devices, at_once, stack)
        client = Client(where, timeout="30s", set_as_default=False)  # the user may have one
    stack.callback(client.close)  # not a context manager: a timer's thread may close it
    return client


def _start_cluster(
    spec: ClusterSpec, workers: int, devices: tuple[str, ...], at_once: int, stack: contextlib.ExitStack
) -> Any:
    if spec.kind == "jobqueue":
        cluster = _job_queue(spec, devices, at_once)
        stack.callback(cluster.close)
        cluster.scale(jobs=workers)
    else:
        from distributed import LocalCluster

        # all ports listen on loopback only; batch sizes bound memory, so no worker is killed for it
        options = {
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            "memory_limit": 0,
            "silence_logs": logging.CRITICAL,
        }
        try:
            # for workers and their replacements: a thread of dask starts them
            with children_ignore_sigint(), _own_environment():
                cluster = LocalCluster(n_workers=workers, threads_per_worker=at_once, **options)
                stack.callback(cluster.close)  # before a Ctrl-C is heard
        except (RuntimeError, OSError) as error:
            raise MachineFault(f"workers cannot be started on this machine: {_first_cause(error)}") from error
    return cluster


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Give this process its environment back: dask sets that of its workers here, and trainings would believe it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _first_cause(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return one_line(f"{type(error).__name__}: {error}")


def _job_queue(spec: ClusterSpec, devices: tuple[str, ...], at_once: int) -> Any:
    try:
        import dask_jobqueue
    except ImportError:
        raise UserError("[cluster] kind = jobqueue needs dask-jobqueue: pip install dask-jobqueue") from None
    name = {
        "slurm": "SLURMCluster",
        "pbs": "PBSCluster",
        "sge": "SGECluster",
        "lsf": "LSFCluster",
        "htcondor": "HTCondorCluster",
    }[spec.queue_system]
    queue = {"queue": spec.queue} if spec.queue else {}
    walltime = {} if spec.queue_system == "htcondor" else {"walltime": spec.walltime}
    # a worker with several cores would run as many jobs at once; each job takes one unit of this resource instead
    several = {"worker_extra_args": ["--resources", f"GPU={at_once}"]} if devices else {}
    cores = spec.threads if devices and spec.threads else 1
    return getattr(dask_jobqueue, name)(cores=cores, processes=1, memory=spec.memory, **queue, **walltime, **several)
