"""What a change makes again, and what it leaves alone."""

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import luigi
import numpy as np
import pytest
import torch
from chains import build, fresh, shards_and_index, snapshot
from conftest import moving_texture, write_video
from torchvision.models.optical_flow import raft_small

from pipeline import store
from pipeline.artifacts import damage
from pipeline.flow import estimate
from pipeline.networks import checkpoint
from pipeline.preprocess import make_flow
from pipeline.scores import Scores
from pipeline.specs import ClusterSpec
from pipeline.system import locks
from pipeline.system.digests import file_hash
from pipeline.system.errors import StageFailed, UserError
from tasks import Catalog, Flow, Frames, FullPipeline, Fuse, Report, ScoreStream, TrainStream
from tasks.session import cache_scope


def test_a_changed_flow_setting_redoes_flow_and_what_follows(config, tmp_path):
    assert build(fresh(FullPipeline))
    frames, spatial = fresh(Frames).path, fresh(TrainStream, stream="spatial").path
    flow, temporal = fresh(Flow).path, fresh(TrainStream, stream="temporal").path
    times = frames.stat().st_mtime_ns, spatial.stat().st_mtime_ns
    config.set("flow", "bound_px", "10")
    assert build(fresh(FullPipeline))
    assert (fresh(Frames).path, fresh(TrainStream, stream="spatial").path) == (frames, spatial)
    assert (frames.stat().st_mtime_ns, spatial.stat().st_mtime_ns) == times
    assert fresh(Flow).path != flow and fresh(TrainStream, stream="temporal").path != temporal
    assert flow.is_file()  # the old one stays


def test_a_setting_that_cannot_change_the_result_redoes_nothing(config):
    assert build(fresh(Frames))
    for section, name, value in [
        ("cluster", "workers", "1"),
        ("frames", "timeout_seconds", "5"),
        ("run", "device", "auto"),
    ]:
        config.set(section, name, value)
    assert fresh(Frames).complete()


def swap_b_and_d(lists):
    """Make the training clip of a class its test clip, and the other way round; returns the list as it was."""
    before = lists.read_text()
    lists.write_text(before.replace("b,train", "b,test").replace("d,test", "d,train"))
    return before


def test_what_another_run_remade_is_not_joined_with_what_was_made_before(config, tmp_path):
    """The stream was trained; then its training clips became the test clips, while this command went on."""
    assert build(fresh(TrainStream, stream="spatial"))
    score = fresh(ScoreStream, stream="spatial")
    before = swap_b_and_d(tmp_path / "clips.csv")
    assert build(fresh(Catalog))
    with pytest.raises(StageFailed, match="what it reads has been replaced since this command began"):
        score.run()
    assert not score.complete() and not score.folder.joinpath("scores.h5").exists()
    (tmp_path / "clips.csv").write_text(before)
    assert build(fresh(ScoreStream, stream="spatial"))


def test_a_training_records_the_catalog_that_it_reads(config, tmp_path):
    assert build(fresh(Frames))
    train = fresh(TrainStream, stream="spatial")
    assert not train.complete()  # looks at the catalog of now
    swap_b_and_d(tmp_path / "clips.csv")
    assert build(fresh(Catalog))
    train.run()
    assert fresh(TrainStream, stream="spatial").complete()
    of_now = {clip.content for clip in fresh(Catalog).read().clips if clip.part == "train"}
    assert checkpoint.clips_seen(train.weights)[0] == of_now


def test_a_store_stays_as_it_is_while_a_stage_reads_it(config, monkeypatch):
    assert build(fresh(Frames))
    train, frames, free = fresh(TrainStream, stream="spatial"), fresh(Frames).folder, []

    def look(self):
        for folder in (frames, fresh(Catalog).folder):  # a catalog is read at once
            with locks.try_exclusive_lock(folder) as unlocked:
                free.append(unlocked)

    assert not train.complete()
    monkeypatch.setattr(TrainStream, "make", look)
    train.run()
    look(train)
    assert free == [False, True, True, True]


def test_a_store_that_needs_no_change_is_not_waited_for(tiny, capsys):
    """Another split shares it, which is known only once that split's catalog is there."""
    assert build(fresh(Frames, dataset=tiny))
    other = {"dataset": tiny, "split": "anna"}
    with locks.reading(fresh(Frames, dataset=tiny).folder):
        assert not fresh(Frames, **other).complete() and build(fresh(Frames, **other))
    assert "waiting" not in capsys.readouterr().err


def test_what_failed_in_a_store_is_told_with_what_retries_it(config, tmp_path, capsys):
    """A higher time limit changes no result, and so makes nothing again."""
    config.set("frames", "max_bad_fraction", "0.5")
    (tmp_path / "videos/d.avi").write_bytes(b"")
    assert build(fresh(Flow))
    capsys.readouterr()
    assert build(fresh(TrainStream, stream="temporal"))
    said = capsys.readouterr().err
    told = f"1 of 4 clips have failed; `python -m pipeline repair {fresh(Frames).folder} --failed` makes the next run"
    assert told in said
    assert said.count("clips have failed") == 1  # Flow can do nothing about it


def test_a_smaller_share_that_may_fail_counts_for_a_store_that_is_there(config, tmp_path, monkeypatch):
    config.set("frames", "max_bad_fraction", "0.25")
    (tmp_path / "videos/d.avi").write_bytes(b"")
    assert build(fresh(Flow)) and fresh(Flow).complete()
    config.set("frames", "max_bad_fraction", "0.2")
    told = r"Frames native: 1 of 4 clips have failed, more than \[frames\] max_bad_fraction = 0.2 allows; fix or remov"
    with pytest.raises(UserError, match=told):
        fresh(TrainStream, stream="temporal").complete()
    monkeypatch.setattr("tasks.settings.from_command_line", lambda: True)
    with pytest.raises(SystemExit, match=f"error: {told}"):
        fresh(Flow).complete()


def test_weights_replaced_since_the_command_began_start_no_training(config, tmp_path):
    start = tmp_path / "start.pt"
    start.write_bytes(b"one")
    config.set("spatial", "start", str(start))
    assert build(fresh(Frames))
    train = fresh(TrainStream, stream="spatial")
    with cache_scope():
        assert train.digest
        start.write_bytes(b"two")
        with pytest.raises(StageFailed, match="what it reads has been replaced since this command began"):
            train.run()


def test_a_changed_video_redoes_its_shard_and_what_follows(config, tmp_path, capsys):
    config.set("frames", "shard_clips", "1")
    assert build(fresh(Flow))
    folder = fresh(Frames).folder
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "shards").iterdir()}
    write_video(tmp_path / "videos/c.avi", moving_texture(11, seed=99))
    assert not fresh(Catalog).complete() and not fresh(Flow).complete()
    assert build(fresh(Flow)) and fresh(Frames).folder == folder
    changed = {p.name for p in (folder / "shards").iterdir() if before.get(p.name) != p.stat().st_mtime_ns}
    assert changed == {store.open_frames(folder).rows["c"]["shard"] + ".h5"}
    assert "Catalog: changed: 1 of 4 videos ('c')\n" in capsys.readouterr().err
    assert len(store.open_flow(fresh(Flow).path)["c"]) == 10


def test_a_program_may_build_again_after_a_change(config, tmp_path):
    """Luigi gives a program the same task for the same parameters, which must not keep what it found out earlier."""
    assert build(Flow())
    task = Flow()
    write_video(tmp_path / "videos/c.avi", moving_texture(11, seed=99))
    assert Flow() is task and not task.complete()
    assert build(Flow()) and task.complete()
    assert len(store.open_flow(task.path)["c"]) == 10


def test_a_program_may_build_again_with_other_settings(config):
    """What a task kept of the first build once gave the second one's artifact the name of the first's."""
    made = {}
    for method, steps in (("dis_ultrafast", "4"), ("dis_fast", "6")):
        config.set("flow", "method", method)
        config.set("temporal", "steps", steps)
        assert build(TrainStream(stream="temporal"))
        made[method] = Flow().path, TrainStream(stream="temporal").weights
    assert len({path for paths in made.values() for path in paths}) == 4
    for method, (flow, weights) in made.items():
        assert json.loads(store.open_flow(flow).attrs["spec"])["method"] == method
        assert checkpoint.load_checkpoint(weights).spec.steps == (4 if method == "dis_ultrafast" else 6)


def test_a_program_may_not_build_again_with_settings_in_conflict(config):
    task = Flow()
    assert build(task)
    config.set("stack", "direction", "bidirectional")
    with pytest.raises(ValueError, match="direction is bidirectional, which needs backward flow"):
        task.complete()


def test_tasks_of_other_settings_are_other_tasks_to_a_scheduler(config):
    one = fresh(Flow).task_id
    assert fresh(Flow).task_id == one
    config.set("flow", "method", "dis_fast")
    assert fresh(Flow).task_id != one and fresh(FullPipeline).task_id != one


def test_tasks_may_be_looked_at_in_parallel_by_a_program(config):
    assert luigi.build(
        [Catalog()], workers=2, local_scheduler=True, log_level="ERROR", parallel_scheduling=True, no_lock=True
    )
    assert Catalog().complete()


def test_a_task_is_not_given_to_a_process_that_does_not_know_the_settings(config):
    task = fresh(Flow)
    process = multiprocessing.get_context("spawn").Process(target=print, args=[task])
    with pytest.raises(RuntimeError, match="worker processes must be forked: .* settings of this program. Call"):
        process.start()
    assert pickle.loads(pickle.dumps(task)).digest == task.digest


def test_a_video_that_changes_during_a_build_is_for_the_next_one(config, tmp_path, monkeypatch):
    make = Frames.make

    def slow(self):
        make(self)
        write_video(tmp_path / "videos/c.avi", moving_texture(11, seed=99))

    monkeypatch.setattr(Frames, "make", slow)
    assert build(Flow()) and len(store.open_flow(Flow().path)["c"]) == 8
    monkeypatch.undo()
    assert build(Flow()) and len(store.open_flow(Flow().path)["c"]) == 10


def test_a_command_that_is_called_again_looks_again(config, tmp_path):
    for frames in (9, 11):
        write_video(tmp_path / "videos/c.avi", moving_texture(frames, seed=99))
        assert luigi.run(["Flow", "--local-scheduler", "--no-lock", "--log-level", "ERROR"])
        assert len(store.open_flow(Flow().path)["c"]) == frames - 1


def test_a_touched_video_is_looked_at_but_nothing_is_redone(config, tmp_path):
    assert build(fresh(Flow))
    before = snapshot(fresh(Frames).folder)
    os.utime(tmp_path / "videos/a.avi", (1, 1))
    assert not fresh(Catalog).complete()
    assert build(fresh(Flow)) and shards_and_index(snapshot(fresh(Frames).folder)) == shards_and_index(before)


def test_other_weights_at_the_same_path_train_again(config, tmp_path):
    weights = tmp_path / "start.pth"
    weights.write_bytes(b"one")
    config.set("spatial", "start", str(weights))
    folders = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        folders.append(fresh(TrainStream, stream="spatial").folder)
    config.set("spatial", "start", str(weights.rename(tmp_path / "moved.pth")))
    folders.append(fresh(TrainStream, stream="spatial").folder)
    assert folders[0] == folders[2] == folders[3] != folders[1]


def write_raft_weights(path: Path, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.save(raft_small(weights=None).state_dict(), path)


def test_flow_of_raft_is_of_color_frames_and_of_the_content_of_its_weights(config, tmp_path):
    weights = tmp_path / "raft.pth"
    config.read_dict({"flow": {"method": "raft_small", "raft_weights": str(weights), "raft_updates": "1"}})
    folders = []
    for seed in (1, 2):
        write_raft_weights(weights, seed)
        assert build(fresh(Flow))
        folders.append(fresh(Flow).folder)
    assert folders[0] != folders[1]
    told = [json.loads(store.open_flow(folder).attrs["spec"])["raft_weights"] for folder in folders]
    assert told[0] != told[1] == file_hash(weights)  # by which `status` tells them apart, wherever the file lies
    make_flow(tmp_path / "own", fresh(Frames).path, spec=fresh(Flow).spec("flow"), cluster=ClusterSpec(kind="inline"))
    by_task, by_hand = (dict(store.open_flow(folder).attrs) for folder in (folders[1], tmp_path / "own"))
    assert all(by_task[name] == by_hand[name] for name in ("digest", "spec"))
    write_raft_weights(weights, 1)
    assert fresh(Flow).complete() and fresh(Flow).folder == folders[0]
    frames, spec = store.open_frames(fresh(Frames).path)["a"], fresh(Flow).spec("flow")
    flow = store.open_flow(folders[0] / "index.h5")["a"].flow(0, 8)
    truth = estimate(frames.frames(0, 9), spec, device="cpu")
    assert np.abs(flow - truth.clip(-20, 20)).mean() < 0.2  # bytes are 0.16 px apart


def test_an_index_never_outlives_its_shards(config, tmp_path):
    """A video breaks, the stage fails, the video is repaired: the shard made meanwhile must not stay."""
    assert build(fresh(Frames))
    whole = (tmp_path / "videos/a.avi").read_bytes()
    (tmp_path / "videos/a.avi").write_bytes(b"")
    assert not build(fresh(Frames))
    (tmp_path / "videos/a.avi").write_bytes(whole)
    assert build(fresh(Frames))
    assert damage.verify(fresh(Frames).path) == [] and "a" in store.open_frames(fresh(Frames).path)


def test_other_weights_of_the_same_settings_are_scored_again(config):
    task = fresh(ScoreStream, stream="spatial", part="test")
    assert build(task)
    curve = fresh(TrainStream, stream="spatial").path
    curve.write_text(json.dumps({**json.loads(curve.read_text()), "weights": "0" * 16}))
    assert fresh(TrainStream, stream="spatial").complete()
    assert not fresh(ScoreStream, stream="spatial", part="test").complete()


def test_scores_that_came_out_otherwise_are_fused_and_reported_again(config):
    assert build(fresh(FullPipeline))
    task = fresh(ScoreStream, stream="temporal")
    (scores, attrs), before = (Scores.read(task.path), task.output().recorded()), task.key()
    scores.with_probabilities(scores.probabilities[:, ::-1]).write(task.path, **attrs)
    assert fresh(ScoreStream, stream="temporal").complete() and fresh(ScoreStream, stream="temporal").key() != before
    assert not fresh(Fuse).complete() and not fresh(Report).complete()
    scores.write(task.path, **attrs)
    assert fresh(ScoreStream, stream="temporal").key() == before and fresh(Report).complete()


def test_an_old_catalog_does_not_take_away_clips_whose_videos_are_gone(config, tmp_path):
    assert build(fresh(Flow))
    write_video(tmp_path / "videos/e.avi", moving_texture(9, seed=9))
    with (tmp_path / "clips.csv").open("a") as lists:
        lists.write("e.avi,down,e,train\n")
    config.set("dataset.four", "val_fraction", "0.3")  # another catalog beside the old one
    assert build(fresh(Flow))
    shutil.move(tmp_path / "videos", tmp_path / "elsewhere")
    shutil.move(tmp_path / "clips.csv", tmp_path / "clips.csv.away")
    assert fresh(Flow).complete()
    config.remove_option("dataset.four", "val_fraction")
    with pytest.raises(
        ValueError, match="the videos are no longer at .*, and the frames in .* are of other videos than"
    ):
        fresh(Frames).complete()
    assert not build(fresh(Flow))
    config.set("dataset.four", "val_fraction", "0.3")
    assert fresh(Flow).complete() and len(store.open_flow(fresh(Flow).path)) == 5


def test_a_page_that_is_lost_is_made_again(config):
    assert build(fresh(FullPipeline))
    page, table = fresh(Report).folder / "report.html", fresh(Fuse).scores_path("svm")
    before = page.read_bytes(), table.read_bytes()
    page.unlink()
    assert not fresh(FullPipeline).complete() and build(fresh(FullPipeline)) and page.read_bytes() == before[0]
    table.unlink()
    assert not fresh(Fuse).complete() and build(fresh(FullPipeline)) and table.read_bytes() == before[1]


def test_videos_that_were_taken_away_do_not_hold_up_what_was_made(config, tmp_path, capsys):
    assert build(fresh(Frames))
    shutil.move(tmp_path / "videos", tmp_path / "elsewhere")
    assert build(fresh(Flow)) and fresh(Flow).complete()
    flow = fresh(Flow)
    assert flow.complete() and flow.inputs_key()
    assert capsys.readouterr().err.count("the videos are no longer at") == 1
