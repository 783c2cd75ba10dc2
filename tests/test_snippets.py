"""Temporal segment networks: consensus and partial batch normalization, and training on snippets end to end."""

import json

import numpy as np
import pytest
import torch
from fakes import two_classes, use_store
from torch import nn

from pipeline.inference import score
from pipeline.networks import build
from pipeline.networks.backbones import first_convolution
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.specs import ScoreSpec, StackSpec, StreamSpec
from pipeline.training import train


def spec(stream, **values):
    stack = StackSpec(length=2, subtract_mean=False) if stream == "temporal" else None
    defaults = {"resize_px": 0, "crop_px": 24, "batch": 4, "steps": 30, "milestones": (20,), "learning_rate": 0.05}
    others = {"dropout": 0.3, "validate_every": 10, "jitter": 0.2 if stream == "spatial" else 0.0}
    return StreamSpec(stream=stream, stack=stack, **{"network": "small", **defaults, **others, **values})


@pytest.mark.parametrize("consensus", ["average", "max"])
@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_a_stream_learns_from_snippets(monkeypatch, tmp_path, stream, consensus):
    catalog, fake = two_classes("frames" if stream == "spatial" else "flow")
    use_store(monkeypatch, fake)
    settings = spec(stream, segments=3, consensus=consensus, cropping="corners", partial_bn=True)
    train(settings, store_path="i", catalog=catalog, folder=tmp_path, inputs_key="in", device="cpu")
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


@pytest.mark.parametrize("consensus", ["average", "max"])
def test_logits_of_a_clip_are_the_consensus_of_its_snippets(consensus):
    made = build(spec("temporal", segments=3, consensus=consensus), 5).eval()
    made.head.weight.data *= 50
    snippets = torch.randn(4, 3, 4, 64, 64)
    with torch.no_grad():
        clip = made(snippets).numpy()
        alone = np.stack([made(snippets[:, k]).numpy() for k in range(3)])
    np.testing.assert_allclose(clip, alone.sum(0) / 3 if consensus == "average" else alone.max(0), rtol=1e-4, atol=1e-5)


def test_the_loss_of_the_consensus_is_one_loss_a_clip():
    """TSN, equation 3: -log softmax of the mean of the logits, not the mean of the snippets' losses."""
    made = build(spec("spatial", segments=2, crop_px=32), 3).eval()
    made.head.weight.data *= 50
    snippets, labels = torch.randn(3, 2, 3, 32, 32), np.array([0, 2, 1])
    logits = np.stack([made(snippets[:, k]).detach().numpy() for k in range(2)]).astype(np.float64).mean(0)
    by_hand = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(3), labels])
    loss = nn.functional.cross_entropy(made(snippets), torch.from_numpy(labels))
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("network", ["small", "resnet18", "mobilenet_v3_small", "densenet121"])
def test_partial_bn_lets_only_the_first_normalization_learn(network):
    made = build(spec("spatial", network=network, partial_bn=True), 4).train()
    norms = [(name, m) for name, m in made.named_modules() if isinstance(m, nn.BatchNorm2d)]
    before = {name: value.clone() for name, value in made.state_dict().items()}
    optimizer = torch.optim.SGD([weight for weight in made.parameters() if weight.requires_grad], lr=0.1)
    nn.functional.cross_entropy(made(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    optimizer.step()
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    first, later = f"{norms[0][0]}.", tuple(f"{name}." for name, _ in norms[1:])
    assert {f"{first}{part}" for part in ("running_mean", "running_var")} <= changed
    assert norms[0][1].weight.grad is not None and not any(m.weight.requires_grad for _, m in norms[1:])
    assert not [name for name in changed if name.startswith(later)]
    assert first_convolution(made.body)[1].weight.grad.any()
    assert [m.training for _, m in norms] == [True] + [False] * (len(norms) - 1)
    assert not any(m.training for m in made.eval().modules())


def test_partial_bn_without_effect_is_said(capsys):
    build(spec("spatial", network="cnn_m_2048", partial_bn=True, crop_px=41), 3)
    assert "cnn_m_2048 has no second batch normalization" in capsys.readouterr().err
