"""Weights in the layouts in which torchvision publishes them: what its own loading takes, ours takes too."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torchvision
from trainings import run, scores_of_test_part, spec

from pipeline import networks
from pipeline.networks import build, imagenet
from pipeline.specs import StreamSpec


def without_counters(state):
    """As torch wrote files before version 0.4, which could not say of which version the layers are."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def of_densenet(state):
    return {re.sub(r"(denselayer\d+\.(norm|conv))([12])", r"\1.\3", k): v for k, v in without_counters(state).items()}


def of_transformers(state):
    return {k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for k, v in state.items()}


def plain_model(network):
    return torchvision.models.get_model(network, weights=None)


@pytest.mark.parametrize(
    ("network", "former"),
    [
        ("resnet18", without_counters),
        ("densenet121", of_densenet),
        ("vit_b_16", of_transformers),
    ],
)
def test_former_layouts_are_read_as_torchvision_reads_them(tmp_path, network, former):
    model, path = plain_model(network), tmp_path / "published.pth"
    published = former(model.state_dict())
    assert published.keys() != model.state_dict().keys()
    torch.save(published, path)
    theirs = plain_model(network)
    if network == "densenet121":
        weights = SimpleNamespace(get_state_dict=lambda **_: dict(published))
        torchvision.models.densenet._load_state_dict(theirs, weights, progress=False)
    else:
        theirs.load_state_dict(published)
    made = build(StreamSpec(network=network, start=str(path)), 5)
    ours, theirs = made.body.state_dict(), theirs.state_dict()
    assert len(ours) > 10 and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_weights_that_are_not_the_networks_are_known_before_any_work(monkeypatch):
    """Those of vit_h_14 have 37 x 37 places in an image of 518 px; ours have 16 x 16 in one of 224."""
    settings = StreamSpec(network="vit_b_16", start="imagenet")
    state = plain_model("vit_b_16").state_dict()
    monkeypatch.setattr(imagenet, "read", lambda spec: state)
    networks.fetch_weights(settings)
    networks.fetch_weights(StreamSpec(network="vit_b_16"))  # from scratch: nothing to fetch
    state["encoder.pos_embedding"] = torch.zeros(1, 37 * 37 + 1, 768)
    with pytest.raises(
        ValueError, match=r"'imagenet' do not belong to .*pos_embedding: \(1, 197, 768\) in the network"
    ):
        networks.fetch_weights(settings)


def test_a_network_whose_layers_ask_for_their_version_is_trained_started_from_and_scored(data, tmp_path):
    """MNASNet refuses tensors of an unknown version."""
    catalog = data("frames")
    settings = replace(spec(steps=2, milestones=(), validate_every=1), network="mnasnet0_5")
    found, _ = run(settings, catalog, tmp_path / "one")
    scores_of_test_part(tmp_path / "one", catalog)
    torch.save(plain_model("mnasnet0_5").state_dict(), tmp_path / "published.pth")
    for start in (tmp_path / "one/checkpoint.pt", tmp_path / "published.pth"):
        made = build(replace(settings, start=str(start)), 7)
        expected = torch.load(start, weights_only=True)
        expected = found.network.body.state_dict() if "state" in expected else expected
        assert all(torch.equal(value, expected[name]) for name, value in made.body.state_dict().items())
