"""Score the validation clips during a training, and keep the best weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.catalog import Catalog
from pipeline.dataset import EvalSet
from pipeline.networks.evaluation import evaluate
from pipeline.specs import StreamSpec
from pipeline.system.console import plain
from pipeline.system.errors import StageFailed
from pipeline.training.parallel import World
from pipeline.training.state import Best, TrainingDiverged, TrainingState

VALIDATION_FRAMES = 5  # per clip, center crop only: cheap, and enough to compare one validation with another


def validation_set(spec: StreamSpec, store_path: Path, catalog: Catalog, world: World) -> EvalSet:
    """This process's share of the validation clips.

    Raises:
        StageFailed: there are validation clips, but the store has none of them; neither weights nor, later, a fusion
            could be chosen.
    """
    clips = catalog.part("val")
    made = EvalSet(spec, store_path, clips[world.rank :: world.size], frames=VALIDATION_FRAMES, crops=1)
    if len(clips) and not any(clip.id in made.pictures.store for clip in clips):
        raise StageFailed(
            f"{spec.stream}: all {len(clips)} validation clips failed, such as {plain(clips[0].id)}: "
            f"{made.pictures.why_lost(clips[0].id)}. Fix these videos, or use another split; [dataset] val_fraction "
            "= 0 needs none"
        )
    return made


def validate(run: TrainingState, validation: EvalSet) -> None:
    """Score the validation clips, add the result to the curve, and keep the weights if they are the best so far.

    The best weights have the highest top-1, in a tie the lowest loss (mean over clips of -log of the mean softmax at
    the label). Clips that failed in the store count as wrong and have no loss. Without validation clips nothing is
    done. Each process scores its share of the clips.

    Raises:
        TrainingDiverged: the network gives NaN for a clip that has not failed.
    """
    labels = np.array([clip.label for clip in validation.clips], int)
    probabilities, failed = np.empty((0, run.network.num_classes), np.float32), []
    if len(labels):
        loading = {"workers": run.spec.loader_workers, "sharing": run.world.local_size}
        probabilities, _, reasons = evaluate(run.network, validation, device=run.device, **loading)
        failed = [clip.id in reasons for clip in validation.clips]
    shares = run.world.gather((labels, probabilities, np.array(failed, bool)))
    labels, probabilities, failed = (np.concatenate(column) for column in zip(*shares, strict=True))
    if (np.isnan(probabilities).any(1) & ~failed).any():  # in every process alike
        raise TrainingDiverged(
            f"the network of the {run.spec.stream} stream gives NaN after step {run.step}; "
            f"lower [{run.spec.stream}] learning_rate"
        )
    if len(labels):
        _note_validation(run, labels, probabilities)


def _note_validation(run: TrainingState, labels: np.ndarray, probabilities: np.ndarray) -> None:
    read = ~np.isnan(probabilities).any(1)
    top1 = float((read & (probabilities.argmax(1) == labels)).mean())
    loss = float(-np.log(probabilities[read, labels[read]].clip(1e-12)).mean())
    run.curve.validation.append({"step": run.step, "top1": top1, "loss": loss})
    if not run.best or (-top1, loss) < (-run.best.top1, run.best.loss):
        state = run.network.state_dict()  # which knows the versions of layers too
        state.update({name: value.detach().cpu().clone() for name, value in state.items()})
        run.best = Best(run.step, state, top1, loss)
