"""What a plan says of time and disk, by measurements that are made up, and once by real ones."""
# ruff: noqa: F811 (fixtures of other tests)

from pathlib import Path

import luigi
import pytest
from chains import build, fresh
from plans import CHAIN, by_hand, planned, row_of  # noqa: F401 (fixtures)

from pipeline.doctor import machine
from tasks import Frames, FullPipeline
from tasks.plan import main

# --- what it would take


def test_a_chain_by_hand(planned, config, by_hand):
    config.set("cluster", "workers", "1")
    found = planned()
    seconds = [row["seconds"] for row in found["rows"]]
    # 36 frames; 32 pairs; 4 steps and 2 validations of a clip's 5 views; 1 or 2 clips x 2 frames x 2 crops
    size = sum(path.stat().st_size for path in Path(config.get("dataset.four", "videos")).iterdir())
    assert seconds == pytest.approx([size * 0.25, 36, 32, 6.5, 1, 6.5, 1, 1, 1, 0, 0])
    assert row_of(found, "Frames")["disk_bytes"] == 36 * (84 + 16) + 4 * 6144
    assert row_of(found, "TrainStream")["meanwhile_bytes"] == 3000
    assert found["total"]["seconds"] == pytest.approx(sum(seconds)) and found["total"]["unknown"] == 0
    assert [name for name, *_ in by_hand].count("measure.videos") == 1
    assert [name for name, *_ in by_hand].count("measure_networks.network") == 2


def test_flow_is_measured_on_frames_that_are_there(planned, by_hand):
    assert build(fresh(Frames))
    assert row_of(planned("Flow"), "Flow")["seconds"] == 32
    assert [name for name, *_ in by_hand] == ["measure.cached", "measure.pair"]


def test_one_split_reads_the_videos_for_all(planned, tiny, by_hand):
    found = planned("AllSplits", "--dataset", tiny)
    read = [row["seconds"] > 0 for row in found["rows"] if row["stage"] == "Catalog"]
    assert read == [True, False, False, False]


def test_work_is_shared_by_workers_of_this_machine(planned, config, by_hand):
    config.read_dict({"frames": {"shard_clips": "1"}, "cluster": {"kind": "local", "workers": "2"}})
    assert row_of(planned("Frames"), "Frames")["seconds"] == 18
    config.set("cluster", "workers", "9")  # there are four shards
    assert row_of(planned("Frames"), "Frames")["seconds"] == 9
    config.read_dict({"cluster": {"kind": "jobqueue", "workers": "9"}})
    row = row_of(planned("Flow"), "Flow")
    assert row["seconds"] == 32 and row["note"] == "on one worker like this machine"


def test_what_cannot_be_measured_is_said_in_its_row(planned, monkeypatch, by_hand):
    def broken(*given, **named):
        raise RuntimeError("the driver has gone away")

    monkeypatch.setattr("pipeline.estimates.measure.pair", broken)
    found = planned()
    assert row_of(found, "Flow")["note"] == "cannot be measured: the driver has gone away"
    assert row_of(found, "Flow")["seconds"] is None and row_of(found, "Frames")["seconds"] == 36
    assert found["total"]["unknown"] == 1


def test_it_measures_for_real(planned):
    found = planned()
    assert found["total"]["seconds"] > 0 and found["total"]["unknown"] == 0
    assert build(fresh(FullPipeline))
    for stage in ("Frames", "Flow", "TrainStream"):
        row, made = row_of(found, stage), row_of(planned("--quick"), stage)
        assert row["disk_bytes"] == pytest.approx(made["bytes"], rel=0.3)


def test_networks_are_timed_on_one_thread_of_a_busy_machine(planned, monkeypatch, by_hand):
    for busy in (True, False):
        monkeypatch.setattr(machine, "load", lambda busy=busy: {"load": 5.0, "cores": 2, "busy": busy})
        planned()
        assert by_hand[-1][2]["one_thread"] == busy


# --- for people


def shown(capsys, *arguments: str) -> list[str]:
    luigi.task_register.Register.clear_instance_cache()
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table_ends_with_what_it_comes_to(config, by_hand, monkeypatch, capsys):
    monkeypatch.setattr(machine, "load", lambda: {"load": 0.5, "cores": 2, "busy": False})
    monkeypatch.setattr(machine, "resources", lambda artifacts: {"disk_free": 3 << 30})
    lines = shown(capsys, "Flow")
    assert lines[0].split() == ["stage", "label", "digest", "state", "on", "disk", "clips", "time", "disk", "note"]
    assert lines[2].split()[:8] == ["Frames", "native", row_digest(Frames), "to", "make", "4", "36", "s"]
    artifacts = config.get("run", "artifacts")
    assert lines[5] == "Flow: 0 of 3 artifacts are there"
    assert lines[6].endswith("if it is otherwise idle, not counting process start and data loading")
    assert lines[7].endswith(f"at most on the way; 3.0 GiB are free for {artifacts}") and len(lines) == 8
    assert not any(line.endswith(" ") for line in lines)


def row_digest(task: type) -> str:
    return fresh(task).digest


def test_a_method_that_knows_no_gpu_is_timed_on_the_cpu(planned, by_hand):
    assert build(fresh(Frames))
    assert row_of(planned("Flow", "--device", "cuda:1"), "Flow")["seconds"] == 32


def test_a_disk_that_does_not_suffice_is_said(config, by_hand, monkeypatch, capsys):
    monkeypatch.setattr(machine, "resources", lambda artifacts: {"disk_free": 10})
    monkeypatch.setattr(machine, "load", lambda: {"load": 5.04, "cores": 2, "busy": True})
    lines = shown(capsys, "Flow")
    assert lines[-1] == "WARNING: there is not enough disk space"
    assert lines[-3].endswith("; but 5.0 processes share its 2 cores now, so it takes longer")
    lines = shown(capsys, "TrainStream", "--stream", "spatial")
    assert lines[-3].endswith("takes longer; networks were timed on one core: up to 2 x too long")


def test_states_alone(config, tmp_path, capsys):
    lines = shown(capsys, "--quick", "Frames")
    assert lines[0].split() == ["stage", "label", "digest", "state", "on", "disk", "clips", "note"]
    assert len(lines) == 6 and "free for" in lines[-1]
    assert build(fresh(Frames))
    assert shown(capsys, "Frames")[-2] == "Frames: 2 of 2 artifacts are there"


def test_what_luigi_would_refuse_is_said_last(config, capsys):
    config.set("dataset.four", "videos", "absent")
    lines = shown(capsys)
    assert "luigi would refuse to begin, as files are missing: see the notes" in lines
    assert lines[-1] == f"{len(CHAIN)} artifacts could not be estimated"


def test_a_reader_that_has_seen_enough_ends_the_command(config, monkeypatch):
    monkeypatch.setattr("tasks.plan._print", broken_pipe)
    monkeypatch.setattr("os.dup2", lambda *given: None)
    assert main(["--quick"]) == 0


def broken_pipe(found):
    raise BrokenPipeError(32, "Broken pipe")
