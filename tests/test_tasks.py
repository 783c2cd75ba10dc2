"""The chain as tasks: the target contract, what is redone and what is reused, and the whole way on four tiny clips."""

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path

import h5py
import luigi
import numpy as np
import pytest
import torch
from chains import build, fresh, luigi_command, snapshot, write_four_clips
from conftest import ROOT, moving_texture, write_video
from torchvision.models.optical_flow import raft_small

from pipeline import inspection, store
from pipeline.files import file_hash
from pipeline.flow import estimate
from pipeline.scores import Scores
from tasks import Catalog, ExtractFeatures, Flow, Frames, FullPipeline, Fuse, Report, ScoreStream, TrainStream
from tasks.base import Artifact, Stage


def shards_and_index(found: dict) -> dict:
    """A snapshot without locks, which are taken to find that there is nothing to do."""
    return {name: value for name, value in found.items() if not name.endswith(".lock")}


# --- the target contract


class Contract:
    """What every stage's artifact must do; a stage mixes it in by naming itself."""

    def stage(self) -> Stage:
        raise AssertionError("name a stage")

    def test_it_exists_only_when_whole(self, config, monkeypatch):
        task = self.stage()
        assert build(*task.before())
        task = self.stage()
        assert not task.complete() and not task.output().exists()
        monkeypatch.setattr(type(task), "make", lambda self: (_ for _ in ()).throw(RuntimeError("broken on purpose")))
        assert not build(task)
        left = [p for p in task.folder.rglob("*") if p.name not in (".lock", "made_from.json") and p.is_file()]
        assert not task.output().exists() and not left
        monkeypatch.undo()
        config.set("run", "artifacts", str(task.folder.parents[2]))
        task = self.stage()
        assert build(task) and self.stage().complete() and task.path.is_file()

    def test_a_rerun_does_nothing(self, config):
        task = self.stage()
        assert build(task)
        before = snapshot(task.folder.parents[2])
        assert build(self.stage()) and snapshot(task.folder.parents[2]) == before

    def test_it_is_made_again_when_its_inputs_changed(self, config, monkeypatch):
        task = self.stage()
        assert build(task)
        monkeypatch.setattr(Artifact, "recorded", lambda self: {"inputs": "other", "key": "k", "videos_key": "v"})
        assert not self.stage().complete()


def test_a_damaged_artifact_is_named_with_its_cure(tmp_path):
    (tmp_path / "curve.json").write_text("\n")
    with pytest.raises(ValueError, match="curve.json is damaged .*; delete it and run the same command again"):
        Artifact(tmp_path / "curve.json").recorded()


class TestCatalog(Contract):
    def stage(self):
        return fresh(Catalog)


class TestFrames(Contract):
    def stage(self):
        return fresh(Frames)


class TestFlow(Contract):
    def stage(self):
        return fresh(Flow)


class TestTrainStream(Contract):
    def stage(self):
        return fresh(TrainStream, stream="spatial")


class TestScoreStream(Contract):
    def stage(self):
        return fresh(ScoreStream, stream="temporal", part="test")


class TestFuse(Contract):
    def stage(self):
        return fresh(Fuse)


class TestReport(Contract):
    def stage(self):
        return fresh(Report)


# --- the whole chain


def test_four_tiny_clips_go_all_the_way(config, tmp_path):
    assert build(fresh(FullPipeline), fresh(ExtractFeatures))
    report = tmp_path / "artifacts/four/report"
    metrics = json.loads((report / "latest/metrics.json").read_text())
    assert (metrics["dataset"], metrics["split"], metrics["num_test"]) == ("four", "1", 1)
    for row in [
        metrics["spatial"],
        metrics["temporal"],
        *(metrics["fused"][f] for f in ("average", "weighted", "svm")),
    ]:
        assert row["top1"] in (0.0, 1.0) and row["mean_class"] == row["top1"]
    page = (report / "latest/report.html").read_text()
    assert "<html" in page and "four" in page
    assert str((report / "latest").readlink()).startswith("1-")

    flow = store.open_flow(fresh(Flow).path)
    with h5py.File(flow.path) as file:
        assert sorted(file["clips"]) == ["a", "b", "c", "d"]
    assert np.median(flow["a"].flow(0, 8)[:, 0, 12:-12, 12:-12]) == pytest.approx(2, abs=0.4)
    scores, _ = store.read_arrays(fresh(ScoreStream, stream="temporal", part="train").path, "scores")
    assert scores["video_ids"] == ["a", "b"] and scores["features"].shape[0] == 2

    before = snapshot(tmp_path / "artifacts")
    assert fresh(FullPipeline).complete() and build(fresh(FullPipeline))
    assert snapshot(tmp_path / "artifacts") == before  # nothing to do: nothing is written


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


def test_other_weights_at_the_same_path_train_anew(config, tmp_path):
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


def test_flow_of_raft_is_of_colour_frames_and_of_the_content_of_its_weights(config, tmp_path):
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
    write_raft_weights(weights, 1)
    assert fresh(Flow).complete() and fresh(Flow).folder == folders[0]
    frames, spec = store.open_frames(fresh(Frames).path)["a"], fresh(Flow).spec("flow")
    flow = store.open_flow(folders[0] / "index.h5")["a"].flow(0, 8)
    truth = estimate(frames.frames(0, 9), spec, device="cpu")
    assert np.abs(flow - truth.clip(-20, 20)).mean() < 0.2  # bytes are 0.16 px apart


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        (
            {"method": "raft_small", "raft_weights": "./none.pth"},
            "cpu",
            "raft_weights is './none.pth', and there is no such",
        ),
        ({"method": "nvidia_of"}, "auto", r"\[flow\] method nvidia_of is not available: OpenCV sees no CUDA device"),
        ({"method": "dis_fast"}, "cuda", "method dis_fast computes on the CPU only"),
    ],
)
def test_a_flow_method_that_cannot_work_here_is_refused_before_any_work(config, monkeypatch, settings, device, message):
    monkeypatch.setattr("cv2.cuda.getCudaEnabledDeviceCount", lambda: 0)
    config.read_dict({"flow": settings, "run": {"device": device}})
    with pytest.raises((ValueError, OSError), match=message):
        fresh(Flow).complete()
    assert not fresh(Frames).folder.exists()
    config.read_dict({"cluster": {"kind": "jobqueue"}})  # what other machines can do is not known here
    assert not fresh(Flow).complete()


def test_an_index_never_outlives_its_shards(config, tmp_path):
    """A video breaks, the stage fails, the video is mended: the shard made meanwhile must not stay."""
    assert build(fresh(Frames))
    whole = (tmp_path / "videos/a.avi").read_bytes()
    (tmp_path / "videos/a.avi").write_bytes(b"")
    assert not build(fresh(Frames))
    (tmp_path / "videos/a.avi").write_bytes(whole)
    assert build(fresh(Frames))
    assert inspection.verify(fresh(Frames).path) == [] and "a" in store.open_frames(fresh(Frames).path)


def test_other_weights_of_the_same_settings_are_scored_anew(config):
    task = fresh(ScoreStream, stream="spatial", part="test")
    assert build(task)
    curve = fresh(TrainStream, stream="spatial").path
    curve.write_text(json.dumps({**json.loads(curve.read_text()), "weights": "0" * 16}))
    assert fresh(TrainStream, stream="spatial").complete()
    assert not fresh(ScoreStream, stream="spatial", part="test").complete()


def test_scores_that_came_out_otherwise_are_fused_and_reported_anew(config):
    assert build(fresh(FullPipeline))
    task = fresh(ScoreStream, stream="temporal")
    (scores, attrs), before = (Scores.read(task.path), task.output().recorded()), task.key()
    scores.with_probabilities(scores.probabilities[:, ::-1]).write(task.path, **attrs)
    assert fresh(ScoreStream, stream="temporal").complete() and fresh(ScoreStream, stream="temporal").key() != before
    assert not fresh(Fuse).complete() and not fresh(Report).complete()
    scores.write(task.path, **attrs)
    assert fresh(ScoreStream, stream="temporal").key() == before and fresh(Report).complete()


def test_scores_of_older_files_go_by_what_they_were_made_from(config):
    task = fresh(ScoreStream, stream="spatial")
    assert build(task)
    by_content = task.key()
    with h5py.File(task.path, "r+") as file:
        del file.attrs["content"]
    assert fresh(ScoreStream, stream="spatial").key() == Stage.key(task) != by_content


def test_a_gpu_serves_one_training_at_a_time_and_cpus_many(config):
    stages = TrainStream(stream="spatial"), ScoreStream(stream="spatial")
    assert all(stage.resources == {} for stage in stages)  # [run] device = cpu
    assert all(stage.clone(device="auto").resources == {"gpu": 1} for stage in stages)
    methods = {"tvl1": {"gpu": 1}, "dis_medium": {}}  # the latter has no use for a GPU
    for method, wanted in methods.items():
        assert Flow(changes={"flow_method": method}, device="auto").resources == wanted
    config.read_dict({"cluster": {"kind": "address", "address": "tcp://x:1"}})
    assert Flow(changes={"flow_method": "tvl1"}, device="auto").resources == {}  # it is computed elsewhere


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


def test_official_splits_are_numbers(config, tmp_path):
    config.read_dict({"dataset.u": {"layout": "ucf101", "videos": "v", "lists": "l"}})
    assert fresh(Catalog, dataset="u", split="01").path == fresh(Catalog, dataset="u", split="1").path


def test_a_network_that_does_not_exist_is_refused_before_frames_are_made(config, tmp_path):
    config.set("spatial", "network", "nonsense")
    assert not build(fresh(TrainStream, stream="spatial"))
    assert not (tmp_path / "artifacts/four/frames").exists()


def test_videos_that_were_taken_away_do_not_hold_up_what_was_made(config, tmp_path, capsys):
    assert build(fresh(Frames))
    shutil.move(tmp_path / "videos", tmp_path / "elsewhere")
    assert build(fresh(Flow)) and fresh(Flow).complete()
    flow = fresh(Flow)
    assert flow.complete() and flow.inputs_key()
    assert capsys.readouterr().err.count("the videos are no longer at") == 1


def test_all_splits_share_frames_and_flow(config, tiny_dataset):
    section = {"layout": "folder", "videos": str(tiny_dataset), "group_pattern": r"/(?P<group>[a-z]+)_", "split": "dan"}
    config.read_dict({"dataset.tiny": section})
    assert build(fresh(Flow, dataset="tiny", split="dan"))
    before = snapshot(fresh(Flow, dataset="tiny").folder)
    assert build(fresh(Flow, dataset="tiny", split="anna"))
    assert shards_and_index(snapshot(fresh(Flow, dataset="tiny", split="anna").folder)) == shards_and_index(before)
    dan, anna = (store.read_catalog(fresh(Catalog, dataset="tiny", split=s).path) for s in ("dan", "anna"))
    assert {c.group for c in dan.part("test")} == {"dan"} and {c.group for c in anna.part("test")} == {"anna"}


def test_the_same_run_twice_gives_the_same_bytes_and_scores(config, tmp_path):
    found = []
    for name, cluster in [("one", "inline"), ("two", "local")]:
        config.set("run", "artifacts", str(tmp_path / name))
        config.set("cluster", "kind", cluster)
        assert build(fresh(FullPipeline))
        shards = sorted((tmp_path / name).rglob("shards/*.h5"))
        sums = {str(p.relative_to(tmp_path / name)): hashlib.sha256(p.read_bytes()).hexdigest() for p in shards}
        scores = {
            str(p.relative_to(tmp_path / name)): store.read_arrays(p, "scores")[0]
            for p in (tmp_path / name).rglob("scores.h5")
        }
        found.append((sums, scores))
    assert found[0][0] == found[1][0] and len(found[0][0]) >= 2
    assert found[0][1].keys() == found[1][1].keys() and len(found[0][1]) == 7
    for path, arrays in found[0][1].items():
        np.testing.assert_array_equal(arrays["probabilities"], found[1][1][path]["probabilities"])


def test_a_damaged_artifact_is_refused_with_what_to_do(config):
    assert build(fresh(Frames))
    fresh(Frames).path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is no HDF5 file, or a damaged one .*; delete it and run its stage again"):
        fresh(Frames).complete()


def test_an_unknown_dataset_is_refused(config):
    with pytest.raises(ValueError, match="dataset 'for' does not exist; did you mean 'four'?"):
        fresh(Catalog, dataset="for").output()


# --- the command


def test_the_command_says_what_it_does_and_repeats_nothing(overlay, tmp_path):
    first = luigi_command("Flow", "--flow-method", "dis_ultrafast", "--cluster-kind", "inline", cwd=ROOT, **overlay)
    assert first.returncode == 0, first.stderr
    assert "Frames short256: done in" in first.stderr and "Flow dis_ultrafast: done in" in first.stderr
    assert "flow: 4 clips in" in first.stderr
    before, begun = snapshot(tmp_path / "artifacts"), time.monotonic()
    again = luigi_command("Flow", "--flow-method", "dis_ultrafast", cwd=ROOT, **overlay)
    assert again.returncode == 0 and "Flow dis_ultrafast: is there" in again.stderr
    assert snapshot(tmp_path / "artifacts") == before
    assert time.monotonic() - begun < 60


def test_videos_of_the_command_line_are_a_dataset_of_their_own(overlay, tmp_path):
    other = write_four_clips(tmp_path / "other")
    for section in (["--data-lists", other["lists"], "--data-videos", other["videos"]], []):
        assert luigi_command("Catalog", *section, cwd=ROOT, **overlay).returncode == 0
    found = sorted(path.parts[-4] for path in (tmp_path / "artifacts").rglob("catalog.h5"))
    assert found[0] == "four" and re.fullmatch(r"four-videos-[0-9a-f]{6}", found[1])


def test_a_failed_task_is_a_failed_command(overlay, tmp_path):
    (tmp_path / "videos/a.avi").write_bytes(b"")
    failed = luigi_command("Frames", "--cluster-kind", "inline", cwd=ROOT, **overlay)
    assert failed.returncode == 30
    assert (
        "Frames FAILED: frames: 1 of 4 clips failed" in failed.stderr
        and "a (the file is empty (0 bytes))" in failed.stderr
    )


def test_a_command_whose_settings_are_not_found_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for cwd, environment, message in [
        (tmp_path / "empty", {}, f"error: there is no luigi.cfg in '{tmp_path / 'empty'}'; run from"),
        (
            tmp_path / "empty",
            {"LUIGI_CONFIG_PATH": str(ROOT / "configs/weizmann.cfg")},
            "error: there is no luigi.cfg in",
        ),
        (ROOT, {"LUIGI_CONFIG_PATH": "none.cfg"}, "error: LUIGI_CONFIG_PATH is 'none.cfg', and there is no such file"),
    ]:
        refused = luigi_command("FullPipeline", cwd=cwd, PYTHONPATH=str(ROOT), **environment)
        assert refused.returncode != 0 and message in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Flow", "--flow-method", "tvl2"], "[flow] method is 'tvl2'; allowed: tvl1"),
        (["Flow", "--flow-metod", "tvl1"], "unrecognized arguments: --flow-metod"),
        (["Flow", "--dataset", "fuor"], "dataset 'fuor' does not exist; did you mean 'four'?"),
        (["Flow", "--data-layout", "floder"], "[dataset] layout is 'floder'; allowed: "),
        (["Catalog", "--split", "7"], "split '7' does not exist; the split column"),
        (["FullPipeline", "--temporal-network", "nonsense"], "nonsense"),
        (["Flow", "--stack-direction", "bidirectional"], "which needs backward flow"),
        (["Flow", "--device", "gpu"], "[run] device is 'gpu'"),
        (
            ["FullPipeline", "--dataset", "demo", "--data-videos", "DIR"],
            "written by the pipeline; give --dataset as well: folder or ",
        ),
        (["Catalog", "--data-videos", "absent"], "error: [dataset] videos: the folder 'absent' does not exist"),
    ],
)
def test_mistakes_are_refused_before_any_work(overlay, tmp_path, arguments, message):
    refused = luigi_command(*arguments, cwd=ROOT, **overlay)
    assert refused.returncode != 0 and message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list((tmp_path / "artifacts").rglob("*.h5"))


def test_what_reads_no_seed_is_one_task_for_all_seeds(config):
    shared = [{str(task) for task in fresh(TrainStream, stream="temporal", seed=seed).requires()} for seed in (0, 1)]
    assert shared[0] == shared[1] and len(shared[0]) >= 2
