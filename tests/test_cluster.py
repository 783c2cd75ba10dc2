"""Jobs run somewhere, in bounded number, and a job that dies does not take the others along."""

import os
import time
from pathlib import Path

import distributed
import pytest
from work import double, fail_on_three

from pipeline.cluster import Workers, kept, shared_by, worker_count
from pipeline.specs import ClusterSpec
from pipeline.system.errors import WorkerDied


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


def test_environment_and_dask_client_of_the_user_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = dict(os.environ)
    with Workers(ClusterSpec(workers=1), most=9) as workers:
        assert list(workers.run(double, [1])) == [(1, 2)]
        assert dict(os.environ) == before
        assert distributed.client._get_global_client() is None


def test_a_worker_that_dies_is_told_from_its_neighbors():
    with Workers(ClusterSpec(workers=2), most=6) as workers:
        results = dict(workers.run(die_on_three, range(6)))
    died = {job for job, result in results.items() if isinstance(result, WorkerDied)}
    assert 3 in died and set(results) == set(range(6))
    assert "its worker processes died, each time: a crash" in str(results[3])


def test_the_next_stage_gets_the_same_workers_if_it_comes_at_once():
    pids = []
    for spec in (ClusterSpec(workers=1), ClusterSpec(workers=1), ClusterSpec(workers=1, in_flight=3)):
        with Workers(spec, most=9) as workers:
            pids.append({pid for _, pid in workers.run(where, range(3))})
    assert pids[0] == pids[1] != pids[2]


def test_kept_workers_end_soon(monkeypatch):
    monkeypatch.setattr(kept, "LINGER_SECONDS", 0.2)
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
        info = workers._connection.client.scheduler_info()
        assert all(address.startswith("tcp://127.0.0.1:") for address in [info["address"], *info["workers"]])


def test_worker_count_is_given_or_one_a_core():
    assert worker_count(ClusterSpec(workers=5)) == 5
    assert worker_count(ClusterSpec()) == len(os.sched_getaffinity(0))


def test_work_is_shared_on_this_machine_alone():
    local = ClusterSpec(kind="local", workers=4)
    assert [shared_by(local, most=jobs) for jobs in (0, 1, 3, 9)] == [1, 1, 3, 4]
    assert shared_by(local, ("cuda:0", "cuda:1"), most=9) == 2
    elsewhere = ClusterSpec(kind="address", address="tcp://x:1"), ClusterSpec(kind="jobqueue", workers=4)
    assert [shared_by(spec, most=9) for spec in (ClusterSpec(kind="inline", workers=4), *elsewhere)] == [1, 1, 1]
