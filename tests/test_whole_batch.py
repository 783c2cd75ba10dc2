"""Dropout, stochastic depth and batch normalization of the pieces of a batch, against those of the whole batch."""

import copy

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torchvision.ops import StochasticDepth

from pipeline.training.whole_batch import Piece, draw_for_whole_batch, normalize_over_processes


def layers(kind):
    random = {"dropout": nn.Dropout(0.4), "depth": StochasticDepth(0.4, "row"), "batch": StochasticDepth(0.4, "batch")}
    return nn.Sequential(nn.Identity(), nn.Sequential(random[kind]))


@pytest.mark.parametrize("kind", ["dropout", "depth", "batch"])
@pytest.mark.parametrize(
    ("shape", "memory"),
    [
        ((12, 50), torch.contiguous_format),
        ((12, 5, 4, 3), torch.contiguous_format),
        ((12, 5, 4, 3), torch.channels_last),
        ((12, 7, 8), torch.contiguous_format),
    ],
)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_piece_gets_the_draws_that_it_has_in_the_whole_batch(kind, shape, memory, count):
    inputs = torch.randn(shape).contiguous(memory_format=memory)
    torch.manual_seed(3)
    expected, found = layers(kind)(inputs), []
    piece, network = Piece(count), layers(kind)
    draw_for_whole_batch(network, piece)
    for piece.place, rows in enumerate(inputs.chunk(count)):
        torch.manual_seed(3)
        found.append(network(rows))
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-6, atol=0)
    assert torch.equal(network.eval()(inputs), inputs)


def test_networks_keep_the_names_of_their_weights_and_layers_their_kind():
    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2))
    names = list(network.state_dict())
    draw_for_whole_batch(network, Piece(1))
    assert type(network[1]) is nn.Dropout
    draw_for_whole_batch(network, Piece(2))
    assert isinstance(network[1], nn.Dropout) and type(network[1]) is not nn.Dropout
    assert list(network.state_dict()) == names


# --- batch normalization over two processes, against torch's own layer that sees all items


class Bend(nn.Module):
    """A layer before the normalization whose gradient passes through it."""

    def __init__(self):
        super().__init__()
        self.strength = nn.Parameter(torch.linspace(0.1, 0.5, 5))

    def forward(self, inputs):
        return (inputs * self.strength.view(-1, *[1] * (inputs.ndim - 2))).sin()


def trained(network, model, *data):
    """Every weight and buffer after two steps."""
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    for inputs, factors in data:
        optimizer.zero_grad()
        (model(inputs).square() * factors).mean().backward()
        optimizer.step()
    return network.state_dict()


def network_and_data():
    generator = torch.Generator().manual_seed(2)
    batches = torch.randn((2, 2, 6, 5, 4, 3), generator=generator, dtype=torch.double) + 1
    return nn.Sequential(Bend(), nn.Sequential(nn.BatchNorm2d(5))).double(), batches


def one_of_two(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    network, batches = network_and_data()
    normalize_over_processes(network, torch.device("cpu"))
    model = nn.parallel.DistributedDataParallel(network)
    torch.save(trained(network, model, *batches.chunk(2, dim=2)[rank]), f"{folder}/{rank}")
    distributed.destroy_process_group()


def test_two_processes_normalize_by_what_both_see(tmp_path):
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    network, batches = network_and_data()
    expected = trained(network, network, *batches)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / str(rank)), expected, rtol=1e-12, atol=1e-12)


def test_normalization_that_is_not_trained_stays_as_torch_has_it():
    network, inputs = nn.Sequential(nn.BatchNorm2d(3, eps=0.01)), torch.randn(4, 3, 5, 5)
    network(inputs)
    expected = network.eval()(inputs)
    normalize_over_processes(network, torch.device("cpu"))
    assert not network[0].training and torch.equal(network(inputs), expected)


def test_one_process_normalizes_as_torch_does():
    network, batches = network_and_data()
    reference = copy.deepcopy(network)
    expected = trained(reference, reference, *batches)
    normalize_over_processes(network, torch.device("cpu"))
    torch.testing.assert_close(trained(network, network, *batches), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_statistics_of_many_values_are_hardly_rounded(memory):
    """Differences of 1e-5, as between numbers of threads with torch's own layer, grow a hundredfold in twenty steps."""
    inputs = (torch.randn((16, 8, 60, 60), generator=torch.Generator().manual_seed(0)) * 1.3 + 0.4).to(
        memory_format=memory
    )
    network = nn.Sequential(nn.BatchNorm2d(8, momentum=1.0))
    normalize_over_processes(network, torch.device("cpu"))
    inputs.requires_grad_()
    (network(inputs).square() * torch.linspace(0, 1, 60)).mean().backward()
    wide = inputs.detach().double().requires_grad_()
    mean, variance = wide.mean((0, 2, 3), keepdim=True), wide.var((0, 2, 3), keepdim=True, correction=0)
    ((wide - mean) / (variance + 1e-5).sqrt()).square().mul(torch.linspace(0, 1, 60)).mean().backward()
    unbiased = wide.detach().var((0, 2, 3))
    torch.testing.assert_close(
        network[0].running_mean.double(), mean.flatten(), rtol=1e-7, atol=1e-7, check_dtype=False
    )
    torch.testing.assert_close(network[0].running_var.double(), unbiased, rtol=3e-7, atol=0)
    torch.testing.assert_close(inputs.grad.double(), wide.grad, rtol=1e-5, atol=1e-6 * wide.grad.abs().max().item())


def test_one_value_has_no_variance():
    network = nn.Sequential(nn.BatchNorm2d(3))
    normalize_over_processes(network, torch.device("cpu"))
    with pytest.raises(ValueError, match="batch normalization of one value for each channel; raise batch, or crop_px"):
        network(torch.zeros(1, 3, 1, 1))
    assert network.eval()(torch.zeros(1, 3, 1, 1)).shape == (1, 3, 1, 1)


def test_half_precision_is_normalized_in_float32():
    network, inputs = nn.Sequential(nn.BatchNorm2d(3)), torch.randn(4, 3, 5, 5) + 100.2
    expected = copy.deepcopy(network)(inputs.bfloat16().float())
    normalize_over_processes(network, torch.device("cpu"))
    found = network(inputs.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.02)
