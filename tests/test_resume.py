"""A training that was killed goes on, and ends with the same bits; the file of another one is not used."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from trainings import assert_same_weights, interrupt_after, run, spec

from pipeline import training
from pipeline.networks import backbones
from pipeline.specs import StreamSpec
from pipeline.system import tensors
from pipeline.system.tensors import save_tensors
from pipeline.training.state import Best, TrainingState, identity_of, steps_done

RECIPE = {
    "schedule": "cosine",
    "warmup": 3,
    "accumulate": 2,
    "clip_norm": 1.0,
    "optimizer": "adamw",
    "learning_rate": 0.005,
    "deterministic": True,
}


@pytest.mark.parametrize("stream", ["spatial", "temporal"])
@pytest.mark.parametrize(("stop", "recipe"), [(3, {}), (4, {}), (9, {}), (11, {}), (9, RECIPE)])
def test_an_interrupted_training_ends_with_the_same_bits(data, tmp_path, monkeypatch, stream, stop, recipe):
    catalog, settings = data("frames" if stream == "spatial" else "flow"), spec(stream, **recipe)
    whole, whole_curve = run(settings, catalog, tmp_path / "whole")

    real = training.train_step

    def interrupted(now, inputs, labels):
        if now.step == stop:
            raise KeyboardInterrupt
        return real(now, inputs, labels)

    monkeypatch.setattr(training, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(settings, catalog, tmp_path / "parts")
    assert not (tmp_path / "parts" / "checkpoint.pt").exists()
    assert (tmp_path / "parts" / "resume.pt").exists() == (stop >= 4)
    monkeypatch.setattr(training, "train_step", real)
    parts, parts_curve = run(settings, catalog, tmp_path / "parts")

    assert_same_weights(whole.network.state_dict(), parts.network.state_dict())
    assert without_seconds(whole_curve) == without_seconds(parts_curve)


def without_seconds(curve):
    return {name: value for name, value in curve.items() if not name.startswith("seconds")}


def test_a_network_whose_code_has_changed_is_trained_again(data, tmp_path, monkeypatch, capsys):
    def of_width(width):
        body = lambda spec: nn.Sequential(nn.Conv2d(spec.channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # noqa: E731
        monkeypatch.setitem(backbones.OWN, "mine", lambda spec: (body(spec), width, "head"))

    of_width(8)
    with monkeypatch.context() as until, pytest.raises(ZeroDivisionError):
        interrupt_after(until, 5)
        run(replace(spec(), network="mine"), data("frames"), tmp_path)
    assert (tmp_path / "resume.pt").is_file()
    of_width(16)
    found, curve = run(replace(spec(), network="mine"), data("frames"), tmp_path)
    assert "training starts over: since" in (said := capsys.readouterr().err) and "the code of mine has changed" in said
    assert found.network.head.in_features == 16 and curve["steps"] == list(range(1, 13))


def test_resuming_repeats_no_step(data, tmp_path, monkeypatch, capsys):
    catalog, real, taken = data("frames"), training.train_step, []

    def counted(now, inputs, labels):
        if now.step == 10 and 10 not in taken:
            taken.append(10)
            raise KeyboardInterrupt
        taken.append(now.step)
        return real(now, inputs, labels)

    monkeypatch.setattr(training, "train_step", counted)
    with pytest.raises(KeyboardInterrupt):
        run(spec(), catalog, tmp_path)
    taken.clear()
    taken.append(10)
    run(spec(), catalog, tmp_path)
    assert taken[1:] == [10, 11]
    assert "spatial: training goes on from step 10 of 12" in capsys.readouterr().err


OTHERWISE = {
    "no best": lambda saved: saved.pop("best"),
    "no step": lambda saved: saved.pop("step"),
    "no identity": lambda saved: saved.pop("identity"),
    "text for a number": lambda saved: saved.update(step="9"),
    "another curve": lambda saved: saved["curve"].update(x=1),
    "another best": lambda saved: saved["best"].pop("top1"),
}


@pytest.mark.parametrize("change", OTHERWISE)
def test_a_state_of_another_form_is_not_used(tmp_path, capsys, change):
    now, path = TrainingState(spec(), 2, torch.device("cpu")), tmp_path / "resume.pt"
    now.step, now.best = 9, Best(5, {"weight": torch.ones(2)}, 0.5, 1.0)
    now.save(path, "same")
    assert steps_done(path, "same") == 9
    saved = tensors.read_tensors(path)
    OTHERWISE[change](saved)
    save_tensors(path, saved)
    assert steps_done(path, "same") == 0
    again = TrainingState(spec(), 2, torch.device("cpu"))
    again.resume(path, "same")
    assert again.step == 0 and [file.name for file in tmp_path.iterdir()] == ["resume.pt.unusable"]
    assert "does not hold a training's state as this version of the code keeps it" in capsys.readouterr().err


def test_what_a_killed_training_left_half_written_is_removed(data, tmp_path):
    left = tmp_path / ".resume.tmp-elsewhere-99999.pt"
    left.write_bytes(b"half")
    run(spec(), data("frames"), tmp_path)
    assert not left.exists() and (tmp_path / "checkpoint.pt").is_file()


@pytest.mark.parametrize("change", ["spec", "inputs", "format", "damaged"])
def test_the_resume_file_of_another_training_is_not_used(data, tmp_path, monkeypatch, capsys, change):
    catalog = data("frames")
    expected, _ = run(spec(seed=5), catalog, tmp_path / "expected")
    real = interrupt_after(monkeypatch, 9)
    with pytest.raises(ZeroDivisionError):
        run(
            spec(seed=4 if change == "spec" else 5),
            catalog,
            tmp_path,
            inputs_key="other" if change == "inputs" else "in",
        )
    monkeypatch.setattr(training, "train_step", real)
    if change == "format":
        save_tensors(tmp_path / "resume.pt", {"format": "something", "format_version": 1})
    if change == "damaged":
        (tmp_path / "resume.pt").write_bytes(b"half")
    kept = []
    monkeypatch.setattr(
        training, "train_step", lambda now, *b: kept.extend(tmp_path.glob("*.unusable")) or real(now, *b)
    )
    found, _ = run(spec(seed=5), catalog, tmp_path)
    assert bool(kept) == (change in ("format", "damaged")) and not list(tmp_path.glob("resume*"))
    assert "spatial: training starts over" in capsys.readouterr().err
    assert_same_weights(found.network.state_dict(), expected.network.state_dict())


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_training_goes_on_where_auto_is_another_precision(tmp_path, before, after):
    """Loss scaling is for float16 alone: what was saved on a CPU has none, and a CPU has no use for a GPU's."""
    runs = []
    for enabled in (before, after):
        now = TrainingState(spec(), 2, torch.device("cpu"))
        now.scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=2.0 ** (8 + len(runs)))
        runs.append(now)
    runs[0].step = 7
    runs[0].save(tmp_path / "resume.pt", "same")
    runs[1].resume(tmp_path / "resume.pt", "same")
    assert runs[1].step == 7 and runs[1].scaler.is_enabled() == after
    assert runs[1].scaler.get_scale() == ((2.0**8 if before else 2.0**9) if after else 1.0)
    assert_same_weights(runs[1].network.state_dict(), runs[0].network.state_dict())


def test_steps_done_are_those_of_the_same_training_alone(tmp_path):
    spec = StreamSpec(network="small", resize_px=0, crop_px=32, steps=9, milestones=())
    identity = identity_of(spec, "inputs", ("a", "b"), ())
    run, path = TrainingState(spec, 2, torch.device("cpu")), tmp_path / "resume.pt"
    assert steps_done(path, identity) == 0
    run.step = 7
    run.save(path, identity)
    assert steps_done(path, identity) == 7
    assert steps_done(path, identity_of(spec, "inputs", ("a",), ("b", "c"))) == 0
    path.write_bytes(path.read_bytes()[:100])
    assert steps_done(path, identity) == 0


def test_a_disk_that_fails_for_a_moment_costs_no_training(data, tmp_path, monkeypatch):
    catalog, real = data("frames"), interrupt_after(monkeypatch, 9)
    with pytest.raises(ZeroDivisionError):
        run(spec(), catalog, tmp_path)
    saved = (tmp_path / "resume.pt").read_bytes()
    monkeypatch.setattr(training, "train_step", real)

    def fail(path):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "file_hash", fail)
        patch.setattr(torch, "load", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("failed reading file")))
        with pytest.raises(OSError, match="Input/output error"):
            run(spec(), catalog, tmp_path)
        with pytest.raises(OSError, match="Input/output error"):
            steps_done(tmp_path / "resume.pt", "any")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "resume.pt"]
    assert (tmp_path / "resume.pt").read_bytes() == saved


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    save_tensors(tmp_path / "t.pt", {"value": torch.ones(2)})

    def fail(*arguments, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError, match="there is not enough memory to read .*t.pt"):
        tensors.read_tensors(tmp_path / "t.pt")


def test_equal_values_are_equal_bytes_whatever_the_file_is_called(tmp_path):
    for name in ("a.pt", "another.pt"):
        save_tensors(tmp_path / name, {"value": torch.arange(5), "text": "x"})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_ends_the_writing_of_a_file_is_what_is_raised(tmp_path, monkeypatch, ends):
    """torch would raise an error of its own in its place."""

    class File:
        def __init__(self):
            self.left = 3

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def flush(self):
            pass

        def write(self, data):
            self.left -= 1
            if not self.left:
                raise ends
            return len(data)

    monkeypatch.setattr(Path, "open", lambda path, mode: File())
    with pytest.raises(type(ends)) as raised:
        save_tensors(tmp_path / "t.pt", {"value": torch.ones(100_000)})
    assert raised.value is ends and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_for_a_moment_is_no_damage(tmp_path, monkeypatch, number):
    """A resume.pt that is taken for damaged would be lost, and with it days of training."""
    save_tensors(tmp_path / "t.pt", {"a": torch.ones(3)})

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        tensors.read_tensors(tmp_path / "t.pt")
    assert raised.value.errno == number and raised.value.__notes__ == [f"while reading {tmp_path / 't.pt'}"]
