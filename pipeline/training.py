"""Training one stream: steps, schedule, validation, and files from which it goes on or is used.

`train` leaves `checkpoint.pt` (the best validated weights and all that is needed to use them) and `curve.json`. On the
way it keeps `resume.pt`; a run that was killed goes on from there, and on a CPU ends with the same bits as one that
was not, because everything random in step s is drawn from (seed, s).
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from pipeline.catalog import Catalog
from pipeline.checkpoint import content_of_state, load_tensors, save_checkpoint, save_tensors
from pipeline.dataset import TestSet, TrainingSet, loader, loader_workers, stack_items
from pipeline.evaluation import evaluate
from pipeline.files import write_json
from pipeline.inputs import Views, to_inputs
from pipeline.networks import build, resolve_device
from pipeline.progress import Progress, say
from pipeline.specs import StreamSpec

VALIDATION_FRAMES = 5  # of each clip, their centre view: cheap, and enough to tell a better epoch from a worse one
_CURVE_POINTS = 1000
_RESUME, _RESUME_VERSION = "two-stream-resume", 1


class TrainingDiverged(ArithmeticError):
    """The loss of a step is not a finite number."""


class Run:
    """A training as it stands after `step` steps: all that `resume.pt` holds.

    Attributes:
        network, optimizer, scaler: torch's.
        step: steps done.
        best: {"step", "top1", "loss", "state"} of the best validation so far, empty before the first.
        curve: {"steps", "loss", "learning_rate", "validation", "pending", "seconds"}; each loss is the mean of the
            steps since the point before it, `pending` holds those not yet averaged.
    """

    def __init__(self, spec: StreamSpec, num_classes: int, device: torch.device):
        torch.manual_seed(spec.seed)
        self.spec, self.device = spec, device
        self.network = build(spec, num_classes).to(device, memory_format=torch.channels_last)
        learning = [weight for weight in self.network.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.SGD(
            learning, lr=spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=_precision(spec, device) == torch.float16)
        self.step, self.best = 0, {}
        self.curve: dict[str, Any] = {
            "steps": [],
            "loss": [],
            "learning_rate": [],
            "validation": [],
            "pending": [],
            "seconds": 0.0,
        }

    def save(self, path: Path, identity: str) -> None:
        """Write `resume.pt`; `identity` says what it is a training of."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "scaler")}
        about = {"format": _RESUME, "format_version": _RESUME_VERSION, "identity": identity}
        save_tensors(path, {**about, **parts, "step": self.step, "best": self.best, "curve": self.curve})

    def resume(self, path: Path, identity: str) -> None:
        """Go on from `resume.pt`, if there is one and it is of the same training; otherwise say why not."""
        if not path.exists():
            return
        try:
            saved = load_tensors(path, _RESUME, _RESUME_VERSION)
        except ValueError as error:
            say(f"{self.spec.stream}: training starts anew: {error}")
            return
        if saved["identity"] != identity:
            say(f"{self.spec.stream}: training starts anew: {path} belongs to other settings or inputs")
            return
        for name in ("network", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.best, self.curve = saved["step"], saved["best"], saved["curve"]
        say(f"{self.spec.stream}: training goes on from step {self.step} of {self.spec.steps}")


def train(
    spec: StreamSpec, *, store_path: Path | str, catalog: Catalog, folder: Path, inputs: str, device: str = "auto"
) -> None:
    """Train one stream; goes on where an interrupted run of the same settings and inputs stopped.

    Args:
        spec: the stream, its network and its training.
        store_path: index of the frames store (spatial stream) or the flow store (temporal stream).
        catalog: training and validation clips.
        folder: gets `checkpoint.pt` and, last, `curve.json`.
        inputs: digest of what the training reads; another one never resumes.
        device: "auto", "cpu", "cuda" ...

    Raises:
        ValueError: a setting, weights file or device that does not fit, or no usable training clip.
        TrainingDiverged: a loss that is not finite.

    Source: paper, section 5. Ours: weights are chosen by validation clips, of which the test part has none.
    """
    target, folder = resolve_device(device), Path(folder)
    identity = spec.digest(inputs, *catalog.classes)
    with _own_random_state(target):
        run = Run(spec, len(catalog.classes), target)
        run.resume(folder / "resume.pt", identity)
        training = TrainingSet(spec, store_path, catalog.part("train"))
        validation = TestSet(spec, store_path, catalog.part("val"), frames=VALIDATION_FRAMES, crops=1)
        _take_steps(run, training, validation, lambda: run.save(folder / "resume.pt", identity))
    _finish(run, catalog, folder, inputs)


def _own_random_state(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _take_steps(run: Run, training: TrainingSet, validation: TestSet, save) -> None:
    spec, began = run.spec, time.monotonic() - run.curve["seconds"]
    batches = loader(
        training,
        range(run.step * spec.batch, spec.steps * spec.batch),
        batch=spec.batch,
        workers=loader_workers(spec.loader_workers, run.device),
        pin=run.device.type == "cuda",
        collate=stack_items,
    )
    with Progress(f"training, {spec.stream}", spec.steps - run.step, "steps") as progress:
        for inputs, labels in batches:
            loss = train_step(run, inputs, labels)
            run.step += 1
            _record(run, loss)
            validated = run.step % spec.validate_every == 0 or run.step == spec.steps
            if validated:
                validate(run, validation)
            run.curve["seconds"] = time.monotonic() - began
            if validated or run.step % spec.save_every == 0:
                save()
            progress.advance(1, f"loss {loss:.3f}")


def learning_rate(spec: StreamSpec, step: int) -> float:
    """Of the step with this number, the first being 0. Milestone 3: steps 0, 1, 2 at the full rate, 3 at a tenth."""
    return spec.learning_rate * 0.1 ** sum(step >= milestone for milestone in spec.milestones)


def train_step(run: Run, inputs: Views | torch.Tensor, labels: torch.Tensor) -> float:
    """One step of SGD.

    Args:
        run: its network and optimizer change; `run.step` is the number of this step.
        inputs: views as they come from the loader, or (N, C, H, W) or (N, K, C, H, W) float32, normalised.
        labels: (N,) int64.

    Returns:
        The loss before the step.

    Raises:
        TrainingDiverged: if that is not finite; the weights are as before.
    """
    spec, precision = run.spec, _precision(run.spec, run.device)
    torch.manual_seed(_step_seed(spec.seed, run.step))  # dropout
    run.network.train()
    inputs = to_inputs(inputs, run.device)
    with torch.autocast(run.device.type, dtype=precision, enabled=precision is not None):
        logits = run.network(inputs)
        loss = cross_entropy(logits, labels.to(run.device, non_blocking=True), label_smoothing=spec.label_smoothing)
    value, rate = loss.item(), learning_rate(spec, run.step)
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"the loss of the {spec.stream} stream is {value} at step {run.step}, learning rate "
            f"{rate:g}; lower [{spec.stream}] learning_rate"
        )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return value


def validate(run: Run, validation: TestSet) -> None:
    """Score the validation clips, note it in the curve, and keep the weights if they are the best so far.

    Best is the highest top-1, of equals the lowest loss (mean over clips of -log of the mean softmax at the label);
    clips that cannot be read count as wrong and have no loss. Without validation clips nothing is done.
    """
    if not validation.clips:
        return
    labels = np.array([clip.label for clip in validation.clips])
    found = evaluate(run.network, validation, device=run.device, workers=run.spec.loader_workers)
    read = ~np.isnan(found.probabilities).any(1)
    top1 = float((read & (found.probabilities.argmax(1) == labels)).mean())
    chosen = found.probabilities[read, labels[read]].clip(1e-12)
    loss = float(-np.log(chosen).mean()) if read.any() else math.inf
    run.curve["validation"].append({"step": run.step, "top1": top1, "loss": loss})
    if not run.best or (-top1, loss) < (-run.best["top1"], run.best["loss"]):
        state = {name: value.detach().cpu().clone() for name, value in run.network.state_dict().items()}
        run.best = {"step": run.step, "top1": top1, "loss": loss, "state": state}


def _record(run: Run, loss: float) -> None:
    """Add a point to the curve once enough steps are pending: about a thousand points a training."""
    pending, every = run.curve["pending"], max(1, run.spec.steps // _CURVE_POINTS)
    pending.append(loss)
    if len(pending) >= every or run.step == run.spec.steps:
        run.curve["steps"].append(run.step)
        run.curve["loss"].append(sum(pending) / len(pending))
        run.curve["learning_rate"].append(learning_rate(run.spec, run.step - 1))
        pending.clear()


def _finish(run: Run, catalog: Catalog, folder: Path, inputs: str) -> None:
    """Write the checkpoint, then the curve: when that exists, all is there."""
    best = run.best
    if not best:
        say(f"{run.spec.stream}: no validation clips, so the weights of the last step are kept")
        best = {"step": run.step, "top1": None, "loss": None, "state": run.network.cpu().state_dict()}
    save_checkpoint(
        folder / "checkpoint.pt",
        best["state"],
        run.spec,
        catalog,
        inputs=inputs,
        steps=run.step,
        best_step=best["step"],
        validation_top1=best["top1"],
        validation_loss=best["loss"],
    )
    curve = {name: values for name, values in run.curve.items() if name != "pending"}
    about = {"best_step": best["step"], "inputs": inputs, "weights": content_of_state(best["state"])}
    write_json(folder / "curve.json", {**curve, **about})
    (folder / "resume.pt").unlink(missing_ok=True)


def _precision(spec: StreamSpec, device: torch.device) -> torch.dtype | None:
    """What autocast computes in: bfloat16 where the GPU has it, else float16; None for plain float32."""
    if not spec.amp or device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
