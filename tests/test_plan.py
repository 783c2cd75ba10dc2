"""The plan: what is there, what is missing and what is half done is told without making or writing anything."""
# ruff: noqa: F811 (fixtures of other tests)

import os
import shutil
import subprocess
import sys

import luigi
import pytest
from chains import build, fresh, snapshot
from conftest import ROOT, moving_texture, write_video
from plans import CHAIN, by_hand, planned, row_of, states  # noqa: F401 (fixtures)

from pipeline.__main__ import main as pipeline_main
from pipeline.preprocess import sharding
from tasks import AllSplits, Catalog, Flow, Frames, FullPipeline, PaperTable, TrainStream
from tasks.plan import artifacts_of, main
from tasks.session import may_write
from tasks.states import ArtifactStates, folder_of

# --- what there is


def test_before_and_between_and_after(planned, tmp_path):
    found = planned("--quick")
    assert [row["stage"] for row in found["rows"]] == CHAIN and set(states(found).values()) == {"to make"}
    assert [row["clips"] for row in found["rows"]] == [4, 4, 4, 2, 1, 2, 1, 1, 1, None, None]
    assert found["task"] == "FullPipeline" and found["total"] is found["enough"] is None and not found["refused"]
    assert not (tmp_path / "artifacts").exists()

    assert build(fresh(Frames))
    found = planned("--quick")
    assert list(states(found).values()) == ["is there"] * 2 + ["to make"] * 9
    made = sum(path.stat().st_size for path in fresh(Frames).folder.rglob("*") if path.is_file())
    assert row_of(found, "Frames")["bytes"] == made

    assert build(fresh(FullPipeline))
    found = planned()
    assert set(states(found).values()) == {"is there"}
    assert found["total"] == {"seconds": 0, "disk_bytes": 0, "most_bytes": 0, "unknown": 0} and found["enough"]
    folders = {str(path.parent.relative_to(tmp_path)) for path in (tmp_path / "artifacts").rglob("*.*")}
    assert {os.path.relpath(row["path"], tmp_path) for row in found["rows"]} <= folders


def test_any_task_and_flag_can_be_planned(planned):
    found = planned("Flow", "--quick", "--flow-method", "dis_fast", "--seed", "3")
    assert list(states(found)) == ["Catalog 1", "Frames native", "Flow dis_fast"]
    assert row_of(found, "Flow")["digest"] != row_of(planned("Flow", "--quick"), "Flow")["digest"]
    one = planned("--quick", "TrainStream", "--stream", "spatial")
    assert list(states(one)) == ["Catalog 1", "Frames native", "TrainStream spatial-small-1"]
    both = planned("ExtractFeatures", "--quick")
    assert [row["stage"] for row in both["rows"]].count("ScoreStream") == 6
    assert planned("--flow-method", "dis_fast", "Flow", "--quick")["task"] == "Flow"  # a global flag may come first


def test_stores_come_before_trainings_and_each_artifact_once(tiny):
    luigi.task_register.Register.clear_instance_cache()
    tasks = artifacts_of(AllSplits(dataset=tiny, seeds="0,1"))
    names = [type(task).__name__ for task in tasks]
    first_training = names.index("TrainStream")
    assert names.count("Frames") == names.count("Flow") == 1 and names.count("Catalog") == 4
    assert {"Frames", "Flow"} <= set(names[:first_training]) and names[-1] == "AllSplits"
    assert len({folder_of(task) for task in tasks}) == len(tasks) and names.count("TrainStream") == 4 * 2 * 2
    done = set()
    for task in tasks:
        assert {folder_of(one) for one in task.before()} <= done
        done.add(folder_of(task))


def test_a_table_tells_its_rows_apart_and_why_some_are_not_run(planned):
    found = planned("PaperTable", "--table", "1b", "--quick")
    trained = [row for row in found["rows"] if row["stage"] == "TrainStream"]
    assert len(trained) == 7 and len({row["note"] for row in trained}) == 7
    assert trained[0]["note"].startswith("stack_direction = forward, stack_kind = stack, stack_length = 1, ")
    assert not any("flow_backward" in row["note"] for row in trained)  # which is the same for all
    assert row_of(found, "Flow")["note"] == ""
    assert "row multi-task is not run: needs a second dataset" in row_of(found, "PaperTable")["note"]


def test_videos_without_labels_are_planned_beside_the_dataset(planned, tmp_path, by_hand):
    for name in "xyz":
        write_video(tmp_path / f"other/{name}.avi", moving_texture(9))
    found = planned("ScoreVideos", "--videos", str(tmp_path / "other"))
    datasets = {row["dataset"]: row["clips"] for row in found["rows"] if row["stage"] == "Catalog"}
    assert list(datasets.values()) == [4, 3] and found["total"]["unknown"] == 0
    scores = [row for row in found["rows"] if row["stage"] == "ScoreStream"]
    assert [(row["clips"], row["seconds"]) for row in scores] == [(3, 3.0), (3, 3.0)]  # of 2 frames x 2 crops
    assert found["rows"][-1]["stage"] == "ScoreVideos"


def test_a_finished_table_is_there(tiny, tmp_path):
    table = {"dataset": tiny, "table": "1b", "rows": "l1"}
    assert build(fresh(PaperTable, **table))
    before = snapshot(tmp_path / "artifacts")
    luigi.task_register.Register.clear_instance_cache()
    states = ArtifactStates()
    assert {states.of(task).state for task in artifacts_of(PaperTable(**table))} == {"is there"}
    assert snapshot(tmp_path / "artifacts") == before


# --- what is half done


def test_shards_that_are_current_are_counted(planned, config, by_hand):
    config.set("frames", "shard_clips", "1")
    assert build(fresh(Flow))
    for task in (fresh(Frames), fresh(Flow)):
        task.path.unlink()
        shard = task.folder / "shards" / f"{store_shard(task, 'c')}.h5"
        shard.unlink()
    found = planned("Flow")
    frames, flow = row_of(found, "Frames"), row_of(found, "Flow")
    assert [frames["state"], flow["state"]] == ["goes on", "goes on"] and frames["clips"] == flow["clips"] == 1
    assert frames["note"] == flow["note"] == "3 of 4 shards are there"
    sizes = {clip.id: clip.bytes for clip in fresh(Catalog).read().clips}
    assert frames["seconds"] == pytest.approx(36 * sizes["c"] / sum(sizes.values()))
    assert flow["seconds"] == pytest.approx(32 * sizes["c"] / sum(sizes.values()))


def test_flow_goes_on_from_frames_that_were_cut_by_other_sizes(planned, config):
    config.set("frames", "shard_clips", "1")
    assert build(fresh(Flow))
    flow = fresh(Flow)
    flow.path.unlink()
    (flow.folder / "shards" / f"{store_shard(flow, 'c')}.h5").unlink()
    config.set("frames", "shard_clips", "8")
    found = planned("Flow")
    assert row_of(found, "Frames")["state"] == "is there"
    assert row_of(found, "Flow")["state"] == "goes on" and row_of(found, "Flow")["note"] == "3 of 4 shards are there"


def store_shard(task, video_id: str) -> str:
    """Name of the shard of a clip, by the trie over all clips."""
    clips = fresh(Catalog).read().clips
    plan = sharding.plan_shards(clips, most_clips=1, most_bytes=1 << 30)
    return next(name for name, inside in plan.items() if inside[0].id == video_id)


def test_a_changed_video_makes_one_shard_and_what_follows_again(planned, config, tmp_path):
    config.set("frames", "shard_clips", "1")
    assert build(fresh(FullPipeline))
    write_video(tmp_path / "videos/c.avi", moving_texture(11, seed=99))
    found = planned("--quick")
    assert list(states(found).values()) == ["made anew", "goes on", "goes on", *["made anew"] * 8]
    note = "3 of 4 shards are there; clips that have not changed are copied, which takes less"
    assert row_of(found, "Frames")["note"] == note and row_of(found, "Flow")["clips"] == 1
    assert row_of(found, "Report")["note"] == "unless what it reads comes out as it was"
    assert build(fresh(Catalog))
    again = planned("--quick")
    assert list(states(again).values())[:2] == ["is there", "goes on"] and row_of(again, "Frames")["clips"] == 1


def test_an_interrupted_training_goes_on(planned, config, by_hand, monkeypatch):
    config.set("spatial", "save_every", "1")
    task = fresh(TrainStream, stream="spatial")
    assert build(*task.before())
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.validate", interrupted)
        assert not build(fresh(TrainStream, stream="spatial"))
    found = row_of(planned("TrainStream", "--stream", "spatial"), "TrainStream")
    assert found["state"] == "goes on" and found["note"].startswith("1 of 4 steps are done; 3 steps of 4 clips")
    assert found["seconds"] == 3 * 1 + 2 * 5 * 0.25  # three steps, after two of which one clip is validated

    config.set("spatial", "learning_rate", "0.5")  # another training
    assert row_of(planned("TrainStream", "--stream", "spatial"), "TrainStream")["state"] == "to make"
    config.set("spatial", "learning_rate", "0.01")
    fresh(Frames).path.unlink()
    again = row_of(planned("TrainStream", "--stream", "spatial", "--quick"), "TrainStream")
    assert again["state"] == "to make" and "goes on if what it reads is as it was" in again["note"]


def interrupted(run, validation):
    raise KeyError("interrupted on purpose")


# --- what cannot be known


def test_videos_that_are_absent_are_said_in_their_row(planned, config):
    config.set("dataset.four", "videos", "absent")
    found = planned()
    assert set(states(found).values()) == {"not known"}
    assert row_of(found, "Catalog")["note"].startswith("[dataset] videos: the folder 'absent' does not exist")
    assert found["refused"] == [row_of(found, "Catalog")["note"]] and found["total"]["unknown"] == len(CHAIN)


def test_videos_that_were_taken_away_hold_up_nothing_that_was_made(planned, tmp_path, by_hand):
    assert build(fresh(Frames))
    shutil.move(tmp_path / "videos", tmp_path / "elsewhere")
    found = planned("Flow")
    assert list(states(found).values()) == ["is there", "is there", "to make"] and row_of(found, "Flow")["seconds"]


def test_weights_that_are_absent_hold_up_one_stream(planned, config):
    config.set("spatial", "start", "none.pth")
    found = planned("--quick")
    said = "[spatial] start is 'none.pth', which is no file; allowed: scratch, imagenet, or a weights file"
    assert row_of(found, "TrainStream")["note"] == said and found["refused"] == [said]
    known = {name: state for name, state in states(found).items() if state != "not known"}
    assert len(known) == 3 + 3 and all("temporal" in name for name in list(known)[3:])


def test_weights_of_raft_are_not_downloaded(planned, config, monkeypatch, tmp_path, by_hand):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", interrupted)
    config.set("flow", "method", "raft_small")
    found = planned("Flow")
    said = "the first use downloads raft_small_C_T_V2-01064c6d.pth; only then can it be timed"
    assert row_of(found, "Flow")["note"] == said and row_of(found, "Flow")["state"] == "to make"
    assert (
        planned("PaperTable", "--table", "1b", "--quick")["task"] == "PaperTable"
    )  # which looks at more than its rows
    assert not (tmp_path / "torch").exists() and may_write()


def test_the_demo_is_planned_before_it_is_written(planned, config, tmp_path):
    folder = tmp_path / "demo"
    lists = {"videos": str(folder / "videos"), "lists": str(folder / "ucfTrainTestlist")}
    config.read_dict({"dataset.demo": {"layout": "ucf101", "generator": "demo", **lists, "split": "1"}})
    config.read_dict({"demo": {"groups": "6", "clips": "1", "frames": "8"}})
    found = planned("--dataset", "demo")
    assert [row["stage"] for row in found["rows"]] == ["DemoVideos", *CHAIN] and not folder.exists()
    assert found["total"]["unknown"] == 0 and row_of(found, "DemoVideos")["label"] == "demo"
    assert build(fresh(Frames, dataset="demo"))
    again = planned("--dataset", "demo", "--quick")
    assert list(states(again).values()) == ["is there"] * 3 + ["to make"] * 9
    # the last two columns of clips come from lists that did not exist
    assert [row["clips"] for row in again["rows"][1:]] == [row["clips"] for row in found["rows"][1:]]
    written = row_of(again, "DemoVideos")["bytes"]
    assert row_of(found, "DemoVideos")["disk_bytes"] == pytest.approx(written, rel=0.15)


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FullPipline"], "error: No task FullPipline. Did you mean: FullPipeline"),
        (["TrainStream"], "error: TrainStream requires the 'stream' parameter to be set"),
        (["Flow", "--flow-method", "tvl2"], r"error: \[flow\] method is 'tvl2'; allowed: tvl1"),
        (["--dataset", "fuor"], "error: dataset 'fuor' does not exist; did you mean 'four'"),
        (["--temporal-network", "nonsense"], "error: .*nonsense"),
        (["--split", "7"], "error: split '7' does not exist"),
        (["AllSplits", "--seeds", "x"], "error: --seeds is 'x'"),
    ],
)
def test_mistakes_are_refused_in_a_line(config, tmp_path, arguments, message):
    luigi.task_register.Register.clear_instance_cache()
    before = snapshot(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main([*arguments, "--quick"])
    assert snapshot(tmp_path) == before


def test_a_damaged_artifact_is_refused_with_what_to_do(config):
    assert build(fresh(Frames))
    fresh(Frames).path.write_bytes(b"damaged")
    luigi.task_register.Register.clear_instance_cache()
    with pytest.raises(SystemExit, match="is no HDF5 file, or a damaged one .*; delete it and run its stage again"):
        main(["Flow", "--quick"])


def test_faults_of_the_program_keep_their_traceback(config, monkeypatch):
    def broken(root, quick):
        raise TypeError("of the program")

    monkeypatch.setattr("tasks.plan.plan", broken)
    with pytest.raises(TypeError, match="of the program"):
        main(["--quick"])


# --- the command


def test_the_command_is_a_process_of_its_own(overlay, tmp_path):
    command = [sys.executable, "-m", "pipeline", "plan"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **overlay}
    before = snapshot(tmp_path)
    for arguments, status, said in [
        (["Flow", "--quick", "--flow-method", "dis_ultrafast"], 0, "Flow: 0 of 3 artifacts are there"),
        (
            ["Flow", "--flow-metod", "tvl1"],
            2,
            "plan: error: flag --flow-metod does not exist; did you mean '--flow-method'?",
        ),
        (["Flow", "--flow-method", "tvl2"], 1, "error: [flow] method is 'tvl2'; allowed"),
        (["--help"], 0, "measured on a few"),
    ]:
        done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, env=env)
        assert done.returncode == status and said in done.stdout + done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert snapshot(tmp_path) == before


def test_the_command_becomes_that_process(monkeypatch):
    """So signals reach it, and nothing is left of it."""
    became = []
    monkeypatch.setattr("os.execv", lambda path, command: became.append((path, command)))
    pipeline_main(["plan", "Flow", "--quick"])
    assert became == [(sys.executable, [sys.executable, "-m", "tasks.plan", "Flow", "--quick"])]


@pytest.mark.parametrize(
    ("stdout", "status", "said"), [(">&-", 0, ""), (">/dev/full", 1, "error: [Errno 28] No space")]
)
def test_a_plan_that_nobody_can_read(overlay, stdout, status, said):
    command = f"{sys.executable} -m pipeline plan Catalog --quick {stdout}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), **overlay}
    done = subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=env)
    assert done.returncode == status and done.stderr.startswith(said) and done.stderr.count("\n") == status
