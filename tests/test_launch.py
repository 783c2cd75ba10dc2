"""Training on two processes of this machine: the same losses as on one, and an end together, whatever happens."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import second_set, two_classes, write_frames_store
from trainings import without_batch_norm as spec

from pipeline import training
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.specs import StreamSpec
from pipeline.training import launch, train
from pipeline.training.__main__ import main
from pipeline.training.launch import TrainingFailed, TrainingJob
from pipeline.training.parallel import World
from pipeline.training.together import OtherDataset

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(catalog, index of a real store)."""
    catalog, fake = two_classes("frames")
    return catalog, write_frames_store(tmp_path_factory.mktemp("store"), fake, catalog)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The curve and the weights of one process."""
    return run(spec(), data, tmp_path_factory.mktemp("alone"))


def run(settings, data, folder, **other):
    train(settings, store_path=data[1], catalog=data[0], folder=folder, inputs_key="in", device="cpu", **other)
    curve = json.loads((folder / "curve.json").read_text())
    return curve, load_checkpoint(folder / "checkpoint.pt").network.state_dict()


def assert_same(found, expected):
    (curve, weights), (expected_curve, expected_weights) = found, expected
    assert curve["steps"] == expected_curve["steps"]
    assert curve["loss"] == pytest.approx(expected_curve["loss"], abs=1e-5)
    assert [v["top1"] for v in curve["validation"]] == [v["top1"] for v in expected_curve["validation"]]
    for name, value in weights.items():
        torch.testing.assert_close(value, expected_weights[name], rtol=1e-3, atol=1e-5)


def test_loading_processes_change_no_bit(data, alone, tmp_path):
    curve, weights = run(spec(loader_workers=2), data, tmp_path)
    assert curve["loss"] == alone[0]["loss"]
    assert all(torch.equal(value, alone[1][name]) for name, value in weights.items())


@pytest.mark.needs_cuda
def test_a_gpu_trains_with_the_loading_processes_of_its_defaults(data, alone, tmp_path):
    settings = spec(precision="float32", steps=4, milestones=(3,), validate_every=2)
    train(settings, store_path=data[1], catalog=data[0], folder=tmp_path, inputs_key="in", device="cuda")
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert curve["loss"][0] == pytest.approx(alone[0]["loss"][0], abs=0.5)  # dropout draws other masks there


def test_two_processes_end_as_one_does(data, alone, tmp_path):
    assert_same(run(spec(processes=2, accumulate=2), data, tmp_path), alone)  # each makes two passes of one item
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "checkpoint.pt", "curve.json"}


def test_two_processes_normalize_their_batches_together(data, tmp_path):
    settings = spec(network="small", learning_rate=1e-3, batch=8)
    folder = tmp_path / "a 100 % odd #1 name? & ü"  # which is no URI
    alone, shared = (run(replace(settings, processes=count), data, folder / str(count)) for count in (1, 2))
    assert_same(shared, alone)


def test_two_processes_end_as_one_does_with_snippets_of_two_data_sets_in_parts(data, tmp_path):
    catalog, fake = second_set("frames")
    other = OtherDataset("more", write_frames_store(tmp_path / "more", fake, catalog), catalog)
    heads, found = spec(steps=6, segments=3, with_dataset="more", with_how="heads"), []
    for settings in (heads, replace(heads, processes=2, accumulate=2)):
        found.append(run(settings, data, tmp_path / str(settings.processes), other=other))
    assert found[0][1]["other_head.weight"].shape == (3, 512)
    assert_same(found[1], found[0])


def child_of_rank(rank, parent=None):
    """The running training process of this rank, waited for."""
    import psutil

    while True:
        for child in psutil.Process(parent).children(recursive=True):
            try:
                if child.environ().get("RANK") == str(rank) and "pipeline.training" in child.cmdline():
                    return child
            except psutil.Error:  # it has just ended
                continue
        time.sleep(0.05)


def when(happened, then):
    """Do something in a thread, once something has happened."""

    def wait():
        while not happened():
            time.sleep(0.02)
        then()

    threading.Thread(target=wait, daemon=True).start()


def test_a_killed_process_ends_all_with_one_message_and_none_listened_to_others(data, tmp_path):
    psutil = pytest.importorskip("psutil")
    listened, before = set(), set(psutil.Process().children())

    def look_and_kill():
        child = child_of_rank(1)
        listened.update(link.laddr.ip for link in child.net_connections("inet") if link.status == psutil.CONN_LISTEN)
        child.kill()

    when((tmp_path / "resume.pt").exists, look_and_kill)
    with pytest.raises(
        TrainingFailed, match="process 1 of the spatial training was killed by SIGKILL; unless someone did"
    ):
        run(spec(processes=2, steps=2000), data, tmp_path)
    assert set(psutil.Process().children()) <= before
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "resume.pt"}
    assert listened == {"127.0.0.1"}


def test_a_training_goes_on_with_another_number_of_processes(data, alone, tmp_path, monkeypatch, capfd):
    real = training.train_step
    monkeypatch.setattr(training, "train_step", lambda now, *batch: real(now, *batch) if now.step < 12 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(spec(), data, tmp_path)
    assert_same(run(spec(processes=2), data, tmp_path), alone)
    assert "spatial: training goes on from step 10 of 20" in capfd.readouterr().err


def test_a_process_whose_parent_is_gone_ends_and_ctrl_c_is_the_parents(data, tmp_path):
    job = TrainingJob(spec(processes=2), data[1], data[0], tmp_path, "in", "cpu")
    job.write()
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [
        sys.executable,
        "-m",
        "pipeline.training",
        str(job.job_folder),
        "--watched",
    ]  # waits for process 1, in vain
    child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **place}, stdin=subprocess.PIPE)
    while not ignores(child, signal.SIGINT):  # the parent hears it too, and will end this process
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    child.stdin.close()
    assert child.wait(60) == -signal.SIGKILL


def ignores(process: subprocess.Popen, number: signal.Signals) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.split("SigIgn:")[1].split()[0], 16) & 1 << number - 1)


def test_what_a_process_raises_is_said_by_the_one_that_waits(data, tmp_path, monkeypatch, capsys):
    job = TrainingJob(spec(processes=2), data[1], data[0], tmp_path, "in", "cpu")
    job.job_folder.mkdir()
    monkeypatch.setenv("RANK", "1")
    assert main([str(job.job_folder)]) == 1  # no job.json
    time.sleep(0.02)
    (job.job_folder / "error-0").write_text("RuntimeError: Connection closed by peer")
    said = launch._what_failed(job, [1, 1])
    assert said.startswith("process 1 of the spatial training failed: FileNotFoundError: ") and "no job.json" in said
    aborted, killed = -signal.SIGABRT, -signal.SIGKILL
    assert launch._what_failed(job, [aborted, 1]) == said  # it has lost the other one
    assert "process 0 of the spatial training was killed by SIGKILL" in launch._what_failed(job, [killed, 1])
    assert "process 1 of the spatial training was killed by SIGTERM" in launch._what_failed(job, [1, -signal.SIGTERM])
    for error in job.job_folder.glob("error-*"):
        error.unlink()
    assert "process 0 of the spatial training was killed by SIGABRT" in launch._what_failed(job, [aborted, None])


@pytest.mark.parametrize(
    ("elsewhere", "message"),
    [
        (
            lambda step, identity, code: (step + 4, identity, code),
            r"\[spatial\] process 1, on far, goes on from step 4, process 0 from step 0",
        ),
        (
            lambda step, identity, code: (step, "other", code),
            r"process 1, on far, has other settings or data; all machines need one folder",
        ),
        (
            lambda step, identity, code: (step, identity, "other"),
            r"process 1, on far, has another version of this project; all machines",
        ),
    ],
)
def test_processes_that_do_not_start_alike_are_refused(data, tmp_path, elsewhere, message):
    class Two(World):
        def gather(self, value):
            return [value, elsewhere(*value) if isinstance(value, tuple) else "far"]

    job = TrainingJob(spec(), data[1], data[0], tmp_path, "in", "cpu")
    with pytest.raises(ValueError, match=message):
        training.train_here(job, Two(), torch.device("cpu"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def group(monkeypatch):
    """Process 1 of 2, whose group of processes only notes when it is joined and left."""
    seen = []
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: seen.append("joined"))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: seen.append("left"))
    return seen


def test_a_process_that_fails_says_so_and_waits_for_nobody(data, tmp_path, monkeypatch, group, capsys):
    """To leave a group of GPUs may take for ever while another process waits in it."""
    job = TrainingJob(spec(processes=2), data[1], data[0], tmp_path, "in", "cpu")
    job.write()
    monkeypatch.setattr("pipeline.training.__main__.train_here", lambda *_: group.append("trained"))
    assert main([str(job.job_folder)]) == 0 and group == ["joined", "trained", "left"]
    group.clear()

    def fail(*_):
        error = ZeroDivisionError("division by zero")
        error.add_note("while reading training clip 'a'")
        raise error

    monkeypatch.setattr("pipeline.training.__main__.train_here", fail)
    assert main([str(job.job_folder)]) == 1 and group == ["joined"]
    said = (job.job_folder / "error-1").read_text()
    assert said == "ZeroDivisionError: division by zero, while reading training clip 'a'"
    assert "in fail" in capsys.readouterr().err  # the traceback of a bug, and of nothing else

    (job.job_folder / "output-1").write_text("Traceback (most recent call last):\n  in fail\n" + 5000 * "x")
    failed = f"process 1 of the spatial training failed: {said}"
    assert launch._what_failed(job, [None, 1]) == failed and "in fail" in capsys.readouterr().err
    monkeypatch.setattr("pipeline.training.__main__.train_here", lambda *_: StreamSpec(resize_px=128))
    assert main([str(job.job_folder)]) == 1 and not capsys.readouterr().err
    (job.job_folder / "output-1").write_text("a warning")
    assert "failed: UserError: [spatial] crop_px" in launch._what_failed(job, [None, 1])
    assert not capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_on_a_full_disk_the_cause_is_said_where_it_can_be(data, tmp_path):
    job = TrainingJob(spec(processes=2), data[1], data[0], tmp_path, "in", "cpu")
    job.job_folder.mkdir()
    (job.job_folder / "error-1").symlink_to("/dev/full")  # writing into it fails, and leaves it empty
    command, place = [sys.executable, "-m", "pipeline.training", str(job.job_folder)], {"RANK": "1"}
    child = subprocess.run(command, cwd=ROOT, env={**os.environ, **place}, capture_output=True, text=True)
    assert child.returncode == 1 and "holds no job.json" in child.stderr and "No space left" not in child.stderr
    (job.job_folder / "output-1").write_text(child.stderr)
    assert "process 1 of the spatial training ended with status 1: FileNotFoundError: " in launch._what_failed(
        job, [None, 1]
    )
    (job.job_folder / "output-1").write_text("")
    said = launch._what_failed(job, [None, 1])
    assert said.endswith(f"ended with status 1: it could not say why; is the disk of {tmp_path} full?")
    (job.job_folder / "error-0").write_text("OSError: no space")
    assert launch._what_failed(job, [1, 1]) == "process 0 of the spatial training failed: OSError: no space"


def test_a_job_is_read_as_it_was_written(data, tmp_path):
    job = TrainingJob(spec(stream="spatial"), data[1], data[0], tmp_path, "in", "cpu")
    job.write()
    assert TrainingJob.read(job.job_folder) == job
    together = spec(with_dataset="more", with_how="classes", with_same=("left:up",))
    other = OtherDataset("more", tmp_path / "more.h5", second_set("frames")[0])
    job = job._replace(spec=together, other=other, start=tmp_path / "start.pt")
    job.write()
    assert TrainingJob.read(job.job_folder) == job
    with pytest.raises(FileNotFoundError, match=r"holds no job.json; a training on several processes writes one"):
        TrainingJob.read(tmp_path)


@pytest.mark.parametrize(("there", "loopback"), [("lo", "lo"), ("lo0", "lo0"), ("eth1", "lo")])
def test_the_processes_of_one_machine_stay_on_loopback(data, tmp_path, monkeypatch, there, loopback):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr("socket.if_nameindex", lambda: [(1, "en0"), (2, there), (3, "eth0")])
    job = TrainingJob(spec(processes=2), data[1], data[0], tmp_path, "in", "cpu")
    found = list(launch._commands(job, 2))
    assert [environment["RANK"] for _, environment in found] == ["0", "1"]
    assert all(
        environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"] == loopback for _, environment in found
    )
    assert all(environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == "2" for _, environment in found)


def test_several_machines_meet_with_torchrun_and_the_command_is_said(data, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "usable_cores", lambda: 8)
    job = TrainingJob(spec(machines=2, rendezvous="gpu1:29500"), data[1], data[0], tmp_path, "in", "cpu")
    [(arguments, environment)] = launch._commands(job, 2)
    assert arguments[0] == "torch.distributed.run" and arguments[-1] == "--watched"
    assert environment == {"OMP_NUM_THREADS": "4"}  # torchrun would give each process one thread
    said = capsys.readouterr().err
    assert (
        "run: OMP_NUM_THREADS=4 torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=gpu1:29500 --rdzv-id=in"
        in said
    )
    assert "--rdzv-conf=join_timeout=86400" in said and "--rdzv-conf=join_timeout=86400" in arguments
    assert f"-m pipeline.training {tmp_path}/job" in said


def test_what_a_process_wrote_before_it_ended_is_shown(data, tmp_path):
    job = TrainingJob(spec(processes=2), data[1], data[0], tmp_path, "in", "cpu")
    job.job_folder.mkdir()
    (job.job_folder / "output-1").write_text("Illegal thing\n")
    assert launch._what_failed(job, [None, 3]) == "process 1 of the spatial training ended with status 3: Illegal thing"


def test_a_process_wants_a_place(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "no RANK in the environment; start it with torchrun" in capsys.readouterr().err
    assert "RANK" not in os.environ


def test_a_process_that_starts_while_ctrl_c_is_pressed_is_ended(data, tmp_path, monkeypatch, hears_ctrl_c):
    real, begun = subprocess.Popen, []

    def started(*arguments, **how):
        begun.append(real(*arguments, **how))
        signal.raise_signal(signal.SIGINT)
        return begun[0]

    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(KeyboardInterrupt):
        launch.launch_processes(TrainingJob(spec(processes=2), data[1], data[0], tmp_path, "in", "cpu"), 2)
    assert len(begun) == 1 and begun[0].poll() == -signal.SIGTERM


def test_an_error_about_a_name_that_is_not_utf8_reaches_the_parent(tmp_path, capfd):
    from pipeline.training.__main__ import _report

    _report(ValueError("bad \udcff name"), tmp_path / "error-0")
    assert (tmp_path / "error-0").read_text(encoding="utf-8") == r"ValueError: bad \udcff name"
