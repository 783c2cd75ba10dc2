"""What a training step uses: learning rate, optimizer, precision, (deterministic) algorithms."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator

import torch
from torch import nn

from pipeline.specs import StreamSpec
from pipeline.system.tensors import true_float32

_PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "float16": torch.float16}
_REPEATABLE_CUBLAS = ":4096:8"  # without it, cuBLAS does not promise the same bits if streams share it


def learning_rate(spec: StreamSpec, step: int) -> float:
    """The learning rate of a step, counting from 0.

    Schedule `step`: divided by 10 at each milestone; with milestone 3, steps 0, 1 and 2 have the full rate and step 3 a
    tenth. Schedule `cosine`: half a wave from `learning_rate` at the end of the warm-up to `learning_rate_end` after
    the last step. With a warm-up of w steps, step i < w has (i + 1) / w of the rate.

    Source: paper, section 5; Loshchilov and Hutter 2017 (SGDR), equation 5, one period; Goyal et al. 2017, section 2.2.
    """
    if spec.schedule == "cosine":
        done = max(0, step - spec.warmup) / (spec.steps - spec.warmup)
        wave = 0.5 * (1 + math.cos(math.pi * done))
        rate = spec.learning_rate_end + (spec.learning_rate - spec.learning_rate_end) * wave
    else:
        rate = spec.learning_rate * 0.1 ** sum(step >= milestone for milestone in spec.milestones)
    return rate * (step + 1) / spec.warmup if step < spec.warmup else rate


def remark_on_milestones(spec: StreamSpec) -> str:
    """What a user should know whose short training keeps the milestones of a longer one; "" if all are within it."""
    late = [milestone for milestone in spec.milestones if milestone >= spec.steps]
    if spec.schedule != "step" or not late:
        return ""
    said = f"[{spec.stream}] milestones {', '.join(map(str, late))} come after the last of {spec.steps} steps"
    return f"{said}, so the learning rate {'never falls' if len(late) == len(spec.milestones) else 'falls less often'}"


def make_optimizer(spec: StreamSpec, network: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over the trainable weights; every training step sets the learning rate."""
    learning = [weight for weight in network.parameters() if weight.requires_grad]
    if spec.optimizer == "adamw":
        betas = (spec.momentum, 0.999)
        return torch.optim.AdamW(learning, lr=spec.learning_rate, betas=betas, weight_decay=spec.weight_decay)
    return torch.optim.SGD(learning, lr=spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay)


def precision(spec: StreamSpec, device: torch.device) -> torch.dtype | None:
    """Data type of autocast, None for plain float32; on a GPU, auto is bfloat16 if the GPU has it, or else float16."""
    if spec.precision != "auto":
        return _PRECISIONS[spec.precision]
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def name_of(precision: torch.dtype | None) -> str:
    """The name of a data type that `precision` returns: float32, bfloat16 or float16."""
    return str(precision or torch.float32).removeprefix("torch.")


@contextlib.contextmanager
def algorithms(spec: StreamSpec) -> Iterator[None]:
    """Within the block, compute in true float32 and, if `spec.deterministic`, with deterministic algorithms only.

    An operation without a deterministic algorithm raises a RuntimeError that names it. CUBLAS_WORKSPACE_CONFIG is set
    if it is not set already; cuBLAS reads it on first use in a process. Afterwards everything is restored.
    """
    cudnn, variable = torch.backends.cudnn, "CUBLAS_WORKSPACE_CONFIG"
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before_cudnn, before_variable = (cudnn.deterministic, cudnn.benchmark), os.environ.get(variable)
    if spec.deterministic:
        os.environ.setdefault(variable, _REPEATABLE_CUBLAS)
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with true_float32():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before_cudnn
        if before_variable is None:
            os.environ.pop(variable, None)
