"""Workers on GPUs: one a device, with its share of the cores, and jobs side by side in it."""

import dataclasses
import itertools
import os
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from work import double, fail_on_three

from pipeline import cluster
from pipeline.cluster import Workers, connect, threads_each, worker_count
from pipeline.specs import ClusterSpec
from pipeline.system.errors import WorkerDied


def test_workers_on_a_gpu_are_not_kept(tmp_path):
    with Workers(ClusterSpec(), most=1, devices=("cuda:0",)) as workers:
        list(workers.run(work_on_device, jobs_on(tmp_path, 1)))
    ((_, pid, *_),) = log_of(tmp_path / "log")
    assert not Path(f"/proc/{pid}").exists()  # idle, it would keep memory that a training wants


@dataclasses.dataclass(frozen=True)
class OnDevice:
    log: Path
    number: int
    device: str = "auto"


def work_on_device(job):
    begun = time.monotonic()
    time.sleep(0.05)
    with job.log.open("a") as log:
        log.write(f"{job.device} {os.getpid()} {begun} {time.monotonic()}\n")
    return job.number


def log_of(path):
    """Device, process, begin and end of every job."""
    return [(d, int(p), float(b), float(e)) for d, p, b, e in map(str.split, path.read_text().splitlines())]


def overlap(spans):
    spans = sorted(spans)
    return any(end > begin for (_, end), (begin, _) in itertools.pairwise(spans))


def jobs_on(path, count):
    return [OnDevice(path / "log", number) for number in range(count)]


def test_each_device_has_one_worker_and_one_job_at_a_time(tmp_path):
    gpus = ("cuda:0", "cuda:1", "cuda:2")
    with Workers(ClusterSpec(in_flight=3), most=12, devices=gpus) as workers:
        assert workers.count == 3
        found = dict(workers.run(work_on_device, jobs_on(tmp_path, 12)))
    assert sorted(found.values()) == list(range(12)) and all(job.device == "auto" for job in found)
    log = log_of(tmp_path / "log")
    assert {device for device, *_ in log} == set(gpus)
    assert len({(device, pid) for device, pid, *_ in log}) == 3 == len({pid for _, pid, *_ in log})
    for gpu in gpus:
        assert not overlap([(begin, end) for device, _, begin, end in log if device == gpu])


@pytest.mark.parametrize("kind", ["inline", "local"])
def test_a_device_may_have_two_jobs_at_a_time_in_one_process(tmp_path, kind):
    gpus = ("cuda:0", "cuda:1") if kind == "local" else ("cuda:0",)
    with Workers(ClusterSpec(kind=kind), most=12, devices=gpus, at_once=2) as workers:
        found = dict(workers.run(work_on_device, jobs_on(tmp_path, 12)))
    log = log_of(tmp_path / "log")
    assert sorted(found.values()) == list(range(12)) and len({pid for _, pid, *_ in log}) == len(gpus)
    for gpu in gpus:
        spans = sorted((begin, end) for device, _, begin, end in log if device == gpu)
        assert overlap(spans)
        assert all(third >= min(end for _, end in spans[k : k + 2]) for k, (third, _) in enumerate(spans[2:]))


def test_a_job_that_raises_beside_another_gives_its_error():
    with Workers(ClusterSpec(kind="inline"), most=9, at_once=2) as workers:
        results = dict(workers.run(fail_on_three, range(7)))
        assert list(workers.run(double, [])) == []
    assert isinstance(results.pop(3), ValueError) and results == {n: n for n in range(7) if n != 3}


def test_it_is_said_for_what_is_waited_where_a_reader_gives_up(capsys):
    results = Workers(ClusterSpec(kind="inline"), most=9, at_once=2).run(sleep_for, [0.0, 0.5, 0.5])
    next(results)
    results.close()
    assert "jobs still running in threads of this process: 1; waiting for them to end" in capsys.readouterr().err


def sleep_for(seconds):
    time.sleep(seconds)


def test_a_device_whose_worker_died_is_used_again(tmp_path):
    with Workers(ClusterSpec(), most=9, devices=("cuda:4",)) as workers:
        died = list(workers.run(end_the_process, jobs_on(tmp_path, 1)))
        assert isinstance(died[0][1], WorkerDied)
        list(workers.run(work_on_device, jobs_on(tmp_path, 2)))
    assert [device for device, *_ in log_of(tmp_path / "log")] == ["cuda:4"] * 2


def end_the_process(job):
    os._exit(1)


def test_in_this_process_one_device_is_used(tmp_path):
    with Workers(ClusterSpec(kind="inline"), most=9, devices=("cuda:3", "cuda:5")) as workers:
        list(workers.run(work_on_device, jobs_on(tmp_path, 3)))
    assert {(device, pid) for device, pid, *_ in log_of(tmp_path / "log")} == {("cuda:3", os.getpid())}


@pytest.mark.parametrize("resources", [{"GPU": 1}, {"GPU": 2}, {}])
def test_workers_elsewhere_get_as_many_jobs_at_a_time_as_they_offer_gpus(tmp_path, monkeypatch, resources):
    from distributed import LocalCluster

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with LocalCluster(**options, resources=resources) as elsewhere:
        spec = ClusterSpec(kind="address", address=elsewhere.scheduler_address)
        with Workers(spec, most=6, devices=("auto",)) as workers:
            assert len(list(workers.run(work_on_device, jobs_on(tmp_path, 6)))) == 6
        cluster.CACHE.close()
    log = log_of(tmp_path / "log")
    assert {device for device, *_ in log} == {"auto"}  # the worker finds out
    assert overlap([(begin, end) for *_, begin, end in log]) == (resources != {"GPU": 1})


def late_cluster(threads: int, gpus: int):
    """A dask cluster without workers; `scale(jobs=1)` starts one half a second later, as a queue does."""
    from distributed import LocalCluster

    class Late(LocalCluster):
        def scale(self, n=0, jobs=None):
            if jobs is None:
                super().scale(n)
            else:
                threading.Timer(0.5, super().scale, [jobs]).start()

    options = {"n_workers": 0, "threads_per_worker": threads, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    return Late(**options, resources={"GPU": gpus})


@pytest.mark.parametrize("kind", ["address", "jobqueue"])
def test_workers_that_come_later_get_no_more_jobs_than_they_offer_gpus(tmp_path, monkeypatch, kind):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with late_cluster(threads=4, gpus=1) as late:
        if kind == "jobqueue":
            monkeypatch.setitem(sys.modules, "dask_jobqueue", types.SimpleNamespace(SLURMCluster=lambda **_: late))
            spec = ClusterSpec(kind=kind, workers=1, threads=4)
        else:
            spec = ClusterSpec(kind=kind, address=late.scheduler_address)
            late.scale(jobs=1)
        with Workers(spec, most=6, devices=("auto",)) as workers:
            assert len(list(workers.run(work_on_device, jobs_on(tmp_path, 6)))) == 6
        cluster.CACHE.close()
    assert not overlap([(begin, end) for *_, begin, end in log_of(tmp_path / "log")])


def test_jobs_of_a_queue_that_end_by_their_time_limit_are_submitted_again(monkeypatch):
    import dask

    monkeypatch.setattr(cluster, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    found = []
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.1s"}), late_cluster(1, 0) as late:
        monkeypatch.setitem(sys.modules, "dask_jobqueue", types.SimpleNamespace(SLURMCluster=lambda **_: late))
        with Workers(ClusterSpec(kind="jobqueue", workers=1), most=4) as workers:
            for _, result in workers.run(double, range(4)):
                if not found:
                    while 0 not in late.workers:  # it may have done a job before the cluster lists it
                        time.sleep(0.01)
                    late.sync(late.workers[0].close)
                found.append(result)
        cluster.CACHE.close()
    assert sorted(found) == [0, 2, 4, 6]


def test_one_worker_a_device_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    gpus = tuple(f"cuda:{k}" for k in range(8))
    assert worker_count(ClusterSpec(), gpus) == 8 and threads_each(ClusterSpec(), gpus) == 2
    assert worker_count(ClusterSpec(workers=3), gpus) == 3 and threads_each(ClusterSpec(workers=3), gpus) == 5
    assert worker_count(ClusterSpec(workers=99), gpus) == 8
    assert worker_count(ClusterSpec(), ()) == 16 and threads_each(ClusterSpec(), ()) == 1
    assert threads_each(ClusterSpec(kind="inline"), gpus) == 16
    assert threads_each(ClusterSpec(threads=6), gpus) == 6 == threads_each(ClusterSpec(threads=6), ())
    elsewhere = ClusterSpec(kind="address", address="tcp://x:1")
    assert threads_each(elsewhere, ("auto",)) == 0 and threads_each(elsewhere, ()) == 1


def test_jobs_of_a_queue_take_one_gpu_and_its_threads(monkeypatch):
    given = []
    fake = types.SimpleNamespace(SLURMCluster=lambda **options: given.append(options))
    monkeypatch.setitem(sys.modules, "dask_jobqueue", fake)
    connect._job_queue(ClusterSpec(kind="jobqueue", threads=8), (), 1)
    connect._job_queue(ClusterSpec(kind="jobqueue", threads=8), ("auto",), 2)
    assert [options["cores"] for options in given] == [1, 8]
    assert "worker_extra_args" not in given[0] and given[1]["worker_extra_args"] == ["--resources", "GPU=2"]
