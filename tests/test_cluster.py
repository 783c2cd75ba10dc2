"""Jobs run somewhere, in bounded number, and a job that dies does not take the others along."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import cluster
from pipeline.cluster import WorkerDied, Workers, worker_count
from pipeline.specs import ClusterSpec


def double(job):
    return 2 * job


def fail_on_three(job):
    if job == 3:
        raise ValueError("three is refused")
    return job


def die_on_three(job):
    if job == 3:
        os._exit(1)
    return job


def where(job):
    time.sleep(0.05)
    return os.getpid()


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_results_come_with_their_jobs(kind):
    with Workers(ClusterSpec(kind=kind, workers=2), most=9) as workers:
        assert sorted(workers.run(double, range(5))) == [(n, 2 * n) for n in range(5)]
        assert list(workers.run(double, [])) == []


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_a_job_that_raises_gives_its_error_and_the_others_their_results(kind):
    with Workers(ClusterSpec(kind=kind, workers=1), most=9) as workers:
        results = dict(workers.run(fail_on_three, range(5)))
    assert isinstance(results.pop(3), ValueError) and results == {0: 0, 1: 1, 2: 2, 4: 4}


def test_local_workers_are_other_processes_and_no_more_than_the_work():
    with Workers(ClusterSpec(workers=8), most=2) as workers:
        assert workers.count == 2
        pids = {pid for _, pid in workers.run(where, range(8))}
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_worker_that_dies_is_told_from_its_neighbours():
    with Workers(ClusterSpec(workers=2), most=6) as workers:
        results = dict(workers.run(die_on_three, range(6)))
    died = {job for job, result in results.items() if isinstance(result, WorkerDied)}
    assert 3 in died and set(results) == set(range(6))
    assert "its worker process died twice" in str(results[3])


def test_the_next_stage_gets_the_same_workers_if_it_comes_at_once():
    pids = []
    for spec in (ClusterSpec(workers=1), ClusterSpec(workers=1), ClusterSpec(workers=1, in_flight=3)):
        with Workers(spec, most=9) as workers:
            pids.append({pid for _, pid in workers.run(where, range(3))})
    assert pids[0] == pids[1] != pids[2]


def test_kept_workers_end_soon(monkeypatch):
    monkeypatch.setattr(cluster, "LINGER_SECONDS", 0.2)
    with Workers(ClusterSpec(workers=1), most=9) as workers:
        ((_, pid),) = workers.run(where, [1])
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_workers_of_a_stage_that_failed_are_ended_at_once():
    with pytest.raises(KeyError), Workers(ClusterSpec(workers=1), most=9) as workers:
        ((_, pid),) = workers.run(where, [1])
        raise KeyError
    assert not Path(f"/proc/{pid}").exists()


def test_jobs_are_handed_out_a_few_at_a_time():
    taken = []

    def jobs():
        for n in range(40):
            taken.append(n)
            yield n

    with Workers(ClusterSpec(workers=1, in_flight=3), most=40) as workers:
        for done, _ in enumerate(workers.run(double, jobs()), 1):
            assert len(taken) <= done + 3


def test_nothing_listens_beyond_loopback():
    with Workers(ClusterSpec(workers=1), most=1) as workers:
        info = workers._held.client.scheduler_info()
        assert all(address.startswith("tcp://127.0.0.1:") for address in [info["address"], *info["workers"]])


def test_a_running_scheduler_is_used_by_its_address():
    from distributed import LocalCluster

    sys.path.append(str(Path(__file__).parent))
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
        Workers(ClusterSpec(kind="address", address=cluster.scheduler_address), most=3) as workers,
    ):
        assert sorted(workers.run(double, [1, 2])) == [(1, 2), (2, 4)]
        assert threading.main_thread().is_alive()


def test_worker_count_is_given_or_one_a_core():
    assert worker_count(ClusterSpec(workers=5)) == 5
    assert worker_count(ClusterSpec()) == len(os.sched_getaffinity(0))


def test_a_job_queue_needs_its_package():
    pytest.importorskip("distributed")
    if "dask_jobqueue" in sys.modules or _installed("dask_jobqueue"):
        pytest.skip("dask-jobqueue is installed here")
    with pytest.raises(ValueError, match="kind = jobqueue needs dask-jobqueue: pip install dask-jobqueue"):
        Workers(ClusterSpec(kind="jobqueue"), most=1).__enter__()


def _installed(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None
