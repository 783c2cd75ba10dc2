"""Learning rates against their equations, optimizers against theirs, and the algorithms that repeat their bits."""

import math
import multiprocessing
import os
import re

import numpy as np
import pytest
import torch

from pipeline.specs import StreamSpec
from pipeline.system.tensors import true_float32
from pipeline.training.recipe import algorithms, learning_rate, make_optimizer, precision, remark_on_milestones

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def rates(**values):
    spec = StreamSpec(**values)
    return [learning_rate(spec, step) for step in range(spec.steps)]


def test_step_falls_by_ten_at_each_milestone():
    found = rates(learning_rate=0.01, milestones=(3, 5), steps=7)
    assert found == pytest.approx([0.01] * 3 + [0.001] * 2 + [0.0001] * 2)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"milestones": (500, 700), "steps": 500},
            "milestones 500, 700 come after the last of 500 steps, so .* never fal",
        ),
        (
            {"milestones": (499, 700), "steps": 500},
            "milestones 700 come after the last of 500 steps, so .* falls less oft",
        ),
        ({"milestones": (300, 499), "steps": 500}, "^$"),
        ({"milestones": (), "steps": 500}, "^$"),
        ({"milestones": (500,), "steps": 500, "schedule": "cosine"}, "^$"),
    ],
)
def test_milestones_that_no_step_reaches_are_reported(settings, told):
    assert re.search(told, remark_on_milestones(StreamSpec(**settings)))


def test_cosine_is_half_a_wave():
    found = rates(schedule="cosine", learning_rate=0.3, learning_rate_end=0.1, steps=8, milestones=(2,))
    assert found == pytest.approx([0.1 + 0.2 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)])
    assert found[0] == pytest.approx(0.3) and found[4] == pytest.approx(0.2)
    assert rates(schedule="cosine", learning_rate=1.0, steps=1000)[-1] == pytest.approx(2.467e-6, rel=1e-3)  # ~ 0


def test_warmup_is_a_line_and_the_wave_begins_at_its_end():
    found = rates(schedule="cosine", learning_rate=1.0, steps=12, warmup=4)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[4:] == pytest.approx([(1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)])
    assert rates(learning_rate=1.0, steps=6, warmup=2, milestones=(1, 4)) == pytest.approx(
        [0.5, 0.1, 0.1, 0.1, 0.01, 0.01]
    )


def test_adamw_is_its_equations():
    spec = StreamSpec(optimizer="adamw", learning_rate=0.1, momentum=0.8, weight_decay=0.05)
    layer, frozen = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1).requires_grad_(False)
    network = torch.nn.Sequential(layer, frozen)
    optimizer = make_optimizer(spec, network)
    weight, first, second = layer.weight.item(), 0.0, 0.0
    for step, slope in enumerate((0.5, -0.2, 0.9), 1):
        layer.weight.grad = torch.tensor([[slope]])
        optimizer.step()
        first, second = 0.8 * first + 0.2 * slope, 0.999 * second + 0.001 * slope**2
        weight *= 1 - 0.1 * 0.05
        weight -= 0.1 * (first / (1 - 0.8**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
    assert layer.weight.item() == pytest.approx(weight, rel=1e-5)
    assert len(optimizer.param_groups[0]["params"]) == 1


@pytest.mark.parametrize("hardware", [True, False])
def test_auto_precision_goes_by_the_device(monkeypatch, hardware):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: hardware or including_emulation)
    assert precision(StreamSpec(), CPU) is None
    assert precision(StreamSpec(), CUDA) is (torch.bfloat16 if hardware else torch.float16)
    named = {"float32": None, "bf16": torch.bfloat16, "float16": torch.float16}
    assert {name: precision(StreamSpec(precision=name), CUDA) for name in named} == named
    assert precision(StreamSpec(precision="bf16"), CPU) is torch.bfloat16


def settings_of_torch():
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark, dict(os.environ)


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_deterministic_algorithms_are_for_the_training_only(monkeypatch, given):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    before = settings_of_torch()
    with algorithms(StreamSpec()):
        assert settings_of_torch() == before
        assert not torch.backends.cudnn.allow_tf32  # ten bits are no float32
    assert torch.backends.cudnn.allow_tf32
    with pytest.raises(ZeroDivisionError), algorithms(StreamSpec(deterministic=True)):
        assert settings_of_torch()[:3] == (True, True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (given or ":4096:8")
        raise ZeroDivisionError
    assert settings_of_torch() == before and torch.backends.cudnn.allow_tf32


def _precisions_around_true_float32(asked_for):
    exec(asked_for, {"torch": torch})
    operations = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [operation.fp32_precision for operation in operations]
    with true_float32():
        within = [operation.fp32_precision for operation in operations]
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    return before, within, [operation.fp32_precision for operation in operations]


@pytest.mark.parametrize(
    "asked_for",
    [
        "pass",
        "torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.set_float32_matmul_precision('high')",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.cudnn.fp32_precision = 'tf32'",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    ],
)
def test_true_float32_whatever_was_asked_for_and_by_which_of_torchs_ways(asked_for):
    with multiprocessing.get_context("fork").Pool(1) as pool:  # torch cannot forget which way was used
        before, within, after = pool.apply(_precisions_around_true_float32, (asked_for,))
    assert within == ["ieee"] * 3 and after == before


def test_the_choice_of_algorithms_names_no_other_result():
    assert StreamSpec(deterministic=True, processes=2).digest() == StreamSpec().digest()
    changes = [{"accumulate": 2}, {"precision": "bf16"}, {"schedule": "cosine"}, {"warmup": 1}, {"clip_norm": 20.0}]
    digests = {StreamSpec(**change).digest() for change in [{}, {"optimizer": "adamw"}, *changes]}
    assert len(digests) == len(changes) + 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup": 5, "steps": 5}, r"\[spatial\] warmup is 5; it must be less than steps \(5\)"),
        (
            {"learning_rate_end": 0.1},
            r"\[spatial\] learning_rate_end is 0.1; it must be at most learning_rate \(0.01\)",
        ),
        ({"batch": 6, "accumulate": 4}, r"\[spatial\] batch is 6; accumulate \(4\) x processes \(1\) x machines \(1\)"),
        (
            {"batch": 6, "processes": 4},
            r"batch is 6; accumulate \(1\) x processes \(4\) x machines \(1\) must divide it",
        ),
        ({"machines": 2}, r"rendezvous is ''; machines > 1 needs the first machine's host:port"),
        ({"precision": "bfloat16"}, r"\[spatial\] precision is 'bfloat16'; allowed: auto, float32, bf16, float16"),
        ({"schedule": "linear"}, r"\[spatial\] schedule is 'linear'; allowed: step, cosine"),
        ({"optimizer": "adam"}, r"\[spatial\] optimizer is 'adam'; allowed: sgd, adamw"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        StreamSpec(**values)


def test_equal_rates_are_exact_without_warmup():
    spec = StreamSpec(learning_rate=0.05, milestones=(9,), steps=12)
    assert np.array_equal([learning_rate(spec, s) for s in range(12)], [0.05] * 9 + [0.05 * 0.1] * 3)


def test_of_two_threads_in_true_float32_the_last_to_leave_restores():
    inner, outer, before = true_float32(), true_float32(), torch.backends.cudnn.allow_tf32
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # as a thread would that began earlier and ends earlier
    assert not torch.backends.cudnn.allow_tf32
    inner.__exit__(None, None, None)
    assert torch.backends.cudnn.allow_tf32 == before
