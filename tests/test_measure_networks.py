"""Trials of networks: what a step costs is told from what each clip adds to it."""

import dataclasses

import pytest
import torch
from chains import snapshot

from pipeline.estimates import measure_networks
from pipeline.estimates.measure_networks import gpus_that_share, network, timed_as
from pipeline.networks import build_untrained
from pipeline.specs import StackSpec, StreamSpec

SMALL = StreamSpec(network="small", resize_px=0, crop_px=32, batch=32, steps=10, milestones=())
TEMPORAL = dataclasses.replace(SMALL, stream="temporal", stack=StackSpec(length=2))


class Clock:
    """Time passes only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure_networks.time, "perf_counter", clock)
    return clock


def test_steps_and_clips_by_a_clock_of_our_own(clock, monkeypatch):
    sizes = []

    def train_step(run, inputs, labels):
        sizes.append(len(inputs))
        clock.now += 0.05 + 0.01 * len(inputs)

    monkeypatch.setattr(measure_networks, "train_step", train_step)
    found = network(SMALL, 3, device="cpu")
    assert sorted(set(sizes)) == [2, 8, 32]  # the whole batch, since it is quick
    assert found.step_seconds == pytest.approx(0.05) and found.clip_seconds == pytest.approx(0.01)


def test_slow_steps_stay_small(clock, monkeypatch):
    sizes = []

    def train_step(run, inputs, labels):
        sizes.append(len(inputs))
        clock.now += 3 + len(inputs)

    monkeypatch.setattr(measure_networks, "train_step", train_step)
    found = network(SMALL, 3, device="cpu")
    assert sizes == [2, 2, 8]  # the first one prepares
    assert found.step_seconds == pytest.approx(3) and found.clip_seconds == pytest.approx(1)


def test_memory_that_does_not_suffice_for_more_ends_the_trial(clock, monkeypatch):
    def train_step(run, inputs, labels):
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("out of memory")
        clock.now += 1

    monkeypatch.setattr(measure_networks, "train_step", train_step)
    found = network(SMALL, 3, device="cpu")
    assert (found.step_seconds, found.clip_seconds) == (0.0, 0.5)  # of one size alone: all of it is the clips'


@pytest.mark.parametrize(("fits", "error"), [(0, torch.OutOfMemoryError("out of memory")), (2, RuntimeError("a bug"))])
def test_memory_that_does_not_suffice_at_all_and_any_other_error_are_raised(clock, monkeypatch, fits, error):
    def train_step(run, inputs, labels):
        clock.now += 1
        if len(inputs) > fits:
            raise error

    monkeypatch.setattr(measure_networks, "train_step", train_step)
    with pytest.raises(RuntimeError, match=str(error)):
        network(SMALL, 3, device="cpu")


@pytest.mark.parametrize(
    "spec",
    [
        SMALL,
        TEMPORAL,
        dataclasses.replace(TEMPORAL, segments=3, consensus="max"),
        dataclasses.replace(SMALL, with_dataset="other", with_how="heads"),
        dataclasses.replace(SMALL, with_dataset="other", with_how="classes", optimizer="adamw"),
        dataclasses.replace(SMALL, batch=1, start="imagenet", train_layers="last"),
    ],
    ids=["spatial", "temporal", "segments", "heads", "classes", "last layer"],
)
def test_every_kind_of_training_can_be_timed(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure_networks, "STEP_SECONDS", 0.0)
    state = torch.random.get_rng_state()
    found = network(spec, 3, device="cpu")
    assert min(found.step_seconds, found.clip_seconds) >= 0 and found.view_seconds > 0 and found.features == 128
    assert torch.equal(torch.random.get_rng_state(), state) and snapshot(tmp_path) == {}


def test_sizes_are_those_of_the_tensors():
    found = network(SMALL, 3, device="cpu")
    built = build_untrained(SMALL, 3)
    weights = sum(p.numel() for p in built.parameters())
    state = sum(value.nbytes for value in built.state_dict().values())
    assert found.weights_bytes == state and found.resume_bytes == 2 * state + 4 * weights
    twice = network(dataclasses.replace(SMALL, optimizer="adamw"), 3, device="cpu")
    assert twice.resume_bytes == 2 * state + 8 * weights


def test_one_thread_is_given_back(one_torch_thread):
    torch.set_num_threads(2)
    network(SMALL, 3, device="cpu", one_thread=True)
    assert torch.get_num_threads() == 2


def test_what_does_not_change_the_speed_is_timed_once():
    same = dataclasses.replace(SMALL, seed=3, steps=99, learning_rate=0.1, milestones=(5,), start="weights.pth")
    assert timed_as(SMALL) == timed_as(same) != timed_as(TEMPORAL)
    assert timed_as(SMALL) != timed_as(dataclasses.replace(SMALL, batch=16))
    with_other = dataclasses.replace(SMALL, with_dataset="other", with_how="start")
    assert timed_as(with_other) == timed_as(SMALL)


def test_processes_share_gpus_and_not_cores(monkeypatch):
    two = dataclasses.replace(SMALL, processes=2)
    assert gpus_that_share(two, "cpu") == 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert gpus_that_share(two, "auto") == 2 and gpus_that_share(dataclasses.replace(SMALL, processes=0), "cuda") == 4


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device is 'gpu'; allowed"):
        network(SMALL, 3, device="gpu")
