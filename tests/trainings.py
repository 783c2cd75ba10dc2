"""Small trainings on a store in memory (the fixture `data` of conftest installs it)."""

import json

import torch

from pipeline import training
from pipeline.inference import score
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.specs import ScoreSpec, StackSpec, StreamSpec
from pipeline.training import train


def spec(stream="spatial", **values):
    stack = StackSpec(length=3, subtract_mean=False) if stream == "temporal" else None
    defaults = {
        "resize_px": 0,
        "crop_px": 24,
        "batch": 4,
        "steps": 12,
        "milestones": (9,),
        "learning_rate": 0.05,
        "dropout": 0.3,
        "validate_every": 5,
        "save_every": 4,
        "jitter": 0.2 if stream == "spatial" else 0.0,
    }
    return StreamSpec(stream=stream, stack=stack, network="small", **{**defaults, **values})


def without_batch_norm(**values):
    """Small steps, so that rounding stays small; no batch normalization, which `accumulate` would change."""
    defaults = {"resize_px": 0, "crop_px": 40, "batch": 4, "steps": 20, "milestones": (15,), "learning_rate": 2e-5}
    defaults |= {"dropout": 0.5, "validate_every": 10, "save_every": 5, "network": "squeezenet1_1"}
    defaults |= {"jitter": 0.2} if values.get("stream") != "temporal" else {}
    return StreamSpec(**{**defaults, **values})


def run(settings, catalog, folder, **values):
    train(
        settings,
        store_path="i",
        catalog=catalog,
        folder=folder,
        inputs_key=values.pop("inputs_key", "in"),
        device="cpu",
    )
    return load_checkpoint(folder / "checkpoint.pt"), json.loads((folder / "curve.json").read_text())


def scores_of_test_part(folder, catalog):
    views = ScoreSpec(frames=3, crops=2)
    return score(folder / "checkpoint.pt", store_path="i", catalog=catalog, part="test", spec=views)


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def interrupt_after(monkeypatch, step):
    real = training.train_step
    monkeypatch.setattr(training, "train_step", lambda now, *batch: real(now, *batch) if now.step < step else 1 / 0)
    return real
