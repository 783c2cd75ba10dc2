"""Small trials of a network, from which `estimates` extrapolates trainings and scores. Nothing is written.

The goal is the time on an otherwise idle machine, so the shortest of a few tries is taken. If other programs use the
same cores, even that is far too long, since the threads of a step wait for one another. For this case a single thread
can be used, whose CPU time is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from pipeline.estimates import StepCost
from pipeline.estimates.measure import timed
from pipeline.networks import resolve_device
from pipeline.specs import StreamSpec
from pipeline.system.errors import is_out_of_memory
from pipeline.system.limits import one_thread as on_one_thread
from pipeline.system.progress import say
from pipeline.system.tensors import limit_threads, true_float32
from pipeline.training import train_step
from pipeline.training.parallel import process_count
from pipeline.training.recipe import algorithms
from pipeline.training.state import TrainingState

STEP_SECONDS = 0.5  # after a step this long, no larger one is tried


def network(spec: StreamSpec, classes: int, *, device: str, one_thread: bool = False) -> StepCost:
    """Measure a network with random weights: train it on random inputs for a few small steps, then score some.

    Args:
        spec: the stream; only what affects the time of a step is used.
        classes: number of classes of the dataset.
        device: "auto", "cpu", "cuda" ...
        one_thread: on a CPU, use one thread; the time is then too long, by at most a factor of the number of cores.

    Raises:
        ValueError: an unknown device or network.
        RuntimeError: even these small steps do not fit into the device's memory.
    """
    limit_threads()
    target = resolve_device(device)
    say(f"plan: timing {spec.network}, {spec.stream} stream, on {'the CPU' if target.type == 'cpu' else target}")
    alone = one_thread and target.type == "cpu"
    limited = on_one_thread() if alone else contextlib.nullcontext()
    with torch.random.fork_rng([target] if target.type == "cuda" else []), limited:
        run = TrainingState(timed_as(spec), classes, target, other_classes=classes)
        shortest = functools.partial(_shortest, time.process_time if alone else time.perf_counter)
        with algorithms(spec):
            times = _steps(run, classes, shortest)
        view_seconds = _view_seconds(run, shortest)
    (few, first), (many, second) = [(0, 0.0), *times.items()][-2:]
    clip_seconds = max(0.0, second - first) / (many - few)
    state = sum(value.nbytes for value in run.network.state_dict().values())
    learning = sum(weight.nbytes for weight in run.network.parameters() if weight.requires_grad)
    return StepCost(
        max(0.0, second - many * clip_seconds),
        clip_seconds,
        view_seconds,
        state,
        2 * state + {"sgd": 1, "adamw": 2}[spec.optimizer] * learning,
        run.network.head.in_features,
    )


def timed_as(spec: StreamSpec) -> StreamSpec:
    """The stream with fixed values for settings that do not affect its speed, so that streams of equal speed are equal.

    No weights are read or downloaded, and the learning rate is 0.
    """
    how = spec.with_how if spec.reads_other else ""
    return dataclasses.replace(
        spec,
        **{"start": "scratch", "with_how": how, "with_dataset": how and spec.with_dataset},
        **{"learning_rate": 0.0, "learning_rate_end": 0.0, "warmup": 0, "milestones": (), "steps": 1},
        **{"accumulate": 1, "processes": 1, "machines": 1, "seed": 0},
        **{"validate_every": 1, "save_every": 1},
    )


def gpus_that_share(spec: StreamSpec, device: str) -> int:
    """Number of GPUs that share each step of a training; 1 on CPUs, whose processes share the same cores."""
    return process_count(spec, device) * spec.machines if resolve_device(device).type == "cuda" else 1


def _steps(run: TrainingState, classes: int, shortest: Callable[..., float]) -> dict[int, float]:
    """Number of clips -> seconds of a training step; clips grow fourfold, up to the batch, while steps are quick."""
    times: dict[int, float] = {}
    clips, most = min(2, run.spec.items_per_step), run.spec.items_per_step
    while clips not in times and (len(times) < 2 or max(times.values()) < STEP_SECONDS):
        inputs, labels = _batch(run, clips, classes)
        try:
            if not times or run.device.type == "cuda":  # warm-up
                train_step(run, inputs, labels)
            times[clips] = shortest(train_step, run, inputs, labels)
        except RuntimeError as error:
            if not times or not is_out_of_memory(error):
                raise
            break  # use what was measured before
        clips = min(4 * clips, most)
    return times


def _batch(run: TrainingState, clips: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs, (N, C, H, W) or (N, S, C, H, W), and labels, on the device, where a training sends them ahead."""
    snippets = (run.spec.segments,) if run.spec.segments > 1 else ()
    inputs = torch.rand(clips, *snippets, run.spec.channels, run.spec.crop_px, run.spec.crop_px)
    return inputs.to(run.device), torch.randint(0, classes, (clips,)).to(run.device)


def _view_seconds(run: TrainingState, shortest: Callable[..., float]) -> float:
    """Seconds of a forward pass per view, with many views at once if that is quick."""
    run.network.eval()

    @true_float32()
    @torch.inference_mode()
    def score(inputs: torch.Tensor) -> None:
        run.network.probabilities(run.network.features(inputs)).cpu()

    def inputs(views: int) -> torch.Tensor:
        side = run.spec.crop_px
        return torch.rand(views, run.spec.channels, side, side).to(run.device, memory_format=torch.channels_last)

    few, many = 4, 64
    score(inputs(few))
    seconds = shortest(score, inputs(few))
    return seconds / few if seconds >= STEP_SECONDS / 4 else shortest(score, inputs(many)) / many


def _shortest(clock: Callable[[], float], function: Callable[..., Any], *given: Any) -> float:
    """Seconds of the quickest of up to three calls, fewer if they take long."""
    seconds = [timed(function, *given, clock=clock)[0]]
    while len(seconds) < 3 and sum(seconds) < STEP_SECONDS:
        seconds.append(timed(function, *given, clock=clock)[0])
    return min(seconds)
