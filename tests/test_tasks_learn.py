"""What a training says before it begins: settings that are hardly meant, and processes on a CPU."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from chains import build, fresh

from pipeline.networks import imagenet
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.specs import StreamSpec
from tasks import Frames, FullPipeline, ScoreStream, TrainStream
from tasks.session import cache_scope, writing_nothing


def test_a_setting_that_is_hardly_meant_is_said_before_any_work(config, capsys):
    config.read_dict({"spatial": {"partial_bn": "true"}})
    task = fresh(TrainStream, stream="spatial")
    with cache_scope():
        assert not task.complete() and not task.complete()
    said = capsys.readouterr().err
    assert said.count("[spatial] partial_bn is true and start is scratch") == 1


def test_imagenet_weights_that_cannot_be_had_are_missed_before_any_work(config, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    config.read_dict({"spatial": {"network": "resnet18", "start": "imagenet"}})
    with pytest.raises(FileNotFoundError, match=r"\[spatial\] start is imagenet, but .*resnet18-\w+.pth cannot be"):
        fresh(FullPipeline).requires().complete()
    assert not fresh(Frames).folder.exists()
    with writing_nothing():
        assert not fresh(TrainStream, stream="spatial").complete()
    assert imagenet.to_download(fresh(TrainStream, stream="spatial").stream_spec).startswith("resnet18-")


def test_imagenet_weights_that_are_here_are_only_read(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = StreamSpec(network="squeezenet1_1", start="imagenet")
    file = tmp_path / "hub/checkpoints" / imagenet.to_download(spec)
    file.parent.mkdir(parents=True)
    torch.save({"w": torch.zeros(2)}, file)
    with pytest.raises(
        FileNotFoundError, match=r"read \(.*is damaged: its SHA-256 begins with .*\); put that file into"
    ):
        imagenet.fetch(spec)
    monkeypatch.setattr("pipeline.system.downloads._digits", lambda path: "")  # as if that were its content
    imagenet.fetch(spec)
    assert imagenet.to_download(spec) == "" and capsys.readouterr().err == ""
    for damaged in (b"", b"garbage" * 9, file.read_bytes()[:200]):
        file.write_bytes(damaged)
        with pytest.raises(FileNotFoundError, match="squeezenet1_1-.*pth cannot be downloaded .*; put that file into"):
            imagenet.fetch(spec)


def test_imagenet_weights_that_hold_code_do_not_run_it(monkeypatch, tmp_path):
    class Code:
        def __reduce__(self):
            return exec, ("raise SystemExit('the code was run')",)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("pipeline.system.downloads._digits", lambda path: "")
    spec = StreamSpec(network="squeezenet1_1", start="imagenet")
    file = tmp_path / "hub/checkpoints" / imagenet.to_download(spec)
    file.parent.mkdir(parents=True)
    torch.save({"w": Code()}, file)
    with pytest.raises(FileNotFoundError, match="cannot be loaded with weights_only=True"):
        imagenet.read(spec)


def test_who_starts_from_another_training_needs_no_imagenet_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = StreamSpec(network="resnet18", start="imagenet", with_dataset="more", with_how="start")
    imagenet.fetch(spec)
    imagenet.fetch(StreamSpec())
    assert imagenet.to_download(spec) == imagenet.to_download(StreamSpec()) == ""
    assert imagenet.name_of(spec) == imagenet.name_of(StreamSpec()) == ""


def test_the_weights_behind_imagenet_have_a_name():
    assert imagenet.name_of(StreamSpec(network="resnet18", start="imagenet")) == "ResNet18_Weights.IMAGENET1K_V1"


def test_weights_that_saw_the_test_clips_of_another_split_are_refused_before_any_work(config):
    lists = Path(config.get("dataset.four", "lists"))
    assert build(fresh(TrainStream, stream="spatial"))
    config.set("spatial", "start", str(fresh(TrainStream, stream="spatial").weights))
    fresh(TrainStream, stream="spatial").check()  # of the split that they were trained for
    swapped = lists.read_text().replace("b,train", "b,test").replace("d,test", "d,train")
    lists.write_text(swapped)
    task = fresh(TrainStream, stream="spatial")
    with pytest.raises(ValueError, match=r"\[spatial\] start: the weights in .* on 1 clips .* of split 1: 'b'; start"):
        task.complete()
    assert not task.folder.exists()


def test_mirrored_views_of_a_stream_that_never_saw_any_are_warned_of_once(config, capsys):
    config.read_dict({"temporal": {"flip": "false"}, "score": {"crops": "10"}})
    for part in ("val", "test"):
        fresh(ScoreStream, stream="temporal", part=part).check()
    assert capsys.readouterr().err.count("[temporal] flip is false") == 1


def test_damaged_weights_that_are_deleted_are_trained_again(config):
    assert build(fresh(ScoreStream, stream="spatial", part="test"))
    path = fresh(TrainStream, stream="spatial").weights
    path.write_bytes(path.read_bytes()[:1000])
    scored = fresh(ScoreStream, stream="spatial", part="test").path
    scored.unlink()
    assert not build(fresh(ScoreStream, stream="spatial", part="test"))
    with pytest.raises(ValueError, match="delete it and run the same command again to retrain"):
        load_checkpoint(path)
    path.unlink()
    assert not fresh(TrainStream, stream="spatial").complete()
    assert build(fresh(ScoreStream, stream="spatial", part="test")) and scored.is_file() and load_checkpoint(path)


def test_weights_that_read_other_inputs_are_taken_with_a_word(config, capsys, tmp_path):
    temporal = fresh(TrainStream, stream="temporal")
    assert build(temporal)
    shutil.copy(temporal.weights, tmp_path / "own.pt")
    again = {"temporal_start": str(tmp_path / "own.pt")}
    capsys.readouterr()
    fresh(TrainStream, stream="temporal", changes=again).complete()
    assert "other inputs" not in capsys.readouterr().err
    fresh(
        TrainStream, stream="temporal", changes={**again, "stack_kind": "trajectory", "temporal_flow_unit_px": "1"}
    ).complete()
    expected = r"own.pt was trained on other inputs: flow_unit_px \S+ \(here 1.0\), kind stack \(here trajectory\)"
    assert re.search(expected, capsys.readouterr().err)
    torch.save(
        load_checkpoint(temporal.weights).network.state_dict(), tmp_path / "own.pt"
    )  # which says nothing of them
    fresh(TrainStream, stream="temporal", changes={**again, "temporal_flow_unit_px": "1"}).complete()
    assert "other inputs" not in capsys.readouterr().err
