"""Temporal segment networks end to end: training on snippets of clips in memory, then scoring by plain views."""

import json

import numpy as np
import pytest
import torch
from fakes import two_classes, use_store

from pipeline.checkpoint import load_checkpoint
from pipeline.inference import score
from pipeline.networks import build
from pipeline.specs import ScoreSpec, StackSpec, StreamSpec
from pipeline.training import train


def spec(stream, **values):
    stack = StackSpec(length=2, subtract_mean=False) if stream == "temporal" else None
    defaults = {"resize_px": 0, "crop_px": 24, "batch": 4, "steps": 30, "milestones": (20,), "learning_rate": 0.05}
    others = {"dropout": 0.3, "validate_every": 10, "jitter": 0.2 if stream == "spatial" else 0.0}
    return StreamSpec(stream=stream, stack=stack, network="small", **{**defaults, **others, **values})


@pytest.mark.parametrize("consensus", ["average", "max"])
@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_a_stream_learns_from_snippets(monkeypatch, tmp_path, stream, consensus):
    catalog, fake = two_classes("frames" if stream == "spatial" else "flow")
    use_store(monkeypatch, fake)
    settings = spec(stream, segments=3, consensus=consensus, cropping="corners", partial_bn=True)
    train(settings, store_path="i", catalog=catalog, folder=tmp_path, inputs="in", device="cpu")
    loss = json.loads((tmp_path / "curve.json").read_text())["loss"]
    assert np.mean(loss[-5:]) < 0.5 * np.mean(loss[:3])
    found = load_checkpoint(tmp_path / "checkpoint.pt")
    assert found.spec == settings and found.network.consensus == consensus
    torch.manual_seed(settings.seed)
    start = build(settings, 2).state_dict()
    kept = [name for name, value in found.network.state_dict().items() if torch.equal(value, start[name])]
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert {f"body.{place}.{name}" for place in (4, 7, 10) for name in norms} == set(kept)  # all but body.1
    views = ScoreSpec(frames=3, crops=2)
    assert score(tmp_path / "checkpoint.pt", store_path="i", catalog=catalog, part="test", spec=views).top1() == 1.0
