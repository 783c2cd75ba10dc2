"""Who reads which items, and what is refused."""

import contextlib
import os

import pytest
import torch
from torch import nn

from pipeline.dataset.loading import loader_workers
from pipeline.specs import StreamSpec
from pipeline.training import parallel, whole_batch
from pipeline.training.parallel import ItemSampler, World, process_count


def test_one_process_reads_all_items_in_order():
    spec = StreamSpec(batch=6, steps=4)
    assert list(ItemSampler(spec, World(), 1)) == list(range(6, 24))
    assert len(ItemSampler(spec, World(), 1)) == 18 and ItemSampler(spec, World(), 1)[-1] == 23
    with pytest.raises(IndexError):
        ItemSampler(spec, World(), 1)[18]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_processes_share_every_part_of_a_batch(size, parts):
    spec = StreamSpec(batch=8, steps=3, accumulate=parts)
    shares = [list(ItemSampler(spec, World(rank, size), 1)) for rank in range(size)]
    for step in (0, 1):
        for part in range(parts):
            n = 8 // parts // size
            first = step * parts * n + part * n
            read = [number for share in shares for number in share[first : first + n]]
            begin = (step + 1) * 8 + part * 8 // parts
            assert read == list(range(begin, begin + 8 // parts))


def test_items_of_the_example():
    spec = StreamSpec(batch=8, steps=1, accumulate=2)
    assert [list(ItemSampler(spec, World(rank, 2), 0)) for rank in (0, 1)] == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_who_is_alone_needs_nobody():
    value = torch.tensor([1.5])
    assert whole_batch.mean_over_processes(value) is value and World().gather("x") == ["x"]
    network = nn.Linear(2, 2)
    assert parallel.data_parallel(network, World(), torch.device("cpu")) is network


@pytest.fixture
def gpus(monkeypatch):
    """A machine that seems to have four GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_one_process_a_gpu(gpus):
    assert process_count(StreamSpec(processes=0), "auto") == 4
    assert process_count(StreamSpec(processes=0), "cuda:2") == 1
    assert process_count(StreamSpec(processes=2), "cuda") == 2
    assert process_count(StreamSpec(), "auto") == 1
    assert process_count(StreamSpec(processes=0), "cpu") == 1
    assert process_count(StreamSpec(processes=8), "cpu") == 8


@pytest.mark.parametrize(
    ("values", "device", "message"),
    [
        ({"processes": 8}, "cuda", r"\[spatial\] processes is 8, but torch sees 4 CUDA devices here"),
        ({"processes": 2}, "cuda:1", r"device is 'cuda:1', one GPU, but \[spatial\] processes is 2 and machines is 1"),
        (
            {"processes": 1, "machines": 2, "rendezvous": "gpu1:29500"},
            "cuda:1",
            r"device is 'cuda:1', one GPU, but \[spatial\] processes is 1 and machines is 2; use auto or cuda",
        ),
        (
            {"deterministic": True, "network": "vgg16"},
            "cuda",
            r"\[spatial\] deterministic is true, but vgg16 has a layer \(avgpool: AdaptiveAvgPool2d to \(7, 7\)\) that",
        ),
        ({"deterministic": True, "network": "alexnet"}, "cuda:1", r"alexnet has a layer \(avgpool: .* \(6, 6\)\) that"),
        (
            {"processes": 0, "batch": 6},
            "auto",
            r"\[spatial\] batch is 6; accumulate \(1\) x processes \(4\) x machines",
        ),
    ],
)
def test_what_this_machine_cannot_do_is_refused(gpus, values, device, message):
    with pytest.raises(ValueError, match=message):
        process_count(StreamSpec(**values), device)


@pytest.mark.parametrize("network", ["cnn_m_2048", "small", "resnet18", "squeezenet1_1", "vit_b_16"])
def test_networks_that_repeat_their_bits_on_a_gpu_may_be_asked_to(gpus, network):
    assert process_count(StreamSpec(deterministic=True, network=network), "cuda") == 1


def test_layers_that_do_not_learn_need_not_repeat_their_bits(gpus):
    assert process_count(StreamSpec(deterministic=True, network="vgg16", train_layers="last"), "cuda") == 1
    assert process_count(StreamSpec(deterministic=True, network="vgg16"), "cpu") == 1


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    found = [loader_workers(-1, torch.device("cuda"), sharing) for sharing in (1, 2, 4, 20)]
    assert found == [12, 6, 3, 1] and loader_workers(5, torch.device("cuda"), 4) == 5


@pytest.fixture
def ddp(monkeypatch):
    """DistributedDataParallel that only notes what it is given."""
    given = {}
    monkeypatch.setattr(
        nn.parallel, "DistributedDataParallel", lambda network, **options: given.update(options) or network
    )
    return given


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_batch_normalization_is_over_all_processes(ddp, device):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    names, weights = list(network.state_dict()), list(network.parameters())
    assert parallel.data_parallel(network, World(1, 2, 2), torch.device(device)) is network
    assert isinstance(network[1], nn.SyncBatchNorm if device == "cuda:1" else whole_batch._BatchNormOfAll)
    assert ddp == {"device_ids": [1] if device == "cuda:1" else None}
    assert list(network.state_dict()) == names
    assert all(a is b for a, b in zip(network.parameters(), weights, strict=True))


@pytest.mark.parametrize("address", ["", "gpu1"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_process_takes_the_gpu_of_its_number_and_leaves_the_others_only_when_done(
    gpus, monkeypatch, tmp_path, address, fails
):
    asked, chosen, left = {}, [], []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **o: asked.update(o, backend=backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append(True))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    place = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in (place | ({"MASTER_ADDR": address} if address else {})).items():
        monkeypatch.setenv(name, value)
    expected = pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext()
    with expected, parallel.process_group("auto", tmp_path / "meeting") as (world, device):
        assert (world, device) == (World(5, 8, 4), torch.device("cuda", 1)) and chosen == [device] and not left
        if fails:
            raise ZeroDivisionError
    assert (
        bool(left) != fails
        and (asked["rank"], asked["world_size"]) == (5, 8)
        and asked["backend"] == "cpu:gloo,cuda:nccl"
    )
    assert "init_method" not in asked  # without a store either, torch reads the environment
    assert asked["store"] is None if address else asked["store"].path == str(tmp_path / "meeting")
