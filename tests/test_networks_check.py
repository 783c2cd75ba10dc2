"""What is refused of a network before anything is made for it."""

import pytest
import torch

from pipeline import networks
from pipeline.networks import build, check
from pipeline.networks.backbones import OWN
from pipeline.specs import StackSpec, StreamSpec
from pipeline.system.errors import UserError


def spec(stream, network, **values):
    stack = StackSpec() if stream == "temporal" else None
    return StreamSpec(stream=stream, network=network, stack=stack, resize_px=0, **values)


def test_check_refuses_what_cannot_be_built_without_building_it(tmp_path):
    networks.check(StreamSpec(network="vgg16", start="imagenet"))
    with pytest.raises(
        FileNotFoundError, match=r"\[spatial\] start is '.*absent.pth', which is no file; allowed: scratch, "
    ):
        networks.check(StreamSpec(start=str(tmp_path / "absent.pth")))
    with pytest.raises(ValueError, match="nonsense"):
        networks.check(StreamSpec(network="nonsense"))
    for network in OWN:
        with pytest.raises(ValueError, match=f"start is imagenet, but {network} has no ImageNet weights; allowed: scr"):
            networks.check(StreamSpec(network=network, start="imagenet"))


@pytest.mark.parametrize(
    ("network", "side", "message"),
    [
        ("vit_b_16", 64, "Expected 224 but got 64"),
        ("inception_v3", 64, "(Kernel size can't be greater|Output size is too small)"),
        ("squeezenet1_1", 16, "Output size is too small"),
        ("alexnet", 32, "Output size is too small"),
        ("maxvit_t", 100, "is invalid for input"),
    ],
)
def test_check_refuses_crops_that_do_not_suit_the_network(network, side, message):
    with pytest.raises(ValueError, match=rf"\[temporal\] crop_px is {side}; {network} cannot take it: .*{message}"):
        networks.check(spec("temporal", network, crop_px=side))
    networks.check(spec("temporal", network, crop_px=224))


@pytest.mark.parametrize("network", ["small", "cnn_m_2048", "resnet18", "googlenet", "regnet_y_400mf", "swin_t"])
@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_check_lets_pass_what_can_be_built(network, stream):
    networks.check(spec(stream, network, crop_px=224, segments=3, partial_bn=True))


@pytest.mark.parametrize("network", ["resnet1818", "raft_large"])
def test_a_network_that_does_not_exist_is_refused_whatever_it_starts_from(network):
    with pytest.raises(UserError, match=rf"\[spatial\] network '{network}' does not exist; "):
        check(StreamSpec(network=network, start="imagenet"))


def test_weights_of_another_network_are_refused_before_any_work(tmp_path):
    path = tmp_path / "small.pth"
    torch.save(build(StreamSpec(network="small"), 3).state_dict(), path)
    check(StreamSpec(network="small", start=str(path)))
    check(StreamSpec(network="small", start=str(path), stream="temporal", stack=StackSpec()))
    with pytest.raises(
        ValueError, match=r"\[spatial\] start: the weights in .*small.pth' do not belong to network 'resnet"
    ):
        check(StreamSpec(network="resnet18", start=str(path)))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="small.pth cannot be loaded with weights_only=True"):
        check(StreamSpec(network="small", start=str(path)))


def test_files_of_older_versions_of_torch_are_checked_too(tmp_path):
    path = tmp_path / "small.pth"
    torch.save(build(StreamSpec(network="small"), 3).state_dict(), path, _use_new_zipfile_serialization=False)
    check(StreamSpec(network="small", start=str(path)))
    with pytest.raises(ValueError, match="do not belong to network 'resnet18'"):
        check(StreamSpec(network="resnet18", start=str(path)))
