"""The settings of the stacks and of the two streams."""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.specs.base import A_FILE, Spec, setting
from pipeline.system.errors import UserError

STREAMS = ("spatial", "temporal")


@dataclass(frozen=True, kw_only=True)
class StackSpec(Spec):
    """How consecutive flow fields become one network input (paper, section 3.1)."""

    SECTION: ClassVar[str] = "stack"
    VERSION: ClassVar[int] = 2  # 2: trajectories are followed in double precision
    length: int = setting(10, "flow fields in a stack, L; the input has 2L channels", low=1, high=64)
    kind: str = setting(
        "stack", "fields at the same points, or along the path of each point", choices=("stack", "trajectory")
    )
    direction: str = setting(
        "forward", "L forward fields, or L/2 forward and L/2 backward ones", choices=("forward", "bidirectional")
    )
    subtract_mean: bool = setting(True, "subtract from each field its own mean vector")
    short: str = setting("repeat_last", "clips shorter than the window", choices=("repeat_last", "wrap"))

    def check(self):
        """Check that a bidirectional stack splits into two equal halves."""
        if self.direction == "bidirectional" and self.length % 2:
            raise UserError(f"[stack] length is {self.length}; a bidirectional stack needs an even number")


@dataclass(frozen=True, kw_only=True)
class StreamSpec(Spec):
    """One stream: its input, network and training. The streams share all code and differ only in settings."""

    SECTION: ClassVar[str] = "stream"
    # 2: networks without dropout get a dropout layer before the head; 3: batch normalization spans all processes on a
    # CPU too, and float32 on a GPU is never TF32; 4: on a CPU the statistics of batches are summed in float64
    VERSION: ClassVar[int] = 4
    stream: str = setting("spatial", "which stream", choices=STREAMS)
    network: str = setting("cnn_m_2048", "cnn_m_2048, small, or a torchvision classification model by name")
    start: str = setting(
        "scratch", "scratch, imagenet (torchvision's weights), or the path of a weights file", path=True
    )
    with_dataset: str = setting("", "another dataset, of luigi.cfg, that this one is trained together with")
    with_how: str = setting(
        "",
        "heads: one body, a last layer and a loss for each set; classes: the other's classes are added to this set's; "
        "start: from the weights of the other's training",
        choices=("", "heads", "classes", "start"),
    )
    with_same: tuple[str, ...] = setting(
        (), "with_how = classes: classes that are the same by other names, as this set's:the other's"
    )
    train_layers: str = setting("all", "layers that are trained", choices=("all", "last"))
    partial_bn: bool = setting(False, "TSN: every batch normalization but the first keeps its weights and statistics")
    segments: int = setting(
        1, "TSN: snippets of a clip in a training step, one from each of as many parts", low=1, high=64
    )
    consensus: str = setting(
        "average",
        "TSN: how the snippets' logits become a clip's in training; validation and scores average the softmax",
        choices=("average", "max"),
    )
    dropout: float = setting(0.9, "dropout of the fully connected layers, or before the last one", low=0.0, high=0.99)
    resize_px: int = setting(256, "short side before cropping; 0 takes frames as cached", low=0, high=4096)
    crop_px: int = setting(224, "side of the square crop", low=16, high=4096)
    cropping: str = setting(
        "random",
        "crops in training: anywhere, or TSN's corners and center at four scales",
        choices=("random", "corners"),
    )
    flip: bool = setting(True, "mirror at random in training (x of the flow negated)")
    jitter: float = setting(
        0.0,
        "spatial stream: strength of the random brightness, contrast and saturation (luigi.cfg: 0.1)",
        low=0.0,
        high=1.0,
    )
    flow_unit_px: float = setting(
        4.0, "temporal stream: displacement that becomes 1.0 at the network's input", low=0.01
    )
    batch: int = setting(256, "clips in a training step", low=1, high=1_000_000)
    steps: int = setting(80_000, "training steps", low=1, high=1_000_000_000)
    optimizer: str = setting("sgd", "SGD with momentum, or AdamW", choices=("sgd", "adamw"))
    learning_rate: float = setting(0.01, "highest learning rate", low=0.0)
    schedule: str = setting(
        "step", "how the learning rate falls: at milestones, or as a cosine", choices=("step", "cosine")
    )
    milestones: tuple[int, ...] = setting(
        (50_000, 70_000), "schedule = step: steps after which the learning rate is divided by 10"
    )
    learning_rate_end: float = setting(0.0, "schedule = cosine: learning rate after the last step", low=0.0)
    warmup: int = setting(0, "first steps, in which the learning rate rises linearly", low=0)
    momentum: float = setting(0.9, "momentum of SGD, first decay of AdamW", low=0.0, high=0.999)
    weight_decay: float = setting(5e-4, "weight decay", low=0.0)
    clip_norm: float = setting(0.0, "gradients are scaled down to this norm, all together; 0 leaves them", low=0.0)
    label_smoothing: float = setting(0.0, "label smoothing of the loss", low=0.0, high=0.5)
    validate_every: int = setting(1000, "steps between validations; the best validated weights are kept", low=1)
    precision: str = setting(
        "auto",
        "what training computes in (all else: float32); auto is bf16 or else float16 on CUDA, float32 on a CPU",
        choices=("auto", "float32", "bf16", "float16"),
    )
    accumulate: int = setting(1, "parts of a batch whose gradients are summed before a step: memory for time", low=1)
    seed: int = setting(
        0, "seed of initialization, sampling and augmentation (tasks: that of [run])", low=0, high=2**63 - 1
    )
    deterministic: bool = setting(
        False, "only algorithms that give the same bits each time, also on CUDA", neutral=True
    )
    processes: int = setting(1, "processes that train on a machine, 0: one a GPU", low=0, neutral=True)
    machines: int = setting(1, "machines that train together, with as many processes each", low=1, neutral=True)
    rendezvous: str = setting("", "machines > 1: host:port of the first, reached by all others", neutral=True)
    loader_workers: int = setting(
        -1,
        "processes that load data in training (scoring chooses by device), for each that trains; -1 chooses by device",
        low=-1,
        neutral=True,
    )
    gpu_decoding: float = setting(
        -1.0,
        "temporal stream: share of a batch's stacks that a GPU decodes (nvJPEG) in training; -1 measures the best one",
        low=-1.0,
        high=1.0,
        neutral=True,
    )
    save_every: int = setting(
        500,
        "steps between checkpoints for resuming; more if saving one takes a second and 2 % of the time",
        low=1,
        neutral=True,
    )
    stack: StackSpec | None = None

    @property
    def section(self) -> str:
        """Section of luigi.cfg: "spatial" or "temporal"."""
        return str(self.stream)

    def check(self):
        """Check that exactly the temporal stream has a stack, that crops fit in frames, that parts divide the batch."""
        if not isinstance(self.stack, StackSpec if self.stream == "temporal" else type(None)):
            raise UserError(
                f"[{self.stream}] stack is {self.stack!r}; a temporal stream needs a StackSpec, a spatial one None"
            )
        if self.resize_px and self.crop_px > self.resize_px:
            raise UserError(
                f"[{self.stream}] crop_px is {self.crop_px}; it must be at most resize_px ({self.resize_px})"
            )
        self._check_unread()
        self._check_decoding()
        self._check_schedule()
        self._check_parts()
        self._check_with()

    def _check_unread(self):
        """Reject a changed setting that only the other stream reads."""
        for unread in {"spatial": ("flow_unit_px", "gpu_decoding"), "temporal": ("jitter",)}[self.stream]:
            default = self.settings()[unread].default
            if getattr(self, unread) != default:
                raise UserError(
                    f"[{self.stream}] {unread} is {getattr(self, unread):g}; the {self.stream} stream does not read "
                    f"it: leave it at {default:g}"
                )

    def _check_decoding(self):
        """Reject an impossible share, and any GPU share if results must repeat bit for bit.

        With `deterministic`, torch fills the memory that nvJPEG writes to, and nvJPEG does not wait for that.
        """
        if -1 < self.gpu_decoding < 0:
            raise UserError(f"[{self.stream}] gpu_decoding is {self.gpu_decoding:g}; it must be -1, or from 0 to 1")
        if self.deterministic and self.gpu_decoding > 0:
            raise UserError(
                f"[{self.stream}] gpu_decoding is {self.gpu_decoding:g} and deterministic is true; a deterministic "
                "training decodes on the CPU: set gpu_decoding to 0 or -1"
            )

    def _check_schedule(self):
        """Check the schedule. Milestones may lie beyond `steps`, so short trial runs need not change them."""
        falls = self.milestones
        if any(step < 0 for step in falls) or any(a >= b for a, b in itertools.pairwise(falls)):
            raise UserError(
                f"[{self.stream}] milestones is {', '.join(map(str, falls))!r}; it must hold ascending numbers of "
                "steps from 0 up"
            )
        if self.warmup >= self.steps:
            raise UserError(f"[{self.stream}] warmup is {self.warmup}; it must be less than steps ({self.steps})")
        if self.learning_rate_end > self.learning_rate:
            raise UserError(
                f"[{self.stream}] learning_rate_end is {self.learning_rate_end:g}; it must be at most "
                f"learning_rate ({self.learning_rate:g})"
            )

    def check_divides(self, processes: int) -> None:
        """Refuse a batch that so many processes on each machine cannot share equally.

        Raises:
            UserError: the batch is no multiple of accumulate x processes x machines.
        """
        if self.batch % (self.accumulate * processes * self.machines):
            raise UserError(
                f"[{self.stream}] batch is {self.batch}; accumulate ({self.accumulate}) x processes ({processes}) x "
                f"machines ({self.machines}) must divide it"
            )

    def _check_parts(self):
        self.check_divides(max(1, self.processes))
        if self.machines > 1 and not re.fullmatch(r"\S+:\d+", self.rendezvous):
            raise UserError(
                f"[{self.stream}] rendezvous is {self.rendezvous!r}; machines > 1 needs the first machine's host:port"
            )

    def _check_with(self):
        if bool(self.with_dataset) != bool(self.with_how):
            raise UserError(
                f"[{self.stream}] with_dataset is {self.with_dataset!r} and with_how is {self.with_how!r}; give both "
                "(the name of another dataset; heads, classes or start), or neither"
            )
        if wrong := [pair for pair in self.with_same if not re.fullmatch(r"[^:]+:[^:]+", pair)]:
            raise UserError(
                f"[{self.stream}] with_same holds {wrong[0]!r}; allowed: a class of this set, a colon, and a class of "
                "the other, such as ride_bike:Biking"
            )

    def identity(self) -> dict[str, Any]:
        """As for every spec, but a weights file counts by its content, which the stage adds, not by its path."""
        return {**super().identity(), **({"start": A_FILE} if self.start_file else {})}

    def unread(self) -> set[str]:
        """Settings that the schedule, the number of segments, the trained layers or `with_how` make irrelevant."""
        return {
            "learning_rate_end" if self.schedule == "step" else "milestones",
            *(["consensus"] if self.segments == 1 else []),
            *(["partial_bn"] if self.train_layers == "last" else []),
            *(["with_same"] if self.with_how != "classes" else []),
        }

    @property
    def start_file(self) -> Path | None:
        """The weights file that training starts from; None if it does not start from a file."""
        return Path(self.start) if self.start not in ("scratch", "imagenet") else None

    @property
    def reads_other(self) -> bool:
        """Whether it also trains on clips of another dataset."""
        return self.with_how in ("heads", "classes")

    @property
    def starts_from_other(self) -> bool:
        """Whether it starts from the weights of another dataset's training."""
        return self.with_how == "start"

    def alone(self) -> StreamSpec:
        """The same stream, trained without another dataset."""
        return dataclasses.replace(self, with_dataset="", with_how="", with_same=())

    @property
    def warning(self) -> str:
        """Warning about settings that are allowed but probably a mistake; "" if there are none."""
        if self.start != "scratch" or self.starts_from_other:
            return ""
        if self.partial_bn and self.train_layers == "all":
            return (
                f"[{self.stream}] partial_bn is true and start is scratch: normalizations that have learned nothing "
                "are kept as they are; start from weights, or set partial_bn = false"
            )
        if self.train_layers == "last":
            return (
                f"[{self.stream}] train_layers is last and start is scratch: the layers below have learned nothing and "
                "stay so; start from weights, or set train_layers = all"
            )
        return ""

    @property
    def items_per_step(self) -> int:
        """Clips in a training step: `batch` clips of each dataset that has a head."""
        return self.batch * (2 if self.with_how == "heads" else 1)

    @property
    def channels(self) -> int:
        """Input channels of the network: 3 for a frame, 2L for a stack of L flow fields."""
        return 2 * self.stack.length if self.stack else 3
