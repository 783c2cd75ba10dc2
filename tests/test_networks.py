"""Networks: layer sizes by hand, inflation in numpy, and what is refused."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import conv2d

from pipeline.networks import backbones, build, build_untrained, imagenet, resolve_device
from pipeline.networks.checkpoint import weights_hash
from pipeline.networks.starting import CHECKPOINT_FORMAT
from pipeline.specs import StackSpec, StreamSpec
from pipeline.system.errors import UserError
from pipeline.system.gpus import cuda_count

torch.set_num_threads(1)


def spec(stream="spatial", network="small", **values):
    stack = StackSpec(length=values.pop("length", 10)) if stream == "temporal" else None
    return StreamSpec(stream=stream, network=network, stack=stack, **{"resize_px": 0, "crop_px": 64, **values})


def test_a_network_without_a_convolution_starts_from_its_own_weights(monkeypatch, tmp_path):
    def body(spec):
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * spec.channels, 8)), 8, "head"

    monkeypatch.setitem(backbones.OWN, "flat", body)
    first, path = build(spec(network="flat"), 3), tmp_path / "weights.pth"
    torch.save(first.state_dict(), path)
    again = build(spec(network="flat", start=str(path)), 4)
    assert torch.equal(again.body[2].weight, first.body[2].weight)


@pytest.fixture(scope="module")
def squeezenet_file(tmp_path_factory):
    """Random weights in the file format of torchvision's squeezenet1_1, and the state in it."""
    torch.manual_seed(3)
    state = torchvision.models.squeezenet1_1().state_dict()
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    torch.save(state, path)
    return path, state


# Chatfield et al. 2014, table 2, with a 224 x 224 input: (layer, channels, side)
CNN_M = [
    ("Conv2d", 96, 109),
    ("MaxPool2d", 96, 54),
    ("Conv2d", 256, 26),
    ("MaxPool2d", 256, 13),
    ("Conv2d", 512, 13),
    ("Conv2d", 512, 13),
    ("Conv2d", 512, 13),
    ("MaxPool2d", 512, 6),
]


def on_meta(settings, num_classes=5):
    with torch.device("meta"):
        return build_untrained(settings, num_classes).eval()


def outputs(network, inputs):
    """(layer name, output shape) in the order in which layers run."""
    seen = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, _, out: seen.append((type(m).__name__, tuple(out.shape))))
    network(inputs)
    return seen


@pytest.mark.parametrize(("stream", "norms"), [("spatial", 2), ("temporal", 1)])
def test_cnn_m_has_the_layers_of_the_paper(stream, norms):
    network = on_meta(spec(stream, "cnn_m_2048", crop_px=224))
    seen = outputs(network, torch.empty(2, 20 if stream == "temporal" else 3, 224, 224, device="meta"))
    spatial = [(name, shape[1], shape[2]) for name, shape in seen if name in ("Conv2d", "MaxPool2d")]
    assert spatial == CNN_M
    assert [shape for name, shape in seen if name == "Linear"] == [(2, 4096), (2, 2048), (2, 5)]
    assert sum(name == "LocalResponseNorm" for name, _ in seen) == norms
    first, second = ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"], ["Conv2d", "ReLU", "MaxPool2d"]
    rest = ["Conv2d", "ReLU"] * 3 + ["MaxPool2d", "Flatten"] + ["Linear", "ReLU", "Dropout"] * 2 + ["Linear"]
    assert [name for name, _ in seen] == first + (first if norms == 2 else second) + rest
    kernels = [(m.kernel_size[0], m.stride[0]) for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(7, 2), (5, 2), (3, 1), (3, 1), (3, 1)]
    assert {(m.kernel_size, m.stride) for m in network.modules() if isinstance(m, nn.MaxPool2d)} == {(3, 2)}
    assert sum(name == "ReLU" for name, _ in seen) == 7 and sum(name == "Dropout" for name, _ in seen) == 2


def test_weights_of_gray_values_become_ours_by_the_first_layer_as_format_md_says():
    torch.manual_seed(0)
    image, mean = torch.randint(0, 256, (1, 3, 64, 64)).double(), torch.tensor([0.485, 0.456, 0.406]).double()
    std = torch.tensor([0.229, 0.224, 0.225]).double()
    theirs = torch.randn(96, 3, 7, 7).double()
    bgr = (image - 255 * mean.view(1, 3, 1, 1)).flip(1)
    ours = (image / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    converted = theirs.flip(1) * 255 * std.view(1, 3, 1, 1)
    torch.testing.assert_close(conv2d(ours, converted, stride=2), conv2d(bgr, theirs, stride=2))
    for stream, places in (("spatial", (0, 4, 8, 10, 12, 16, 19)), ("temporal", (0, 4, 7, 9, 11, 15, 18))):
        names = on_meta(spec(stream, "cnn_m_2048", crop_px=224)).body.state_dict()
        assert list(names) == [f"{place}.{kind}" for place in places for kind in ("weight", "bias")]


def test_cnn_m_takes_other_crops_and_says_which_are_too_small():
    for side in (112, 41):
        network = on_meta(spec("spatial", "cnn_m_2048", crop_px=side))
        assert network(torch.empty(1, 3, side, side, device="meta")).shape == (1, 5)
    with pytest.raises(ValueError, match=r"\[spatial\] crop_px is 40; cnn_m_2048 needs at least 41"):
        on_meta(spec("spatial", "cnn_m_2048", crop_px=40))


def test_the_normalization_is_krizhevskys():
    x = np.random.default_rng(0).random((7, 2, 2)).astype(np.float32) * 50
    layer = next(m for m in on_meta(spec("temporal", "cnn_m_2048")).modules() if isinstance(m, nn.LocalResponseNorm))
    expected = np.empty_like(x)
    for i in range(7):
        expected[i] = x[i] / (2 + 1e-4 * (x[max(0, i - 2) : i + 3] ** 2).sum(0)) ** 0.75
    np.testing.assert_allclose(layer(torch.from_numpy(x)[None])[0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_normalization_has_the_bits_of_torchs_and_the_same_gradient(layout):
    torch.manual_seed(0)
    ours = next(m for m in on_meta(spec("temporal", "cnn_m_2048")).modules() if isinstance(m, nn.LocalResponseNorm))
    theirs, found = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0), []
    values, wanted = (torch.randn(2, 12, 9, 7).mul(30).contiguous(memory_format=layout) for _ in range(2))
    for layer in (ours, theirs):
        inputs = values.clone().requires_grad_()
        outputs = layer(inputs)
        outputs.backward(wanted)
        assert outputs.is_contiguous(memory_format=layout)
        found.append((outputs, inputs.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)


def test_normalization_pools_no_more_values_at_once_than_cuda_counts(monkeypatch):
    values = torch.randn(5, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    whole, pool, pooled = backbones._mean_over_channels(values, 5), backbones.avg_pool2d, []
    monkeypatch.setattr(backbones, "_POOLED", 2 * 8 * 3 * 4)
    monkeypatch.setattr(backbones, "avg_pool2d", lambda of, *a, **how: pooled.append(len(of)) or pool(of, *a, **how))
    assert torch.equal(backbones._mean_over_channels(values, 5), whole) and pooled == [2, 1, 2]


def test_the_gradient_of_the_normalization_is_that_of_finite_differences():
    layer = next(m for m in on_meta(spec("temporal", "cnn_m_2048")).modules() if isinstance(m, nn.LocalResponseNorm))
    inputs = torch.randn(2, 7, 3, 2, dtype=torch.float64).mul(60).requires_grad_()
    assert torch.autograd.gradcheck(layer, inputs)


def test_half_precision_is_normalized_in_float32():
    layer = next(m for m in on_meta(spec("temporal", "cnn_m_2048")).modules() if isinstance(m, nn.LocalResponseNorm))
    inputs = torch.randn(2, 12, 9, 7).mul(300).bfloat16().requires_grad_()
    exact = inputs.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(inputs)
    outputs.sum().backward()
    layer(exact).sum().backward()
    assert outputs.dtype == inputs.grad.dtype == torch.bfloat16
    assert torch.equal(outputs, layer(exact).bfloat16())
    assert torch.equal(inputs.grad, exact.grad.bfloat16())


def test_the_normalization_uses_no_operation_without_a_repeatable_gradient_on_cuda():
    layer = next(m for m in on_meta(spec("temporal", "cnn_m_2048")).modules() if isinstance(m, nn.LocalResponseNorm))
    with torch.profiler.profile() as seen:
        layer(torch.randn(2, 12, 9, 7, requires_grad=True)).sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert "aten::avg_pool2d" in names and not any("pool3d" in name or "_backward" in name for name in names)


@pytest.mark.parametrize(
    ("network", "width"),
    [("small", 128), ("squeezenet1_1", 512), ("resnet18", 512), ("mobilenet_v3_small", 1024), ("alexnet", 4096)],
)
@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_features_are_the_input_of_the_head(network, width, stream):
    settings = spec(stream, network, dropout=0.5)
    made, inputs = build(settings, 7).eval(), torch.randn(2, settings.channels, 64, 64)
    features = made.features(inputs)
    assert features.shape == (2, width)
    torch.testing.assert_close(made(inputs), features @ made.head.weight.T + made.head.bias, rtol=1e-4, atol=1e-5)


def test_small_is_small():
    assert sum(weight.numel() for weight in build(spec("temporal"), 6).parameters()) < 200_000


def test_dropout_of_the_spec_reaches_the_classifier_only():
    counts = {"alexnet": 2, "mobilenet_v3_small": 1, "squeezenet1_1": 1, "small": 1, "cnn_m_2048": 2}
    for name, count in counts.items():
        found = [m.p for m in on_meta(spec("spatial", name, dropout=0.7)).modules() if isinstance(m, nn.Dropout)]
        assert found == [0.7] * count, name


@pytest.mark.parametrize("network", ["resnet18", "densenet121", "shufflenet_v2_x0_5"])
def test_a_network_without_dropout_gets_one_before_its_head(network):
    """Features are zeroed with the setting's probability, or scaled by 1 / (1 - p), when only the head learns as well."""
    torch.manual_seed(0)
    made = build(spec("spatial", network, dropout=0.8, train_layers="last"), 3)
    inputs = torch.randn(4, 3, 64, 64)
    whole, dropped = made.eval().features(inputs), made.train().features(inputs)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, whole / 0.2, 0), rtol=1e-4, atol=1e-6)
    alive = (whole != 0).sum().item()
    assert kept.sum().item() / alive == pytest.approx(0.2, abs=0.04)  # of 2,048 features or more: four standard errors
    assert not (set(made.body.state_dict()) - set(torchvision.models.get_model(network).state_dict()))


def test_a_dropout_of_nothing_changes_no_bit():
    inputs = torch.randn(2, 3, 64, 64)
    made = build(spec("spatial", "resnet18", dropout=0.0, train_layers="last"), 3)
    assert torch.equal(made.train().features(inputs), made.eval().features(inputs))


@pytest.mark.parametrize("length", [1, 5])
def test_first_layer_is_inflated_by_the_mean_over_rgb(squeezenet_file, length, capsys):
    path, state = squeezenet_file
    made = build(spec("temporal", "squeezenet1_1", start=str(path), length=length), 4)
    mean = state["features.0.weight"].numpy().mean(axis=1, keepdims=True)
    weight = made.body.features[0].weight.detach().numpy()
    assert weight.shape == (64, 2 * length, 3, 3)
    np.testing.assert_allclose(weight, np.repeat(mean, 2 * length, axis=1), rtol=1e-6)
    for name, value in made.body.state_dict().items():
        if name != "features.0.weight":
            torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert f"features.0.weight inflated from 3 to {2 * length} channels" in capsys.readouterr().err


def test_spatial_start_keeps_every_weight_but_the_head(squeezenet_file):
    path, state = squeezenet_file
    made = build(spec("spatial", "squeezenet1_1", start=str(path)), 4)
    assert all(torch.equal(value, state[name]) for name, value in made.body.state_dict().items())
    assert made.head.weight.shape == (4, 512)


def test_a_state_of_our_own_starts_a_network_of_other_classes(tmp_path):
    old = build(spec("temporal", "small"), 6)
    torch.save({"format": CHECKPOINT_FORMAT, "state": old.state_dict()}, tmp_path / "old.pt")
    new = build(spec("temporal", "small", start=str(tmp_path / "old.pt")), 9)
    assert all(torch.equal(value, old.body.state_dict()[name]) for name, value in new.body.state_dict().items())
    assert new.head.out_features == 9


def test_weights_of_another_architecture_are_refused_naming_both(squeezenet_file):
    path, _ = squeezenet_file
    with pytest.raises(ValueError, match=r"squeezenet1_1.pth' do not belong to network 'resnet18'.*absent in the file"):
        build(spec("spatial", "resnet18", start=str(path)), 4)
    with pytest.raises(ValueError, match=r"do not belong to network 'small' with 3 input channels"):
        build(spec("spatial", "small", start=str(path)), 4)
    with pytest.raises(ValueError, match=r"to network 'squeezenet1_0'.*\(96, 3, 7, 7\) in the network, \(64, 3"):
        build(spec("spatial", "squeezenet1_0", start=str(path)), 4)


@pytest.mark.parametrize("plain", [False, True], ids=["checkpoint", "plain"])
def test_the_paper_s_spatial_network_starts_its_temporal_one(tmp_path, plain):
    sizes = {"network": "cnn_m_2048", "crop_px": 64, "resize_px": 64}
    rgb = build(StreamSpec(**sizes), 5).state_dict()
    kept = {name.removeprefix("body."): value for name, value in rgb.items() if not name.startswith("head.")}
    torch.save(kept if plain else rgb, tmp_path / "rgb.pth")
    settings = StreamSpec(**sizes, stream="temporal", stack=StackSpec(length=5), start=str(tmp_path / "rgb.pth"))
    temporal = build(settings, 7)
    convolutions, linear = (0, 4, 8, 10, 12), (16, 19)  # the second normalization, number 6, is missing
    for layer in (*convolutions, *linear):
        own = temporal.body[layer - (layer > 6)]
        expected = rgb[f"body.{layer}.weight"]
        expected = expected.mean(1, keepdim=True).expand(-1, 10, -1, -1) if layer == 0 else expected
        torch.testing.assert_close(own.weight.detach(), expected, rtol=0, atol=1e-7)
        torch.testing.assert_close(own.bias.detach(), rgb[f"body.{layer}.bias"], rtol=0, atol=0)
    torch.save(temporal.state_dict(), tmp_path / "rgb.pth")  # whose names are right already
    again = build(settings, 7).body.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in temporal.body.state_dict().items())


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_start_that_is_no_weights_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="'nowhere.pth', which is no file; allowed: scratch, imagenet"):
        build(spec(start="nowhere.pth"), 4)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="text.pth cannot be loaded with weights_only=True"):
        build(spec(start=str(tmp_path / "text.pth")), 4)
    no_weights = {"format": CHECKPOINT_FORMAT, "format_version": 1}
    for content in ({"epoch": 3}, {0: torch.ones(3)}, {"weight": torch.ones(3).to_sparse()}, no_weights):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(UserError, match="holds no state dict"):
            build(spec(start=str(tmp_path / "other.pth")), 4)


def test_code_in_a_weights_file_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="weights_only=True"):
        build(spec(start=str(tmp_path / "evil.pth")), 4)
    assert not (tmp_path / "owned").exists()


def test_imagenet_needs_published_weights_and_a_way_to_get_them(monkeypatch):
    with pytest.raises(ValueError, match="weights of efficientnet_v2_l want frames of another mean and deviation"):
        imagenet.refuse(StreamSpec(network="efficientnet_v2_l", start="imagenet"))
    imagenet.refuse(StreamSpec(network="efficientnet_v2_m", start="imagenet"))
    with pytest.raises(ValueError, match="cnn_m_2048 has no ImageNet weights"):
        build(spec(network="cnn_m_2048", start="imagenet"), 4)

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        FileNotFoundError, match=r"squeezenet1_1-\w+.pth cannot be downloaded or read \(no route.*put that file into"
    ):
        build(spec(network="squeezenet1_1", start="imagenet"), 4)


def test_real_imagenet_weights_start_both_streams(shared):
    path = shared / "data" / "weights" / "squeezenet1_0_imagenet.pth"
    state = torch.load(path, weights_only=True)
    for stream in ("spatial", "temporal"):
        made = build(spec(stream, "squeezenet1_0", start=str(path)), 10)
        assert torch.equal(made.body.features[12].expand3x3.weight, state["features.12.expand3x3.weight"])


def test_last_layer_training_freezes_the_body_but_not_its_dropout():
    made = build(spec("spatial", "mobilenet_v3_small", train_layers="last", dropout=0.5), 4).train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert [name for name, weight in made.named_parameters() if weight.requires_grad] == ["head.weight", "head.bias"]
    assert made.training and all(isinstance(m, nn.Dropout) == m.training for m in made.body.modules())
    optimizer = torch.optim.SGD(made.head.parameters(), lr=0.1)
    nn.functional.cross_entropy(made(torch.randn(4, 3, 64, 64)), torch.zeros(4, dtype=int)).backward()
    optimizer.step()
    changed = {name for name, value in made.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert not any(module.training for module in made.eval().modules())


def test_unknown_networks_and_layers_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="network 'resnet19' does not exist; did you mean 'resnet1"):
        build(spec(network="resnet19"), 4)
    with pytest.raises(ValueError, match="num_classes is 1; a network needs at least 2"):
        build(spec(), 1)
    monkeypatch.setattr(backbones, "_torchvision_model", lambda _: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    with pytest.raises(ValueError, match="no first convolution of 3 channels that could take 20"):
        build(spec("temporal", "resnet18"), 4)


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if cuda_count() else "cpu")
    with pytest.raises(ValueError, match="device is 'gpu'; allowed: auto, cpu"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="device is 'cuda:99', but torch sees"):
        resolve_device("cuda:99")


FAMILIES = [
    ("vgg11", 32, 4096),
    ("densenet121", 32, 1024),
    ("efficientnet_b0", 32, 1280),
    ("googlenet", 64, 1024),
    ("inception_v3", 75, 2048),
    ("shufflenet_v2_x0_5", 32, 1024),
    ("resnet50", 32, 2048),
    ("convnext_tiny", 32, 768),
]


@pytest.mark.parametrize(("network", "side", "width"), FAMILIES)
def test_every_family_of_torchvision_is_a_body_for_flow(network, side, width):
    made = on_meta(spec("temporal", network, segments=2, crop_px=max(side, 16)))
    assert made(torch.empty(2, 2, 20, side, side, device="meta")).shape == (2, 5)
    assert made.features(torch.empty(2, 20, side, side, device="meta")).shape == (2, width)


def test_cnn_m_has_as_many_weights_as_its_layers_say():
    """Chatfield et al. 2014, table 2: products of the layers' sizes, with biases; 101 classes."""
    for stream, channels in (("spatial", 3), ("temporal", 20)):
        convolutions = [(7, channels, 96), (5, 96, 256), (3, 256, 512), (3, 512, 512), (3, 512, 512)]
        full = [(512 * 6 * 6, 4096), (4096, 2048), (2048, 101)]
        count = sum(k * k * a * b + b for k, a, b in convolutions) + sum(a * b + b for a, b in full)
        network = on_meta(spec(stream, "cnn_m_2048", crop_px=224), 101)
        assert sum(weight.numel() for weight in network.parameters()) == count


def test_the_hash_of_weights_is_of_names_and_values():
    state = {"a": torch.zeros(3), "b": torch.ones(2)}
    assert weights_hash(state) == weights_hash({"b": torch.ones(2), "a": torch.zeros(3)})
    assert weights_hash({**state, "a": torch.tensor([0, 0, 1e-7])}) != weights_hash(state)
    assert weights_hash({"a": torch.zeros(3), "c": torch.ones(2)}) != weights_hash(state)


def test_dropout_is_that_before_the_head_and_not_of_transformer_blocks():
    with torch.device("meta"):
        body = build_untrained(spec(network="vit_b_16", crop_px=224, resize_px=256, dropout=0.9), 5).body
    found = {name: module.p for name, module in body.named_modules() if isinstance(module, nn.Dropout)}
    assert {p for name, p in found.items() if name.startswith("encoder.")} == {0.0}
    assert [p for name, p in found.items() if not name.startswith("encoder.")] == [0.9]


def test_networks_with_auxiliary_heads_train_without_them():
    network = build_untrained(spec(network="googlenet", crop_px=64, resize_px=64), 5).train()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_small_stays_the_network_of_old_checkpoints():
    layers = [m for m in build_untrained(spec(), 5).body if isinstance(m, nn.Conv2d)]
    found = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0], m.bias) for m in layers]
    expected = [(3, 16, 5, 2, 2, None), (16, 32, 3, 2, 1, None), (32, 64, 3, 2, 1, None), (64, 128, 3, 2, 1, None)]
    assert found == expected


def test_a_first_layer_without_bias_is_inflated_as_it_is(tmp_path):
    """ResNet's: 7 x 7, stride 2, padding 3, no bias, as in most networks with batch normalization."""
    published = torchvision.models.resnet18()
    torch.save(published.state_dict(), tmp_path / "resnet18.pth")
    made = build(spec("temporal", "resnet18", start=str(tmp_path / "resnet18.pth"), length=2), 4).body
    first, images = made.conv1, torch.randn(2, 1, 32, 32).expand(-1, 3, -1, -1)  # gray: the mean is all that counts
    assert first.weight.shape == (64, 4, 7, 7) and first.bias is None
    found = first(images[:, :1].expand(-1, 4, -1, -1)) * 3 / 4
    torch.testing.assert_close(found, published.conv1(images), rtol=1e-4, atol=1e-5)
    assert set(made.state_dict()) == {name for name in published.state_dict() if not name.startswith("fc.")}
