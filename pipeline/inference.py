"""Score clips with a trained stream: a table of scores and features, one row per clip (paper, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import store
from pipeline.catalog import NO_VIDEO, Catalog, Clip
from pipeline.dataset import EvalSet
from pipeline.networks import resolve_device
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint, refuse_other_data
from pipeline.networks.evaluation import Evaluation, evaluate
from pipeline.scores import Scores
from pipeline.specs import ScoreSpec
from pipeline.system.console import some
from pipeline.system.errors import StageFailed, UserError
from pipeline.system.progress import Progress, say
from pipeline.system.tensors import limit_threads

_SHOWN = 5  # most failed clips in a message


def score_to(
    path: Path | str,
    attrs: dict[str, Any],
    *,
    checkpoint: Path | str,
    store_path: Path | str,
    catalog: Catalog,
    part: str,
    spec: ScoreSpec,
    device: str = "auto",
) -> Scores:
    """Run `score` and write a scores file; with `spec.per_view`, also every view, with at most one batch in memory.

    Args:
        path: the file; it exists only once it is complete.
        attrs: attributes of the file.
        checkpoint, store_path, catalog, part, spec, device: the arguments of `score`.
    """
    given = {"store_path": store_path, "catalog": catalog, "part": part, "spec": spec, "device": device}
    if not spec.per_view:
        found = score(checkpoint, **given)
        found.write(path, **attrs)
        return found
    clips, views = len(catalog.part(part)), spec.frames * spec.crops
    with store.create_scores(path, attrs, clips=clips, views=views) as writer:
        found = score(checkpoint, **given, views=writer)
        writer.put_table(found.arrays())
    return found


def score(
    checkpoint: Path | str,
    *,
    store_path: Path | str,
    catalog: Catalog,
    part: str,
    spec: ScoreSpec,
    device: str = "auto",
    views: store.ViewWriter | None = None,
) -> Scores:
    """Score every clip of one part.

    Args:
        checkpoint: a trained stream's file.
        store_path: index of the frames store (spatial stream) or the flow store (temporal stream).
        catalog: the clips, unlabeled or with the classes that the stream was trained on.
        part: "val" or "test" (or "train").
        spec: number of frames and crops over which the softmax is averaged.
        device: "auto", "cpu", "cuda" ...
        views: receives the probabilities and features of every view, clip by clip; None keeps only their means.

    Returns:
        Probabilities and penultimate features, means over frames x crops; a clip that failed in the store has a row of
        NaN and is reported. A part without clips gives an empty table.

    Raises:
        UserError: a checkpoint of another format, with other classes, or trained on a store made by other settings; or
            the network gives NaN for a clip.
        DamagedFile, OSError: a clip that has not failed in the store cannot be read.
        KeyError: the store does not know a clip.
        StageFailed: every clip of a labeled part has failed in the store.
    """
    limit_threads()
    target, trained = resolve_device(device), load_checkpoint(checkpoint, classes=catalog.classes or None)
    clips = catalog.part(part)
    _say_what_was_seen(trained, clips, part)
    test_set = EvalSet(trained.spec, store_path, clips, frames=spec.frames, crops=spec.crops)
    refuse_other_data(checkpoint, trained.record.get("data_digest"), test_set.pictures.digest)
    with Progress(f"scoring {part}, {trained.spec.stream}", len(test_set), "pictures") as progress:
        found = evaluate(
            trained.network.to(target),
            test_set,
            device=target,
            batch=spec.batch,
            progress=progress,
            keep=views and views.put,
        )
    _refuse_nonsense(checkpoint, found, [clip.id for clip in clips])
    _report_failures(found, len(clips), f"{trained.spec.stream} scores of {part}", counted=bool(catalog.classes))
    return Scores(
        video_ids=tuple(clip.id for clip in clips),
        probabilities=found.probabilities,
        labels=[clip.label for clip in clips],
        classes=trained.classes,
        features=found.features,
        groups=tuple(clip.group for clip in clips),
    )


def _say_what_was_seen(trained: Checkpoint, clips: Sequence[Clip], part: str) -> None:
    """Say which clips the weights were trained on, or, of test clips, chosen on, as those of another split were."""
    kinds = {"val": ("trained_on",), "test": ("trained_on", "chosen_on")}.get(part, ())
    contents = {content for kind in kinds for content in trained.record.get(kind, ())} - NO_VIDEO
    if seen := [clip.id for clip in clips if clip.content in contents]:
        say(
            f"{trained.spec.stream} scores of {part}: the weights were trained or chosen on {len(seen)} of "
            f"{len(clips)} clips: {some(seen)}; an accuracy on clips already seen says little"
        )


def _refuse_nonsense(checkpoint: Path | str, found: Evaluation, video_ids: Sequence[str]) -> None:
    """Reject NaN from the network: in a table of scores, a row of NaN means that the clip itself failed."""
    wrong = ~np.isfinite(found.probabilities).all(1)
    nonsense = [name for name, is_wrong in zip(video_ids, wrong, strict=True) if is_wrong and name not in found.failed]
    if nonsense:
        raise UserError(
            f"the network of {checkpoint} gives NaN for {len(nonsense)} of {len(video_ids)} clips, such as "
            f"{nonsense[0]!r}: its weights are damaged or its training diverged; train it again"
        )


def _report_failures(found: Evaluation, clips: int, what: str, *, counted: bool) -> None:
    if not found.failed:
        return
    shown = "; ".join(f"{video_id}: {reason}" for video_id, reason in list(found.failed.items())[:_SHOWN])
    if len(found.failed) == clips and counted:
        raise StageFailed(
            f"{what}: all {clips} clips failed, such as {shown}. Fix these videos, or use another split; if all are "
            "validation clips, [dataset] val_fraction = 0 needs none"
        )
    say(f"{what}: {len(found.failed)} of {clips} clips failed{' and count as wrong' * counted}: {shown}")
