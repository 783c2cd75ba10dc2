"""The chain as tasks: the target contract, what is redone and what is reused, and the whole way on four tiny clips."""

import hashlib
import json
import os
import re
import time

import h5py
import numpy as np
import pytest
from chains import build, fresh, luigi_command, shards_and_index, snapshot, write_four_clips
from conftest import ROOT

from pipeline import store
from tasks import Catalog, ExtractFeatures, Flow, Frames, FullPipeline, Fuse, Report, ScoreStream, TrainStream
from tasks.base import Artifact, Stage

# --- the target contract


class Contract:
    """What every stage's artifact must do; a stage mixes it in by naming itself."""

    def stage(self) -> Stage:
        raise AssertionError("name a stage")

    def test_it_exists_only_when_whole_and_is_made_again_only_when_its_inputs_changed(self, config, monkeypatch):
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
        before = snapshot(task.folder.parents[2])
        assert build(self.stage()) and snapshot(task.folder.parents[2]) == before
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


def said_of_features(tmp_path, capsys, *, again=False):
    """Paths that ExtractFeatures prints, relative to the artifacts."""
    if again:
        fresh(ExtractFeatures).say_present()
    lines = capsys.readouterr().err.splitlines()
    paths = [line for line in lines if line.endswith("scores.h5") and ":" not in line]
    assert len(paths) == 6 and all((tmp_path / path).is_file() for path in paths), lines
    return paths


def test_four_tiny_clips_go_all_the_way(config, tmp_path, capsys):
    assert build(fresh(FullPipeline), fresh(ExtractFeatures))
    assert said_of_features(tmp_path, capsys) == said_of_features(tmp_path, capsys, again=True)
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

    for task in (fresh(Frames), fresh(Flow)):  # the folder is named, and the store made, by the same digest
        assert store.read_attrs(task.path)["digest"] == task.digest
    flow = store.open_flow(fresh(Flow).path)
    with h5py.File(flow.path) as file:
        assert sorted(file["clips"]) == ["a", "b", "c", "d"]
    assert np.median(flow["a"].flow(0, 8)[:, 0, 12:-12, 12:-12]) == pytest.approx(2, abs=0.4)
    scores, _ = store.read_arrays(fresh(ScoreStream, stream="temporal", part="train").path, "scores")
    assert scores["video_ids"] == ["a", "b"] and scores["features"].shape[0] == 2

    before = snapshot(tmp_path / "artifacts")
    assert fresh(FullPipeline).complete() and build(fresh(FullPipeline))
    assert snapshot(tmp_path / "artifacts") == before  # nothing to do: nothing is written


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        (
            {"method": "raft_small", "raft_weights": "./none.pth"},
            "cpu",
            "raft_weights is './none.pth', and there is no such",
        ),
        ({"method": "nvidia_of"}, "auto", r"\[flow\] method nvidia_of is not available: OpenCV sees no CUDA device"),
        ({"method": "tvl1"}, "cuda", "device is 'cuda', but torch sees 0 CUDA devices here"),
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


def test_a_method_that_knows_no_gpu_computes_beside_the_one_that_a_run_names(config, monkeypatch):
    monkeypatch.setattr("tasks.learn.TrainStream.check", lambda self: None)  # this machine has none
    config.read_dict({"run": {"device": "cuda:1"}})
    assert build(fresh(Flow)) and fresh(TrainStream, stream="spatial").run_spec.device == "cuda:1"
    assert fresh(Flow).resources == {}


def test_a_gpu_serves_one_training_at_a_time_and_cpus_many(config):
    stages = TrainStream(stream="spatial"), ScoreStream(stream="spatial")
    assert all(stage.resources == {} for stage in stages)  # [run] device = cpu
    assert all(stage.clone(device="auto").resources == {"gpu": 1} for stage in stages)
    methods = {"tvl1": {"gpu": 1}, "dis_medium": {}}  # the latter has no use for a GPU
    for method, wanted in methods.items():
        assert Flow(changes={"flow_method": method}, device="auto").resources == wanted
    config.read_dict({"cluster": {"kind": "address", "address": "tcp://x:1"}})
    assert Flow(changes={"flow_method": "tvl1"}, device="auto").resources == {}  # it is computed elsewhere


def test_official_splits_are_numbers(config, tmp_path):
    config.read_dict({"dataset.u": {"layout": "ucf101", "videos": "v", "lists": "l"}})
    assert fresh(Catalog, dataset="u", split="01").path == fresh(Catalog, dataset="u", split="1").path


def test_a_network_that_does_not_exist_is_refused_before_frames_are_made(config, tmp_path):
    config.set("spatial", "network", "nonsense")
    assert not build(fresh(TrainStream, stream="spatial"))
    assert not (tmp_path / "artifacts/four/frames").exists()


def test_all_splits_share_frames_and_flow(config, tiny_dataset):
    section = {"layout": "folder", "videos": str(tiny_dataset), "group_pattern": r"/(?P<group>[a-z]+)_", "split": "dan"}
    config.read_dict({"dataset.tiny": section})
    assert build(fresh(Flow, dataset="tiny", split="dan"))
    before = snapshot(fresh(Flow, dataset="tiny").folder)
    assert build(fresh(Flow, dataset="tiny", split="anna"))
    assert shards_and_index(snapshot(fresh(Flow, dataset="tiny", split="anna").folder)) == shards_and_index(before)
    dan, anna = (store.read_catalog(fresh(Catalog, dataset="tiny", split=s).path) for s in ("dan", "anna"))
    assert {c.group for c in dan.part("test")} == {"dan"} and {c.group for c in anna.part("test")} == {"anna"}


def test_a_long_name_of_a_group_fits_into_a_file_system(config):
    for task in (fresh(TrainStream, stream="temporal", split="\u30ab" * 80), fresh(Report, split="\u30ab" * 80)):
        name = task.folder.name
        assert len(name.encode()) < 180 and name.endswith(f"\u30ab-{task.digest}"), name


def test_all_groupings_share_frames_and_flow(config, tiny_dataset):
    """A command with other groups must not touch what the training of another one reads."""
    section = {"layout": "folder", "videos": str(tiny_dataset), "group_pattern": r"/(?P<group>[a-z]+)_", "split": "1"}
    config.read_dict({"dataset.tiny": section})
    assert build(fresh(Flow, dataset="tiny"))
    folder, catalog = fresh(Flow, dataset="tiny").folder, fresh(Catalog, dataset="tiny").path
    before = snapshot(folder)
    config.set("dataset.tiny", "group_pattern", r"^(?P<group>[a-z]+)/")
    assert build(fresh(Flow, dataset="tiny"))
    assert fresh(Flow, dataset="tiny").folder == folder
    assert shards_and_index(snapshot(folder)) == shards_and_index(before)
    one, other = (store.read_attrs(path)["key"] for path in (catalog, fresh(Catalog, dataset="tiny").path))
    assert one != other
    flow, keys = fresh(Flow, dataset="tiny"), []
    for index in (fresh(Frames, dataset="tiny").path, flow.path):
        keys.append(store.read_attrs(index)["key"])
        next((index.parent / "shards").iterdir()).unlink()  # with the index, as after a repair
        index.unlink()
    assert build(flow) and {row["group"] for row in store.open_flow(folder).rows.values()} == {"right", "down"}
    assert [store.read_attrs(task.path)["key"] for task in (fresh(Frames, dataset="tiny"), flow)] == keys


def test_the_sizes_of_shards_rename_nothing(config):
    assert build(fresh(Flow))
    before = snapshot(fresh(Flow).folder)
    config.set("frames", "shard_clips", "1")
    assert fresh(Flow).complete() and build(fresh(Flow)) and snapshot(fresh(Flow).folder) == before


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
        "Frames short256 FAILED: frames: 1 of 4 clips failed" in failed.stderr
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
        (["Flow", "--flow-metod", "tvl1"], "flag --flow-metod does not exist; did you mean '--flow-method'?"),
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
        (
            ["Catalog", "--artifacts", "README.md"],
            "[run] artifacts is 'README.md', where nothing can be written (Not a",
        ),
        (["Catalog", "--data-videos", "absent"], "error: [dataset] videos: the folder 'absent' does not exist"),
    ],
)
def test_mistakes_are_refused_before_any_work(overlay, tmp_path, arguments, message):
    refused = luigi_command(*arguments, cwd=ROOT, **overlay)
    assert refused.returncode != 0 and message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list((tmp_path / "artifacts").rglob("*.h5"))


def test_workers_know_the_flags_whatever_way_python_starts_processes_by_default(overlay, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import multiprocessing as m\nm.set_start_method('forkserver')")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    flags = ["--frames-jpeg-quality", "51", "--cluster-kind", "inline", "--workers", "2"]
    done = luigi_command("Frames", *flags, cwd=ROOT, PYTHONPATH=path, **overlay)
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "artifacts").glob("four/frames/*")
    assert json.loads(store.read_attrs(made / "index.h5")["spec"])["jpeg_quality"] == 51


def test_what_reads_no_seed_is_one_task_for_all_seeds(config):
    shared = [{str(task) for task in fresh(TrainStream, stream="temporal", seed=seed).requires()} for seed in (0, 1)]
    assert shared[0] == shared[1] and len(shared[0]) >= 2
