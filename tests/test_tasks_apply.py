"""Trained streams applied to videos that nobody has labeled, and stores made of such videos."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from chains import build, fresh, snapshot
from conftest import moving_texture, write_video
from luigi.cmdline_parser import CmdlineParser

from pipeline import store
from pipeline.catalog import UNKNOWN
from pipeline.networks.checkpoint import load_tensors
from pipeline.scores import Scores
from pipeline.system.tensors import save_tensors
from tasks import Catalog, Flow, Frames, Fuse, ScoreStream, ScoreVideos, TrainStream


@pytest.fixture
def strangers(tmp_path, config) -> str:
    """Three videos without labels, one of them broken; "right" is a copy of a clip of the dataset."""
    folder = tmp_path / "strange"
    (folder / "more").mkdir(parents=True)
    shutil.copy(tmp_path / "videos" / "d.avi", folder / "more" / "d.avi")
    write_video(folder / "x.avi", moving_texture(9, seed=7, dx=2.0))
    (folder / "broken.avi").write_bytes(b"no video")
    return str(folder)


def rows_of(task: ScoreVideos) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in csv.DictReader(task.table.open(newline=""))}


def test_videos_are_scored_as_the_datasets_own_are(strangers, capsys):
    task = fresh(ScoreVideos, videos=strangers)
    assert build(task)
    rows, fused = rows_of(task), Scores.read(task.path)
    assert set(rows) == {"broken.avi", "more/d.avi", "x.avi"}
    assert rows["broken.avi"]["class"] == "" and "broken.avi failed: " in capsys.readouterr().err
    assert rows["broken.avi"]["reason"] == store.open_frames(task.clone(Frames).path).failed["broken.avi"]
    assert (
        fused.labels.tolist() == [UNKNOWN] * 3
        and fused.failed == ("broken.avi",)
        and fused.classes == ("down", "right")
    )
    assert build(fresh(Fuse))  # of the dataset, where the same clip is the test part
    for table, own in (
        (fused, fresh(Fuse).scores_path("average")),
        *(
            (Scores.read(fresh(ScoreStream, stream=s, part="test", videos=strangers).path), of.path)
            for s in ("spatial", "temporal")
            for of in [fresh(ScoreStream, stream=s, part="test")]
        ),
    ):
        row = table.video_ids.index("more__d.avi")
        np.testing.assert_array_equal(table.probabilities[row], Scores.read(own).probabilities[0])


def test_a_video_that_was_trained_on_is_noted(strangers, tmp_path):
    shutil.copy(tmp_path / "videos" / "a.avi", strangers)  # a training clip
    task = fresh(ScoreVideos, videos=strangers)
    assert build(task)
    notes = {path: row["note"] for path, row in rows_of(task).items()}
    assert notes.pop("a.avi") == "the streams were trained or chosen on it" and set(notes.values()) == {""}


def test_a_rerun_does_nothing_and_a_new_video_is_scored(strangers, capsys):
    assert build(fresh(ScoreVideos, videos=strangers))
    task = fresh(ScoreVideos, videos=strangers)
    before = snapshot(task.folder.parents[2])
    capsys.readouterr()
    assert build(task) and snapshot(task.folder.parents[2]) == before
    said = capsys.readouterr().err
    assert str(task.table) in said and "x.avi" in said
    write_video(Path(strangers, "y.avi"), moving_texture(9, seed=8, dy=2.0, dx=0.0))
    assert build(fresh(ScoreVideos, videos=strangers)) and "y.avi" in rows_of(task)
    task.table.unlink()
    assert not fresh(ScoreVideos, videos=strangers).complete()
    assert build(fresh(ScoreVideos, videos=strangers)) and task.table.is_file()


def test_the_trainings_and_stores_of_the_dataset_stay_as_they_are(strangers):
    assert build(fresh(Fuse))
    own = fresh(Catalog).folder.parents[1]
    before = snapshot(own)
    assert build(fresh(ScoreVideos, videos=strangers, fuse="svm"))
    assert snapshot(own) == before
    beside = fresh(ScoreVideos, videos=strangers).folder.parents[1]
    assert beside.parent == own.parent and beside.name.startswith("four-strange-")
    assert not (beside / "train_stream").exists()


@pytest.mark.parametrize("fuse", ["weighted", "svm"])
def test_the_fusion_is_the_one_that_was_chosen_on_validation_clips(strangers, fuse):
    task = fresh(ScoreVideos, videos=strangers, fuse=fuse)
    assert build(task)
    row = Scores.read(task.path).video_ids.index("more__d.avi")
    own = Scores.read(fresh(Fuse).scores_path(fuse))
    np.testing.assert_array_equal(Scores.read(task.path).probabilities[row], own.probabilities[0])


def test_the_average_needs_no_validation_clips(strangers, config, tmp_path):
    text = (tmp_path / "clips.csv").read_text().replace(",val", ",train")
    (tmp_path / "clips.csv").write_text(text)
    config.set("dataset.four", "val_fraction", "0")
    assert build(fresh(ScoreVideos, videos=strangers))
    with pytest.raises(
        ValueError, match="--fuse is 'svm', which is chosen on validation clips, and .* val_fraction is"
    ):
        fresh(ScoreVideos, videos=strangers, fuse="svm").complete()


@pytest.fixture
def carried_off(strangers, config, tmp_path):
    """Parameters with checkpoints that lie elsewhere, and the predictions of their dataset, which is gone."""
    task = fresh(ScoreVideos, videos=strangers)
    assert build(task)
    said = task.table.read_text()
    given = {"videos": strangers}
    for stream in ("spatial", "temporal"):
        shutil.copy(fresh(TrainStream, stream=stream).weights, tmp_path / f"{stream}.pt")
        given[f"{stream}_checkpoint"] = str(tmp_path / f"{stream}.pt")
    shutil.rmtree(tmp_path / "artifacts")
    shutil.rmtree(tmp_path / "videos")
    (tmp_path / "clips.csv").unlink()
    return given, said


def test_checkpoints_alone_are_enough_to_score_videos(carried_off, config, tmp_path):
    given, said = carried_off
    task = fresh(ScoreVideos, **given)
    assert build(task) and task.table.read_text() == said
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [task.dataset_folder]
    path, moved = task.path, tmp_path / "moved.pt"
    shutil.move(given["spatial_checkpoint"], moved)
    again = fresh(ScoreVideos, **{**given, "spatial_checkpoint": str(moved)})
    assert again.complete() and again.path == path  # the same weights at another place
    weights = load_tensors(moved, "two-stream-checkpoint", 1)
    next(iter(weights["state"].values())).add_(1.0)
    save_tensors(moved, weights)
    assert not fresh(ScoreVideos, **{**given, "spatial_checkpoint": str(moved)}).complete()


def test_checkpoints_that_do_not_fit_are_refused_before_any_work(carried_off, config, tmp_path):
    given, _ = carried_off
    with pytest.raises(FileNotFoundError, match="none.pt does not exist"):
        fresh(ScoreVideos, **{**given, "spatial_checkpoint": "none.pt"}).complete()
    assert fresh(ScoreVideos, **{**given, "spatial_checkpoint": "none.pt"}).digest  # asked for before it is refused
    assert fresh(ScoreStream, stream="spatial", checkpoint="~/x.pt").weights == Path.home() / "x.pt"
    with pytest.raises(ValueError, match="is a trained spatial stream, not the temporal one"):
        of = {"videos": given["videos"], "checkpoint": given["spatial_checkpoint"]}
        fresh(ScoreStream, stream="temporal", **of).complete()
    other = load_tensors(Path(given["temporal_checkpoint"]), "two-stream-checkpoint", 1)
    save_tensors(tmp_path / "other.pt", {**other, "classes": ["down", "left"]})
    with pytest.raises(
        ValueError, match=r"spatial.pt knows 2 classes .* and .*other.pt knows .*: streams of different cl"
    ):
        fresh(ScoreVideos, **{**given, "temporal_checkpoint": str(tmp_path / "other.pt")}).complete()
    config.set("flow", "bound_px", "15")
    with pytest.raises(ValueError, match="temporal.pt was trained on data made with other settings"):
        of = {"videos": given["videos"], "checkpoint": given["temporal_checkpoint"]}
        fresh(ScoreStream, stream="temporal", **of).complete()
    assert not (tmp_path / "artifacts").exists()


def test_a_checkpoint_of_other_classes_is_refused_before_any_work(strangers, config, tmp_path):
    assert build(fresh(TrainStream, stream="spatial"))
    other = load_tensors(fresh(TrainStream, stream="spatial").weights, "two-stream-checkpoint", 1)
    save_tensors(tmp_path / "other.pt", {**other, "classes": ["left", "up"]})
    given = str(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt was trained on 2 classes \('left', 'up'\); expected 2 classes"):
        fresh(ScoreStream, stream="spatial", checkpoint=given).complete()
    with pytest.raises(ValueError, match="other.pt knows 2 .* and dataset four knows 2 .*: streams of different class"):
        fresh(ScoreVideos, videos=strangers, spatial_checkpoint=given).complete()


def test_what_cannot_be_scored_is_refused_before_any_training(strangers, tmp_path):
    with pytest.raises(ValueError, match="ScoreVideos needs --videos, the folder of the videos"):
        fresh(ScoreVideos).complete()
    with pytest.raises(FileNotFoundError, match="the folder '.*/none' does not exist; .*of ScoreVideos: --videos"):
        fresh(ScoreVideos, videos=str(tmp_path / "none")).complete()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no video in '.*/empty' or below it"):
        fresh(ScoreVideos, videos=str(tmp_path / "empty")).complete()
    message = (
        "--fuse is 'svm', which was chosen for the streams trained here, not for --temporal-checkpoint; use the av"
    )
    with pytest.raises(ValueError, match=message):
        fresh(ScoreVideos, videos=strangers, fuse="svm", temporal_checkpoint="other.pt").check()
    assert not (tmp_path / "artifacts").exists()


def test_a_dataset_may_be_unlabeled_as_far_as_flow(strangers, config):
    config.read_dict({"dataset.plain": {"layout": "unlabelled", "videos": strangers}})
    config.set("frames", "max_bad_fraction", "0.5")
    flow = fresh(Flow, dataset="plain")
    assert build(flow)
    opened = store.open_flow(flow.path)
    assert set(opened) == {"more__d.avi", "x.avi"} and opened["x.avi"].attrs["label"] == UNKNOWN
    for task in (fresh(TrainStream, stream="spatial", dataset="plain"), fresh(Fuse, dataset="plain")):
        with pytest.raises(
            ValueError, match="the videos of .* are unlabeled, so that nothing .*, and ScoreVideos scores"
        ):
            task.complete()


def test_if_all_are_broken_each_is_reported_and_the_task_fails(strangers, capsys):
    for name in ("x.avi", "more/d.avi"):
        Path(strangers, name).write_bytes(b"")
    for _ in range(2):  # a rerun tries again
        task = fresh(ScoreVideos, videos=strangers)
        assert not build(task) and not task.complete()
        assert all(row["reason"] and not row["class"] for row in rows_of(task).values())
        said = capsys.readouterr().err
        assert said.count(" failed: the file is empty (0 bytes)") >= 2
        assert f"{task.table}\nScoreVideos average-1 FAILED: none of the 3 videos could be scored" in said


def test_a_video_that_is_renamed_is_reported_by_its_new_name(strangers):
    assert build(fresh(ScoreVideos, videos=strangers))
    shard = next((fresh(Frames, videos=strangers).folder / "shards").iterdir())
    before = shard.stat().st_mtime_ns
    Path(strangers, "more__d.avi").write_bytes(Path(strangers, "more/d.avi").read_bytes())
    Path(strangers, "more/d.avi").unlink()
    task = fresh(ScoreVideos, videos=strangers)
    assert build(task) and set(rows_of(task)) == {"broken.avi", "more__d.avi", "x.avi"}
    assert shard.stat().st_mtime_ns == before


def test_other_videos_may_be_as_bad_as_they_like(strangers):
    Path(strangers, "x.avi").write_bytes(b"")
    assert fresh(Frames).spec("frames").max_bad_fraction < 1
    assert build(fresh(ScoreVideos, videos=strangers))
    rows = rows_of(fresh(ScoreVideos, videos=strangers))
    assert [path for path, row in rows.items() if row["class"]] == ["more/d.avi"]


@pytest.mark.parametrize("named", [True, False])
def test_the_same_videos_with_and_without_labels_do_not_replace_each_other(config, tmp_path, named):
    videos = str(tmp_path / "videos")
    of_these = [f"--data-videos={videos}"] if named else []
    with CmdlineParser.global_instance(["Frames", *of_these], allow_override=True):
        assert build(fresh(Frames))
        labeled = fresh(Frames).path
    config.remove_option("dataset.four", "lists")
    with CmdlineParser.global_instance(["Frames", *of_these, "--data-layout=unlabelled"], allow_override=True):
        assert build(fresh(Frames))
        unlabeled = fresh(Frames).path
    config.set("dataset.four", "lists", str(tmp_path / "clips.csv"))
    others = fresh(Frames, videos=videos)  # as for `ScoreVideos`
    assert others.complete() and others.path == unlabeled
    with CmdlineParser.global_instance(["Frames", *of_these], allow_override=True):
        assert fresh(Frames).complete() and fresh(Frames).path == labeled
