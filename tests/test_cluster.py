"""Jobs run somewhere, in bounded number, and a job that dies does not take the others along."""

import dataclasses
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import cloudpickle
import pytest

from pipeline import cluster, connect, portable
from pipeline.cluster import Workers, shared_by, threads_each, worker_count
from pipeline.errors import MachineFault, WorkerDied
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
    assert "its worker processes died, each time: a crash" in str(results[3])


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


def test_a_running_scheduler_is_used_by_its_address(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
        Workers(ClusterSpec(kind="address", address=cluster.scheduler_address), most=3) as workers,
    ):
        assert sorted(workers.run(double, [1, 2])) == [(1, 2), (2, 4)]
        assert workers._width() == 2 * 1  # as many threads as the scheduler has, however many cores are here


@dataclasses.dataclass(frozen=True)
class Late:
    path: Path | None


def fail_or_write_late(job):
    if job.path is None:
        raise KeyError("no")
    time.sleep(1)
    job.path.write_text("")


def test_after_an_error_no_job_of_a_running_scheduler_writes_any_more(tmp_path, monkeypatch, capsys):
    from distributed import LocalCluster

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with LocalCluster(**options) as elsewhere:
        spec = ClusterSpec(kind="address", address=elsewhere.scheduler_address, in_flight=1)
        with pytest.raises(KeyError), Workers(spec, most=2) as workers:
            for _, result in workers.run(fail_or_write_late, [Late(tmp_path / "late"), Late(None)]):
                raise result
        assert (tmp_path / "late").exists()
    assert f"jobs still running at {spec.address}: 1; waiting for them to end" in capsys.readouterr().err


def test_workers_on_a_gpu_are_not_kept(tmp_path):
    with Workers(ClusterSpec(), most=1, devices=("cuda:0",)) as workers:
        list(workers.run(work_on_device, jobs_on(tmp_path, 1)))
    ((_, pid, *_),) = log_of(tmp_path / "log")
    assert not Path(f"/proc/{pid}").exists()  # idle, it would keep memory that a training wants


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


# --- other machines


def test_a_worker_elsewhere_runs_jobs_of_its_own_version_only(monkeypatch):
    run = portable.carrier()
    assert run(portable.packed(double, 3)) == (True, 6)
    monkeypatch.setattr(portable, "code_key", lambda: "of another version")
    done, why = run(portable.packed(double, 3))
    assert not done and "another version of the project, at" in why and sys.executable in why


def test_the_code_has_another_key_if_a_line_differs(tmp_path, monkeypatch):
    key = portable.code_key()
    shutil.copytree(portable._CODE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(portable, "_CODE", tmp_path / "copy")
    assert portable.code_key.__wrapped__() == key
    with (tmp_path / "copy/flow/tvl1.py").open("a") as file:
        file.write("# changed")
    assert portable.code_key.__wrapped__() != key


def test_a_worker_without_the_project_says_so():
    code = "import sys, pickle; sys.modules['pipeline'] = None; run = pickle.load(sys.stdin.buffer); print(run(b'')[1])"
    sent = cloudpickle.dumps(portable.carrier())
    said = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True).stdout.decode()
    assert "has not this version of the project: ModuleNotFoundError: " in said


def test_a_worker_that_has_loaded_code_without_this_check_is_refused():
    code = "import sys, pickle; sys.modules['pipeline.jobs'] = None; run = pickle.load(sys.stdin.buffer); print(run(b'')[1])"
    sent = cloudpickle.dumps(portable.carrier())
    said = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True).stdout.decode()
    assert "has loaded another version of the project, which had no such check; restart it" in said


def test_workers_that_start_while_ctrl_c_is_pressed_are_closed(monkeypatch, hears_ctrl_c):
    closed = []

    class Started:
        def __init__(self, **options):
            signal.raise_signal(signal.SIGINT)

        def close(self):
            closed.append(self)

    monkeypatch.setattr("distributed.LocalCluster", Started)
    with pytest.raises(KeyboardInterrupt):
        Workers(ClusterSpec(workers=1), most=1).__enter__()
    assert len(closed) == 1


@pytest.fixture
def scheduler(monkeypatch):
    """A dask cluster in this process that has no worker yet."""
    from distributed import LocalCluster

    monkeypatch.setattr(cluster, "_PATIENCE_SECONDS", 0.1)
    options = {"n_workers": 0, "threads_per_worker": 1, "dashboard_address": None, "processes": False}
    with LocalCluster(**options, host="127.0.0.1", protocol="tcp") as elsewhere:
        yield elsewhere
        cluster._KEPT.close()


def test_that_no_worker_is_there_is_told_and_when_one_comes(scheduler, capsys):
    come = threading.Timer(1.0, scheduler.scale, [1])
    come.start()
    with Workers(ClusterSpec(kind="address", address=scheduler.scheduler_address), most=2) as workers:
        assert list(workers.run(slowly_double, [4])) == [(4, 8)]
    come.join()
    said = capsys.readouterr().err
    assert said.count("no worker at tcp://127.0.0.1:") == 1
    assert len(re.findall(r"workers at tcp://127.0.0.1:\d+: 1; going on", said)) == 1


def slowly_double(job):
    time.sleep(1)
    return 2 * job


def test_workers_of_this_machine_that_do_not_come_back_are_not_waited_for(scheduler):
    from distributed import Client, as_completed

    with Client(scheduler) as client:
        running = {client.submit(double, number, pure=False): number for number in range(3)}
        with cluster._watching(client, running, give_up=True):
            results = [cluster._result_of(future, carried=False) for future in as_completed(running)]
    assert [type(result) for result in results] == [MachineFault] * 3
    assert all("are gone and do not come back" in str(result) for result in results)


def test_a_job_that_a_worker_elsewhere_refuses_is_a_fault_of_the_machine(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "carrier", lambda: lambda packed: (False, "it has another version"))
    scheduler.scale(1)
    with Workers(ClusterSpec(kind="address", address=scheduler.scheduler_address), most=2) as workers:
        ((_, refused),) = workers.run(double, [4])
    assert isinstance(refused, MachineFault) and str(refused) == "it has another version"


def test_workers_that_cannot_be_started_are_a_fault_of_the_machine(monkeypatch):
    def fail(**options):
        try:
            raise OSError(24, "Too many open files")
        except OSError as error:
            raise RuntimeError("Nanny failed to start.") from error

    monkeypatch.setattr("distributed.LocalCluster", fail)
    with pytest.raises(MachineFault, match="workers cannot be started on this machine: OSError: .* Too many open"):
        Workers(ClusterSpec(workers=1), most=1).__enter__()


# --- devices


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
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None, "host": "127.0.0.1"}
    with LocalCluster(**options, resources=resources) as elsewhere:
        spec = ClusterSpec(kind="address", address=elsewhere.scheduler_address)
        with Workers(spec, most=6, devices=("auto",)) as workers:
            assert len(list(workers.run(work_on_device, jobs_on(tmp_path, 6)))) == 6
        cluster._KEPT.close()
    log = log_of(tmp_path / "log")
    assert {device for device, *_ in log} == {"auto"}  # the worker finds out
    assert overlap([(begin, end) for *_, begin, end in log]) == (resources != {"GPU": 1})


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


def test_work_is_shared_on_this_machine_alone():
    local = ClusterSpec(kind="local", workers=4)
    assert [shared_by(local, most=jobs) for jobs in (0, 1, 3, 9)] == [1, 1, 3, 4]
    assert shared_by(local, ("cuda:0", "cuda:1"), most=9) == 2
    elsewhere = ClusterSpec(kind="address", address="tcp://x:1"), ClusterSpec(kind="jobqueue", workers=4)
    assert [shared_by(spec, most=9) for spec in (ClusterSpec(kind="inline", workers=4), *elsewhere)] == [1, 1, 1]
