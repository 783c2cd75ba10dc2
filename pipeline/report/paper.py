"""The tables of the paper as data: what each row changes in the settings, and what was published for it.

K. Simonyan, A. Zisserman, Two-Stream Convolutional Networks for Action Recognition in Videos, NIPS 2014, tables 1 to 4.
A row is not a complete recipe: it changes only what it is about (the stack, the starting weights, a second dataset) in
the user's settings, so the same tables can be run on any dataset, with any network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.specs import STREAMS, StreamSpec

SETS = {"ucf101": "UCF-101", "hmdb51": "HMDB-51"}
MEAN_OVER_SPLITS = "mean over splits"  # the accuracy of a row over official splits, as the paper has it
CLASSES = {"ucf101": 101, "hmdb51": 51}
TEST_CLIPS = {
    "ucf101": {"1": 3783, "2": 3734, "3": 3696},
    "hmdb51": {"1": 1530, "2": 1530, "3": 1530},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: the experiment, in words and as settings, and the published accuracy."""

    key: str
    """Short name, for `--rows`."""
    words: str
    paper: Mapping[str, float]
    """Dataset (a key of SETS) -> published accuracy in per cent."""
    score: str = ""
    """What is scored: "spatial", "temporal", "average", "svm"; "" for a row that is published only."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The settings that the row changes, named as in a dataset's section, such as `stack_length`."""
    start: str = ""
    """What the spatial stream starts from: "scratch", "weights" (those of `[spatial] start`), or "" as configured."""
    with_how: str = ""
    """How the temporal stream uses a second dataset: "heads" (multi-task), "classes", "start"; "" not at all."""
    alone_too: bool = False
    """Whether the row is run without a second dataset as well."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: its rows, and the split on which the paper measured them."""

    name: str
    title: str
    rows: tuple[Row, ...]
    split: str = "1"
    """The paper's split, or "all" for the mean over its three."""
    note: str = ""
    """What the paper did beyond what the rows change: a sentence or two."""

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that the rows need, spatial first."""
        scored = {row.score for row in self.rows} - {""}
        return tuple(s for s in STREAMS if s in scored or not scored <= set(STREAMS))


# forward flow, ten fields sampled at the same points, mean subtracted: the paper's choice for all after table 1b
_BEST_STACK = {
    "stack_length": "10",
    "stack_kind": "stack",
    "stack_direction": "forward",
    "stack_subtract_mean": "true",
}
_TRAJECTORY = {**_BEST_STACK, "stack_kind": "trajectory"}
_BIDIRECTIONAL = {**_BEST_STACK, "stack_direction": "bidirectional"}
_AS_IT_IS = {"stack_subtract_mean": "false"}


_NOTE_OF_SPATIAL = (
    "The spatial stream is the one configured; the paper's started from ImageNet, and only its last layer was trained."
)


def _spatial(key: str, words: str, figure: float, dropout: str, start: str, layers: str) -> Row:
    return Row(
        key=f"{key}-{dropout}",
        words=f"{words}, dropout {dropout}",
        paper={"ucf101": figure},
        score="spatial",
        settings={"spatial_dropout": dropout, "spatial_train_layers": layers},
        start=start,
    )


def _row(
    key: str, words: str, figure: float, settings: Mapping[str, str], *, score="temporal", of="ucf101", with_how=""
) -> Row:
    return Row(key=key, words=words, paper={of: figure}, score=score, settings=settings, with_how=with_how)


def _of_three(key: str, words: str, ucf101: float, hmdb51: float, score: str, *, with_how="heads") -> Row:
    return Row(
        key=key,
        words=words,
        paper={"ucf101": ucf101, "hmdb51": hmdb51},
        score=score,
        settings=_BEST_STACK if with_how else {},
        with_how=with_how,
        alone_too=True,
    )


def _published(key: str, words: str, **figures: float) -> Row:
    return Row(key=key, words=words, paper=figures)


_ALL = (
    Table(
        name="1a",
        title="Spatial stream",
        rows=(
            _spatial("scratch", "from scratch", 42.5, "0.5", "scratch", "all"),
            _spatial("scratch", "from scratch", 52.3, "0.9", "scratch", "all"),
            _spatial("tuned", "pre-trained, all layers fine-tuned", 70.8, "0.5", "weights", "all"),
            _spatial("tuned", "pre-trained, all layers fine-tuned", 72.8, "0.9", "weights", "all"),
            _spatial("last", "pre-trained, last layer only", 72.7, "0.5", "weights", "last"),
            _spatial("last", "pre-trained, last layer only", 59.9, "0.9", "weights", "last"),
        ),
    ),
    Table(
        name="1b",
        title="Temporal stream",
        rows=(
            _published("slow-fusion", "slow fusion of RGB frames", ucf101=56.4),
            _row("l1", "one field (L = 1), mean subtracted", 73.9, {**_BEST_STACK, "stack_length": "1"}),
            _row("l5", "stacking (L = 5), mean subtracted", 80.4, {**_BEST_STACK, "stack_length": "5"}),
            _row("l10-raw", "stacking (L = 10)", 79.9, {**_BEST_STACK, **_AS_IT_IS}),
            _row("l10", "stacking (L = 10), mean subtracted", 81.0, _BEST_STACK),
            _row("trajectory-raw", "trajectories (L = 10)", 79.6, {**_TRAJECTORY, **_AS_IT_IS}),
            _row("trajectory", "trajectories (L = 10), mean subtracted", 80.2, _TRAJECTORY),
            _row("bidirectional", "bi-directional (L = 10), mean subtracted", 81.2, _BIDIRECTIONAL),
            _row("multi-task", "multi-task with the other set", 81.5, _BEST_STACK, with_how="heads"),
        ),
    ),
    Table(
        name="2",
        title="Temporal stream and a second dataset",
        note="Where training starts from scratch, fine-tuning takes a quarter of its steps, as in the paper.",
        rows=(
            _row("alone", "alone", 46.6, _BEST_STACK, of="hmdb51"),
            _row("tuned", "fine-tuned from the other set", 49.0, _BEST_STACK, of="hmdb51", with_how="start"),
            _row("classes", "classes of the other added", 52.8, _BEST_STACK, of="hmdb51", with_how="classes"),
            _row("multi-task", "multi-task", 55.4, _BEST_STACK, of="hmdb51", with_how="heads"),
        ),
    ),
    Table(
        name="3",
        title="Both streams fused",
        note=_NOTE_OF_SPATIAL,
        rows=(
            _row("bidirectional", "bi-directional temporal stream, average", 85.6, _BIDIRECTIONAL, score="average"),
            _row("average", "uni-directional temporal stream, average", 85.9, _BEST_STACK, score="average"),
            _row("multi-task", "multi-task, average", 86.2, _BEST_STACK, score="average", with_how="heads"),
            _row("multi-task-svm", "multi-task, SVM", 87.0, _BEST_STACK, score="svm", with_how="heads"),
        ),
    ),
    Table(
        name="4",
        title="Both streams, mean over splits, and what others reached",
        split="all",
        note=f"{_NOTE_OF_SPATIAL} Its temporal stream learned from both sets (multi-task), ours if a second is given.",
        rows=(
            _published("idt", "improved dense trajectories", ucf101=85.9, hmdb51=57.2),
            _published("idt-higher", "the same, higher-dimensional encoding", ucf101=87.9, hmdb51=61.1),
            _published("idt-stacked", "the same, stacked Fisher vectors", hmdb51=66.8),
            _published("slow-fusion", "slow fusion of RGB frames", ucf101=65.4),
            _of_three("spatial", "spatial stream", 73.0, 40.5, "spatial", with_how=""),
            _of_three("temporal", "temporal stream", 83.7, 54.6, "temporal"),
            _of_three("average", "both, average", 86.9, 58.0, "average"),
            _of_three("svm", "both, SVM", 88.0, 59.4, "svm"),
        ),
    ),
)
TABLES: dict[str, Table] = {table.name: table for table in _ALL}


def why_not(row: Row, spatial: StreamSpec, with_dataset: str = "", *, lacks_val: bool = False) -> str:
    """Why a row is not run with these settings, and what it lacks; "" if it can be run.

    Args:
        row: any row.
        spatial: the spatial stream as configured.
        with_dataset: name of the second dataset; "" for none.
        lacks_val: whether there are no validation clips.
    """
    if not row.score:
        return "published only"
    if row.start == "weights" and spatial.start == "scratch":
        return "needs weights to start from: give --spatial-start FILE (or imagenet, for networks of torchvision)"
    if row.with_how and not (with_dataset or row.alone_too):
        return "needs a second dataset: give --with-dataset NAME"
    if row.score == "svm" and lacks_val:
        return "needs validation clips, which the SVM is fitted on: raise [dataset] val_fraction"
    return ""


def changes(row: Row, spatial: StreamSpec, temporal: StreamSpec, with_dataset: str = "") -> dict[str, str]:
    """The settings that a row changes when it is run, as text, sorted by name.

    Training from scratch takes four times the steps of fine-tuning (section 5: 80,000 and 20,000), so the steps are
    adapted if a row does the one and the user configured the other. The paper's schedule from scratch, which is the
    default, counts as that even if `start` names weights: whoever gives only these has not configured fine-tuning, and
    every row whose spatial stream starts from them takes a quarter. The steps of a stream that is configured with
    `with_how = start` are those of fine-tuning. A row without a second dataset is trained without one, even if one is
    configured; if that leaves random weights to start from, all layers learn.

    Args:
        row: one for which `why_not` gives "".
        spatial, temporal: the streams as configured.
        with_dataset: name of the second dataset; "" for none.
    """
    found = dict(row.settings)
    from_scratch = (spatial.start == "scratch" and not spatial.starts_from_other) or all(
        getattr(spatial, name) == getattr(StreamSpec, name) for name in ("steps", "milestones")
    )
    if row.start == "scratch":
        found |= {"spatial_start": "scratch", "spatial_partial_bn": "false"}  # random weights have nothing to keep
    if row.score != "temporal":
        starts = row.start != "scratch" and spatial.start != "scratch"
        if starts == from_scratch:
            found |= _steps("spatial", spatial, tunes=starts)
    for name, configured in (("spatial", spatial), ("temporal", temporal)):
        if configured.with_dataset:
            found |= {f"{name}_with_dataset": "", f"{name}_with_how": ""}
    if row.with_how and with_dataset:
        found |= {"temporal_with_dataset": with_dataset, "temporal_with_how": row.with_how}
    for name, configured in (("spatial", spatial), ("temporal", temporal)):
        if configured.starts_from_other and configured.start == "scratch" and found[f"{name}_with_how"] != "start":
            found |= {f"{name}_partial_bn": "false", f"{name}_train_layers": "all"}
    tuned, tunes = temporal.with_how == "start", found.get("temporal_with_how") == "start"
    if row.score != "spatial" and temporal.start == "scratch" and tuned != tunes:
        found |= _steps("temporal", temporal, tunes=tunes)
    return dict(sorted(found.items()))


def _steps(name: str, configured: StreamSpec, *, tunes: bool) -> dict[str, str]:
    """A quarter of a stream's steps for fine-tuning, else four times as many; milestones, and its share of warm-up."""
    steps, falls = (max(1, configured.steps // 4), (7 / 10,)) if tunes else (4 * configured.steps, (5 / 8, 7 / 8))
    found = {f"{name}_steps": str(steps), f"{name}_milestones": ", ".join(str(round(steps * f)) for f in falls)}
    if configured.warmup:
        found[f"{name}_warmup"] = str(configured.warmup * steps // configured.steps)
    return found


def measured_on(layout: str, classes: int) -> str:
    """Which of the paper's datasets has this layout and number of classes; "" for any other."""
    return layout if CLASSES.get(layout) == classes else ""
