"""Workers of a running scheduler and of a job queue, and what is said where workers are missing."""

import contextlib
import dataclasses
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import cloudpickle
import pytest
from distributed import Status
from work import double, fail_on_three

from pipeline import cluster, preprocess
from pipeline.cluster import Workers, portable
from pipeline.preprocess.jobs import make_shard
from pipeline.specs import ClusterSpec
from pipeline.system import digests
from pipeline.system.errors import MachineFault, StageFailed


def test_a_running_scheduler_is_used_by_its_address(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster,
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
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with LocalCluster(**options) as elsewhere:
        spec = ClusterSpec(kind="address", address=elsewhere.scheduler_address, in_flight=1)
        with pytest.raises(KeyError), Workers(spec, most=2) as workers:
            for _, result in workers.run(fail_or_write_late, [Late(tmp_path / "late"), Late(None)]):
                raise result
        assert (tmp_path / "late").exists()
    assert f"jobs still running at {spec.address}: 1; waiting for them to end" in capsys.readouterr().err


def test_a_job_queue_needs_its_package():
    pytest.importorskip("distributed")
    if "dask_jobqueue" in sys.modules or _installed("dask_jobqueue"):
        pytest.skip("dask-jobqueue is installed here")
    with pytest.raises(ValueError, match="kind = jobqueue needs dask-jobqueue: pip install dask-jobqueue"):
        Workers(ClusterSpec(kind="jobqueue"), most=1).__enter__()


def _installed(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_a_worker_elsewhere_runs_jobs_of_its_own_version_only(monkeypatch):
    run = portable.carrier()
    assert run(portable.packed(double, 3)) == (True, 6)
    monkeypatch.setattr(portable, "code_key", lambda: "of another version")
    done, why = run(portable.packed(double, 3))
    assert not done and "another version of the project, at" in why and sys.executable in why


def test_the_code_has_another_key_if_a_line_differs(tmp_path, monkeypatch):
    key = portable.code_key()
    shutil.copytree(digests.CODE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(digests, "CODE", tmp_path / "copy")
    assert portable.code_key.__wrapped__() == key
    with (tmp_path / "copy/flow/tvl1.py").open("a") as file:
        file.write("# changed")
    assert portable.code_key.__wrapped__() != key


def test_a_worker_without_the_project_says_so():
    code = "import sys, pickle; sys.modules['pipeline'] = None; run = pickle.load(sys.stdin.buffer); print(run(b'')[1])"
    sent = cloudpickle.dumps(portable.carrier())
    said = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True).stdout.decode()
    assert "lacks this version of the project: ModuleNotFoundError: " in said


def test_a_worker_that_has_loaded_code_without_this_check_is_refused():
    code = "import sys, pickle; sys.modules['pipeline.jobs'] = None; run = pickle.load(sys.stdin.buffer); print(run(b'')[1])"
    sent = cloudpickle.dumps(portable.carrier())
    said = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True).stdout.decode()
    assert "has loaded another version of the project; restart it" in said


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
    options = {"n_workers": 0, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "processes": False}
    options["memory_limit"] = 0
    with LocalCluster(**options, host="127.0.0.1", protocol="tcp") as elsewhere:
        yield elsewhere
        cluster.CACHE.close()


def test_that_the_only_worker_is_paused_is_reported(scheduler, capsys):
    """As dask pauses one that takes 80 % of its memory; it may never come back."""
    scheduler.scale(1)
    scheduler.wait_for_workers(1)
    (worker,) = scheduler.scheduler.workers.values()
    (here,) = scheduler.workers.values()
    here.status = Status.paused
    while worker.status != Status.paused:
        time.sleep(0.01)

    def resume():
        here.status = Status.running

    later = threading.Timer(1.0, resume)
    later.start()
    with Workers(ClusterSpec(kind="address", address=scheduler.scheduler_address), most=2) as workers:
        assert list(workers.run(slowly_double, [4])) == [(4, 8)]
    later.join()
    said = capsys.readouterr().err
    assert (
        len(re.findall("no worker at tcp.* takes another job: dask has paused 1, for their use of memory; start", said))
        == 1
    )
    assert said.count("1; going on") == 1


def test_that_no_worker_is_there_is_reported_and_when_one_comes(scheduler, capsys):
    come = threading.Timer(1.0, scheduler.scale, [1])
    come.start()
    with Workers(ClusterSpec(kind="address", address=scheduler.scheduler_address), most=2) as workers:
        assert list(workers.run(slowly_double, [4])) == [(4, 8)]
    come.join()
    said = capsys.readouterr().err
    assert said.count("no worker at tcp://127.0.0.1:") == 1
    assert len(re.findall(r"workers at tcp://127.0.0.1:\d+: 1; going on", said)) == 1


def test_jobs_that_no_worker_has_begun_are_taken_back_after_ctrl_c(scheduler, tmp_path, capsys, hears_ctrl_c):
    """With one worker of one thread, one job has begun and the others wait; without any worker, all do."""
    spec = ClusterSpec(kind="address", address=scheduler.scheduler_address)
    scheduler.scale(1)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Workers(spec, most=9) as workers:
        for _ in workers.run(write_slowly, [tmp_path / str(number) for number in range(9)]):
            raise KeyboardInterrupt
    assert f"jobs still running at {spec.address}: 1; waiting for them" in capsys.readouterr().err
    scheduler.scale(0)
    time.sleep(2)  # a job that went on would have begun to write
    assert {path.read_text() for path in tmp_path.iterdir()} == {"whole"} and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(KeyboardInterrupt), Workers(spec, most=1) as workers, _interrupted_soon():
        list(workers.run(double, [1, 2]))
    assert "jobs still running" not in capsys.readouterr().err and time.monotonic() - begun < 60


def write_slowly(path):
    path.write_text("half")
    time.sleep(1.5)  # long enough to be found at work on a busy machine
    path.write_text("whole")


@contextlib.contextmanager
def _interrupted_soon():
    soon = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    soon.start()
    yield
    soon.join()


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
    assert all("are gone and did not come back" in str(result) for result in results)


def test_a_job_that_a_worker_elsewhere_refuses_is_a_fault_of_the_machine(scheduler, monkeypatch):
    monkeypatch.setattr(cluster, "carrier", lambda: lambda packed: (False, "it has another version"))
    scheduler.scale(1)
    with Workers(ClusterSpec(kind="address", address=scheduler.scheduler_address), most=2) as workers:
        ((_, refused),) = workers.run(double, [4])
    assert isinstance(refused, MachineFault) and str(refused) == "it has another version"


def test_where_a_job_failed_elsewhere_is_reported(scheduler):
    """On one of many machines a disk may not be mounted."""
    scheduler.scale(1)
    with Workers(ClusterSpec(kind="address", address=scheduler.scheduler_address), most=2) as workers:
        ((_, failed),) = workers.run(fail_on_three, [3])
    where = f"on the worker on {socket.gethostname()} ({sys.executable})"
    assert isinstance(failed, ValueError) and failed.__notes__ == [where]
    job = types.SimpleNamespace(kind="frames", path="s.h5")
    told = f"frames: shard s.h5 could not be made: ValueError: three is refused, {where}. Finished shards are kept"
    with pytest.raises(StageFailed, match=re.escape(told)):
        preprocess._units_of(job, failed)


def test_a_worker_that_does_not_see_the_artifacts_makes_nothing(tmp_path):
    job = types.SimpleNamespace(path=tmp_path / "artifacts/frames/shards/s.h5", make=lambda: 1 / 0)
    with pytest.raises(
        MachineFault, match=f"{socket.gethostname()} does not see .*shards; every worker needs the folder"
    ):
        make_shard(job)
    assert not list(tmp_path.iterdir())


def test_workers_that_cannot_be_started_are_a_fault_of_the_machine(monkeypatch):
    def fail(**options):
        try:
            raise OSError(24, "Too many open files")
        except OSError as error:
            raise RuntimeError("Nanny failed to start.") from error

    monkeypatch.setattr("distributed.LocalCluster", fail)
    with pytest.raises(MachineFault, match="workers cannot be started on this machine: OSError: .* Too many open"):
        Workers(ClusterSpec(workers=1), most=1).__enter__()
