"""Train one stream: steps, validation, and the files of the result.

`train` writes `checkpoint.pt` (the weights with the best validation and all that is needed to use them) and
`curve.json`. Meanwhile it keeps `resume.pt`, from which a killed run resumes. On a CPU a resumed run ends with the same
bits as an uninterrupted one, because everything random in step s is drawn from (seed, s).
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from pipeline.catalog import Catalog
from pipeline.dataset import EvalSet
from pipeline.dataset.inputs import ViewBatch, to_inputs
from pipeline.networks import resolve_device
from pipeline.networks.checkpoint import save_checkpoint, weights_hash
from pipeline.specs import StreamSpec
from pipeline.system.errors import UserError, is_out_of_memory
from pipeline.system.files import write_json
from pipeline.system.locks import one_writer
from pipeline.system.progress import Progress, duration_text, say
from pipeline.system.tensors import limit_threads
from pipeline.training.feeding import training_batches
from pipeline.training.launch import TrainingJob, launch_processes
from pipeline.training.parallel import ItemSampler, World, process_count
from pipeline.training.recipe import algorithms, learning_rate, remark_on_milestones
from pipeline.training.state import UNUSABLE, Best, Curve, Saving, TrainingDiverged, TrainingState, identity_of
from pipeline.training.together import OtherDataset, other_classes, refuse_start_that_saw, seen_by, training_set
from pipeline.training.validation import validate, validation_set
from pipeline.training.whole_batch import mean_over_processes

_RECENT_STEPS, _MUCH_WAITING = 200, 0.05  # of whose time a larger share spent waiting for data is shown
_LONG_S = 24 * 3600  # a longer training on a CPU gets a warning


def train(
    spec: StreamSpec,
    *,
    store_path: Path | str,
    catalog: Catalog,
    folder: Path,
    inputs_key: str,
    device: str = "auto",
    other: OtherDataset | None = None,
    start: Path | None = None,
) -> None:
    """Train one stream; resume an interrupted run of the same settings and inputs.

    Args:
        spec: the stream, its network and its training; `processes` and `machines` say how many processes train.
        store_path: index of the frames store (spatial stream) or the flow store (temporal stream).
        catalog: training and validation clips.
        folder: gets `checkpoint.pt` and, last, `curve.json`.
        inputs_key: digest of what the training reads; a run with another key is never resumed.
        device: "auto", "cpu", "cuda" ...
        other: the other dataset, if `spec.with_how` is heads or classes.
        start: weights of the other dataset's training, if `spec.with_how` is start.

    Raises:
        FileNotFoundError: there is no file of weights to start from.
        UserError: a setting, weights file or device that does not fit, a weights file that saw clips held out here,
            no usable training clip, a missing other dataset, or processes that would not resume from the same step of
            the same training.
        StageFailed: none of the validation clips is in the store.
        TrainingDiverged: a loss or a weight that is not finite, or a network that gives NaN.
        TrainingFailed: one of several processes failed, for whatever reason.

    Source: paper, section 5. Our addition: weights are chosen on validation clips, which are never test clips.
    """
    if (other is None) == spec.reads_other or (start is None) == spec.starts_from_other:
        raise UserError(
            f"[{spec.stream}] with_how is {spec.with_how!r}, which does not fit what train() was given: heads and "
            "classes need other, start needs start, and nothing else may be given"
        )
    refuse_start_that_saw(spec, catalog, start or spec.start_file)
    job = TrainingJob(spec, Path(store_path), catalog, Path(folder), inputs_key, device, other, start)
    count = process_count(spec, device)
    with one_writer(job.folder):  # which also removes what a killed run has left half written
        if count * spec.machines == 1:
            train_here(job, World(), resolve_device(device))
        else:
            launch_processes(job, count)


def train_here(job: TrainingJob, world: World, device: torch.device) -> None:
    """Do the work of `train` in this process, one of `world`; process 0 writes the files."""
    limit_threads()
    spec, catalog, resume = job.spec, job.catalog, job.folder / "resume.pt"
    others = other_classes(spec, catalog, job.other)
    identity = identity_of(spec, job.inputs_key, catalog.classes, others)
    seen = seen_by(spec, catalog, job.other, job.start or spec.start_file)  # at the end, that file may be gone
    with _own_random_state(device), algorithms(spec):
        run = TrainingState(spec, len(catalog.classes), device, world, other_classes=len(others), start=job.start)
        run.resume(resume, identity)
        training = training_set(spec, job.store_path, catalog, job.other)
        validation = validation_set(spec, job.store_path, catalog, world)
        _take_steps(run, training, validation, lambda: run.save(resume, identity))
    if world.rank == 0:
        _finish(run, job, others, {**seen, "data_digest": validation.pictures.digest})


def _own_random_state(device: torch.device) -> contextlib.AbstractContextManager:
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _take_steps(run: TrainingState, training: Dataset, validation: EvalSet, save: Callable[[], None]) -> None:
    spec, began, save = run.spec, time.monotonic() - run.curve.seconds, Saving(save, run.curve)
    batches = training_batches(training, ItemSampler(spec, run.world, run.step), run.device)
    recent = deque([(run.curve.seconds_waiting, run.curve.seconds_busy)], maxlen=_RECENT_STEPS)
    if run.world.rank == 0 and (remark := remark_on_milestones(spec)):
        say(f"training, {spec.stream}: {remark}")
    with Progress(f"training, {spec.stream}", spec.steps - run.step, "steps") as progress:
        for inputs, labels in _waited_for(batches, run.curve):
            loss = _timed_step(run, inputs, labels)
            run.step += 1
            run.curve.record(loss, run.spec, run.step)
            validated = run.step % spec.validate_every == 0 or run.step == spec.steps
            if validated:
                validate(run, validation)
            run.curve.seconds = time.monotonic() - began
            if run.world.rank == 0 and (validated or run.step % spec.save_every == 0):
                save()
            recent.append((run.curve.seconds_waiting, run.curve.seconds_busy))
            progress.advance(1, _told(loss, recent))
            if progress.done == 1:
                _warn_of_days(run, progress)
    _say_speed(run)


def _told(loss: float, recent: Sequence[tuple[float, float]]) -> str:
    """The loss and, if much, the recent share of time spent waiting for data: whoever sees that can change it.

    `recent` has the seconds spent waiting, and all seconds of work, up to each of the last steps.
    """
    (first_waiting, first_busy), (waiting, busy) = recent[0], recent[-1]
    share = (waiting - first_waiting) / (busy - first_busy) if busy > first_busy else 0.0
    return f"loss {loss:.3f}" + (f", {share:.0%} of the time waiting for data" if share > _MUCH_WAITING else "")


def _warn_of_days(run: TrainingState, progress: Progress) -> None:
    """Warn at once of a training on a CPU that takes more than a day: the paper's recipe is meant for a GPU."""
    left = (progress.total - progress.done) / progress.rate()
    if run.device.type == "cpu" and left > _LONG_S and run.world.rank == 0:
        say(
            f"training, {run.spec.stream}: {duration_text(left)} to go on this CPU, at {run.spec.steps} steps of "
            f"{run.spec.batch} clips; configs/laptop.cfg is a recipe for CPUs, [{run.spec.stream}] steps and batch "
            "shorten this one"
        )


def _waited_for(batches: Iterable, curve: Curve) -> Iterator:
    """Yield the same batches; add the time spent waiting for each to the curve."""
    rest = iter(batches)
    while True:
        began = time.monotonic()
        batch = next(rest, None)
        curve.seconds_waiting += time.monotonic() - began
        if batch is None:
            return
        yield batch


def _timed_step(run: TrainingState, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    began = time.monotonic()
    try:
        loss = train_step(run, inputs, labels)
    except Exception as error:
        if is_out_of_memory(error):
            where, parts = f"[{run.spec.stream}]", run.spec.accumulate
            error.add_note(
                f"raise {where} accumulate (now {parts}), the parts that a batch is cut into, or lower batch"
            )
        raise
    run.curve.seconds_stepping += time.monotonic() - began
    return loss


def _say_speed(run: TrainingState) -> None:
    curve, clips = run.curve, run.spec.steps * run.spec.items_per_step
    if busy := curve.seconds_busy:
        shares = f"{curve.seconds_waiting / busy:.1%} of it waiting for data, {curve.seconds_saving / busy:.1%} saving"
        say(f"training, {run.spec.stream}: {clips / busy:.1f} clips/s, {shares}")


def train_step(run: TrainingState, inputs: ViewBatch | torch.Tensor, labels: torch.Tensor) -> float:
    """One step on this process's share of a batch, in `accumulate` parts whose gradients are summed.

    Args:
        run: its network and optimizer change; `run.step` is the number of this step.
        inputs: views as they come from the loader, or (N, C, H, W) or (N, S, C, H, W) float32, normalized, with S
            snippets; N is items_per_step / processes. With `with_how = heads`, the clips of both sets alternate.
        labels: (N,) int64.

    Returns:
        The loss before the step, averaged over the whole batch.

    Raises:
        UserError: a batch that cannot be cut into equal parts.
        TrainingDiverged: the loss is not finite; the weights are unchanged.
    """
    spec, rate = run.spec, learning_rate(run.spec, run.step)
    if len(labels) % spec.accumulate:
        raise UserError(f"a batch of {len(labels)} cannot be cut into {spec.accumulate} equal parts (accumulate)")
    run.network.train()
    run.optimizer.zero_grad()
    parts = zip(inputs.chunk(spec.accumulate), labels.chunk(spec.accumulate), strict=True)
    losses = [_add_gradient(run, part, *batch) for part, batch in enumerate(parts)]
    value = mean_over_processes(torch.stack(losses).mean()).item()
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"the loss of the {spec.stream} stream is {value} at step {run.step}, learning rate "
            f"{rate:g}; lower [{spec.stream}] learning_rate"
        )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    if spec.clip_norm:
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), spec.clip_norm)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return value


def _add_gradient(
    run: TrainingState, part: int, inputs: ViewBatch | torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Add the gradient of one part of the batch; processes exchange the sum with the last part."""
    run.piece.place = part * run.world.size + run.world.rank
    torch.manual_seed(_step_seed(run.spec.seed, run.step))  # for dropout, drawn for the whole batch
    exchanges = run.world.size == 1 or part == run.spec.accumulate - 1
    with contextlib.nullcontext() if exchanges else run.model.no_sync():
        loss = _loss(run, inputs, labels)
        run.scaler.scale(loss / run.spec.accumulate).backward()
    return loss.detach()


def _loss(run: TrainingState, inputs: ViewBatch | torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean loss over clips; with a head for each of two datasets, the sum of both means (paper, section 5)."""
    inputs, labels = to_inputs(inputs, run.device), labels.to(run.device, non_blocking=True)
    with torch.autocast(run.device.type, dtype=run.precision, enabled=run.precision is not None):
        if run.spec.with_how != "heads":
            return cross_entropy(run.model(inputs), labels, label_smoothing=run.spec.label_smoothing)
        own, other = run.model(inputs, both=True)
        return cross_entropy(own, labels[::2], label_smoothing=run.spec.label_smoothing) + cross_entropy(
            other, labels[1::2], label_smoothing=run.spec.label_smoothing
        )


def _finish(run: TrainingState, job: TrainingJob, others: tuple[str, ...], data: dict[str, Any]) -> None:
    """Write the checkpoint, with what was found about the `data`, then the curve: with it the result is complete."""
    best, folder = run.best, job.folder
    if best is None:
        say(f"{run.spec.stream}: no validation clips, so the weights of the last step are kept")
        best = Best(run.step, run.network.cpu().state_dict())
        if not all(values.isfinite().all() for values in best.state.values()):
            raise TrainingDiverged(
                f"the weights of the {run.spec.stream} stream are not finite after the last step; "
                f"lower [{run.spec.stream}] learning_rate"
            )
    how = run.how()
    save_checkpoint(
        folder / "checkpoint.pt",
        best.state,
        run.spec,
        job.catalog,
        other_classes=others,
        inputs=job.inputs_key,
        steps=run.step,
        best_step=best.step,
        validation_top1=best.top1,
        validation_loss=best.loss,
        **data,
        **how,
    )
    curve = {name: values for name, values in asdict(run.curve).items() if name != "pending"}
    about = {"best_step": best.step, "inputs": job.inputs_key, "weights": weights_hash(best.state)}
    write_json(folder / "curve.json", {**curve, **about, **how})
    for name in ("resume.pt", f"resume.pt{UNUSABLE}"):
        (folder / name).unlink(missing_ok=True)
    if run.world.size == 1:  # of several processes that were killed; otherwise their parent removes it
        shutil.rmtree(job.job_folder, ignore_errors=True)


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
