"""The settings of every stage, each a frozen record. What they have in common is in `spec.py`."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.spec import Spec, setting

FLOW_METHODS = (
    *("tvl1", "brox", "raft_small", "raft_large"),
    *("dis_ultrafast", "dis_fast", "dis_medium", "farneback", "deepflow", "pcaflow"),
    *("opencv_cuda_tvl1", "opencv_cuda_brox", "nvidia_of"),
)
# torchvision's weights of RAFT, its default first: name -> the first digits of the SHA-256, which end the file's name
RAFT_WEIGHTS = {
    "raft_small": {"C_T_V2": "01064c6d", "C_T_V1": "ad48884c"},
    "raft_large": {
        "C_T_SKHT_V2": "ff5fadd5",
        "C_T_SKHT_V1": "0b8c9e55",
        "C_T_SKHT_K_V2": "b5c70766",
        "C_T_SKHT_K_V1": "4a6a5039",
        "C_T_V2": "1bb1363a",
        "C_T_V1": "22a6c225",
    },
}


@dataclass(frozen=True, kw_only=True)
class RunSpec(Spec):
    """What a run works on when the command line does not say, and where it puts things."""

    SECTION: ClassVar[str] = "run"
    dataset: str = setting("demo", "dataset used when none is given", neutral=True)
    artifacts: str = setting("data/artifacts", "folder of everything that is made", neutral=True)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N", neutral=True)
    seed: int = setting(0, "seed of both trainings", low=0)

    def check(self):
        """A device is named as torch names it."""
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"[run] device is {self.device!r}; allowed: auto, cpu, cuda, cuda:N")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """Where a labelled video set lies and how it is read and split."""

    SECTION: ClassVar[str] = "dataset"
    layout: str = setting("folder", "how videos and labels lie on disk", choices=("ucf101", "hmdb51", "folder", "csv"))
    videos: str = setting("", "folder of the videos", neutral=True)
    lists: str = setting("", "folder of the official split lists, or the CSV file", neutral=True)
    generator: str = setting("", "writes the videos first, if they are not there", choices=("", "demo"), neutral=True)
    split: str = setting("1", "split used when none is given: a number, or the name of the test group", neutral=True)
    partial: bool = setting(False, "go on when videos named by the lists are absent")
    group_pattern: str = setting(
        "", "folder layout: regular expression whose (?P<group>...) is found in the clip's path"
    )
    test_fraction: float = setting(
        0.3, "folder or csv layout without a test group: share of groups that are tested", low=0.0, high=0.9
    )
    val_fraction: float = setting(0.15, "share of the training groups kept for validation", low=0.0, high=0.9)
    split_seed: int = setting(0, "seed of the cuts by group")

    def check(self):
        """The group pattern must compile and must name its group."""
        if self.group_pattern:
            try:
                named = "group" in re.compile(self.group_pattern).groupindex
            except re.error as error:
                raise ValueError(
                    f"[dataset] group_pattern {self.group_pattern!r} is no regular expression: {error}"
                ) from None
            if not named:
                raise ValueError(f"[dataset] group_pattern {self.group_pattern!r} has no (?P<group>...)")


@dataclass(frozen=True, kw_only=True)
class DemoSpec(Spec):
    """The demo dataset: three textures times two motions, in the UCF-101 layout."""

    SECTION: ClassVar[str] = "demo"
    groups: int = setting(12, "groups (backgrounds) a class; a third of them is tested", low=3, high=99)
    clips: int = setting(3, "clips a group", low=1, high=99)
    frames: int = setting(30, "frames a clip, about", low=8, high=10_000)
    width_px: int = setting(112, "width of the videos", low=32, high=4096)
    height_px: int = setting(84, "height of the videos", low=32, high=4096)
    seed: int = setting(0, "seed of everything random in it", low=0)


@dataclass(frozen=True, kw_only=True)
class FrameSpec(Spec):
    """How videos become cached frames."""

    SECTION: ClassVar[str] = "frames"
    short_side_px: int = setting(256, "frames are resized to this short side; 0 keeps their size", low=0, high=8192)
    jpeg_quality: int = setting(95, "JPEG quality of the cached frames", low=1, high=100)
    min_frames: int = setting(2, "a clip of which fewer frames decode is recorded as failed", low=1)
    shard_clips: int = setting(8, "clips in one shard, at most", low=1)
    shard_mb: int = setting(256, "video file megabytes in one shard, at most (one clip may be larger)", low=1)
    timeout_seconds: float = setting(
        600.0, "a clip that takes longer to decode is recorded as failed", low=0.01, neutral=True
    )
    max_bad_fraction: float = setting(
        0.05, "the stage fails if more than this share of the clips fails", low=0.0, high=1.0, neutral=True
    )


@dataclass(frozen=True, kw_only=True)
class FlowSpec(Spec):
    """How frames become optical flow, and how flow becomes bytes."""

    SECTION: ClassVar[str] = "flow"
    method: str = setting("tvl1", "estimator", choices=FLOW_METHODS)
    backward: bool = setting(False, "also compute flow from each frame to the one before")
    scaling: str = setting(
        "bound", "bytes by a fixed bound, or by each field's own minimum and maximum", choices=("bound", "minmax")
    )
    bound_px: float = setting(
        20.0, "displacements are clipped to +- this many pixels (scaling = bound)", low=0.1, high=1000.0
    )
    jpeg_quality: int = setting(95, "JPEG quality of the flow planes", low=1, high=100)
    tvl1_gradient_weight: float = setting(
        0.25, "TV-L1: weight of a changed image gradient, per gray value and pixel", low=0.0, only_for=("tvl1",)
    )
    tvl1_brightness_weight: float = setting(
        0.0, "TV-L1: weight of a changed gray value, of 0..255; 0.1 without the gradient", low=0.0, only_for=("tvl1",)
    )
    tvl1_scale_step: float = setting(
        0.65, "TV-L1: size of each pyramid level over the one below", low=0.3, high=0.95, only_for=("tvl1",)
    )
    tvl1_warps: int = setting(2, "TV-L1: warpings a pyramid level", low=1, only_for=("tvl1",))
    tvl1_iterations: int = setting(18, "TV-L1: inner iterations a warping", low=1, only_for=("tvl1",))
    brox_smoothness: float = setting(
        3.5, "Brox: weight of the smoothness term, beside a brightness term of 1", low=0.001, only_for=("brox",)
    )
    brox_gradient_weight: float = setting(
        4.0, "Brox: weight of gradient constancy, beside a brightness term of 1", low=0.0, only_for=("brox",)
    )
    brox_scale_step: float = setting(
        0.9, "Brox: size of each pyramid level over the one below", low=0.3, high=0.95, only_for=("brox",)
    )
    brox_warps: int = setting(3, "Brox: warpings (outer iterations) a pyramid level", low=1, only_for=("brox",))
    brox_iterations: int = setting(
        2, "Brox: updates of the penalties (inner iterations) a warping", low=1, only_for=("brox",)
    )
    brox_sweeps: int = setting(5, "Brox: sweeps of the linear solver an inner iteration", low=1, only_for=("brox",))
    raft_weights: str = setting(
        "", "RAFT: torchvision's weights by name, or a file; empty: its default", only_for=tuple(RAFT_WEIGHTS)
    )
    raft_updates: int = setting(12, "RAFT: updates of the flow", low=1, high=1000, only_for=tuple(RAFT_WEIGHTS))
    batch_pairs: int = setting(0, "pairs computed at once; 0 chooses by frame size and device", low=0, neutral=True)

    def __post_init__(self):
        if self.method == "dis":  # the preset that people mean by DIS
            object.__setattr__(self, "method", "dis_medium")
        if not self.raft_weights and self.method in RAFT_WEIGHTS:  # another torchvision may have another default
            object.__setattr__(self, "raft_weights", next(iter(RAFT_WEIGHTS[self.method])))
        super().__post_init__()

    @property
    def weights_file(self) -> Path | None:
        """The file that RAFT's weights come from, if they do not come from torchvision; a name has no dot or slash."""
        is_path = self.method in RAFT_WEIGHTS and ("." in self.raft_weights or "/" in self.raft_weights)
        return Path(self.raft_weights) if is_path else None

    def with_absolute_paths(self) -> FlowSpec:
        """The same settings for workers that may stand in another folder."""
        path = self.weights_file
        return dataclasses.replace(self, raft_weights=str(path.absolute())) if path else self

    def check(self):
        """TV-L1 compares something; RAFT's weights are a file, or such as torchvision has for this network."""
        if not self.tvl1_gradient_weight + self.tvl1_brightness_weight:
            raise ValueError(
                "[flow] tvl1_gradient_weight and tvl1_brightness_weight are both 0; at least one must be more"
            )
        names = RAFT_WEIGHTS.get(self.method, {})
        if names and self.raft_weights not in names and self.weights_file is None:
            raise ValueError(
                f"[flow] raft_weights is {self.raft_weights!r}; allowed for {self.method}: {', '.join(names)}, "
                "or the path of a file, such as ./weights.pth"
            )


@dataclass(frozen=True, kw_only=True)
class StackSpec(Spec):
    """How consecutive flow fields become one network input (paper, section 3.1)."""

    SECTION: ClassVar[str] = "stack"
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
        """Both halves of a bidirectional stack are equally long."""
        if self.direction == "bidirectional" and self.length % 2:
            raise ValueError(f"[stack] length is {self.length}; a bidirectional stack needs an even number")


@dataclass(frozen=True, kw_only=True)
class StreamSpec(Spec):
    """One stream: its input, its network and its training. The stream is a value here, nowhere a copy of code."""

    SECTION: ClassVar[str] = "stream"
    VERSION: ClassVar[int] = 2  # 2: networks without dropout have one before their head
    stream: str = setting("spatial", "which stream", choices=("spatial", "temporal"))
    network: str = setting("cnn_m_2048", "cnn_m_2048, small, or a torchvision classification model by name")
    start: str = setting("scratch", "scratch, imagenet (torchvision's weights), or the path of a weights file")
    with_dataset: str = setting("", "another data set, of luigi.cfg, that this one is trained together with")
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
    partial_bn: bool = setting(False, "TSN: every batch normalisation but the first keeps its weights and statistics")
    segments: int = setting(
        1, "TSN: snippets of a clip in a training step, one from each of as many parts", low=1, high=64
    )
    consensus: str = setting("average", "TSN: how the snippets' logits become a clip's", choices=("average", "max"))
    dropout: float = setting(0.9, "dropout of the fully connected layers, or before the last one", low=0.0, high=0.99)
    resize_px: int = setting(256, "short side before cropping; 0 takes frames as cached", low=0, high=4096)
    crop_px: int = setting(224, "side of the square crop", low=16, high=4096)
    cropping: str = setting(
        "random",
        "crops in training: anywhere, or TSN's corners and centre at four scales",
        choices=("random", "corners"),
    )
    flip: bool = setting(True, "mirror at random in training (x of the flow negated)")
    jitter: float = setting(
        0.0, "spatial stream: strength of the random brightness, contrast and saturation", low=0.0, high=1.0
    )
    flow_unit_px: float = setting(
        4.0, "temporal stream: displacement that becomes 1.0 at the network's input", low=0.01
    )
    batch: int = setting(256, "clips in a training step", low=1)
    steps: int = setting(80_000, "training steps", low=1)
    optimizer: str = setting("sgd", "SGD with momentum, or AdamW", choices=("sgd", "adamw"))
    learning_rate: float = setting(0.01, "highest learning rate", low=0.0)
    schedule: str = setting(
        "step", "how the learning rate falls: at milestones, or as a cosine", choices=("step", "cosine")
    )
    milestones: tuple[int, ...] = setting(
        (50_000, 70_000), "schedule = step: steps after which the learning rate is divided by 10"
    )
    learning_rate_end: float = setting(0.0, "schedule = cosine: learning rate after the last step", low=0.0)
    warmup: int = setting(0, "first steps, in which the learning rate rises in a line", low=0)
    momentum: float = setting(0.9, "momentum of SGD, first decay of AdamW", low=0.0, high=0.999)
    weight_decay: float = setting(5e-4, "weight decay", low=0.0)
    clip_norm: float = setting(0.0, "gradients are scaled down to this norm, all together; 0 leaves them", low=0.0)
    label_smoothing: float = setting(0.0, "label smoothing of the loss", low=0.0, high=0.5)
    validate_every: int = setting(1000, "steps between validations; the best validated weights are kept", low=1)
    precision: str = setting(
        "auto",
        "what the network computes in; auto is bf16 or else float16 on CUDA, float32 on a CPU",
        choices=("auto", "float32", "bf16", "float16"),
    )
    accumulate: int = setting(1, "parts of a batch whose gradients are summed before a step: memory for time", low=1)
    seed: int = setting(0, "seed of initialisation, sampling and augmentation", low=0)
    deterministic: bool = setting(
        False, "only algorithms that give the same bits each time, also on CUDA", neutral=True
    )
    processes: int = setting(1, "processes that train together on a machine; 0 means one a GPU", low=0, neutral=True)
    machines: int = setting(1, "machines that train together, with as many processes each", low=1, neutral=True)
    rendezvous: str = setting("", "machines > 1: host:port of the first, reached by all others", neutral=True)
    loader_workers: int = setting(
        -1, "processes that load training data, for each that trains; -1 chooses by device", low=-1, neutral=True
    )
    save_every: int = setting(500, "steps between checkpoints for resuming", low=1, neutral=True)
    stack: StackSpec | None = None

    @property
    def section(self) -> str:
        """`[spatial]` or `[temporal]`."""
        return str(self.stream)

    def check(self):
        """A temporal stream has a stack, a spatial one has none; crops fit into frames, parts into the batch."""
        if (self.stream == "temporal") != (self.stack is not None):
            raise ValueError(
                f"[{self.stream}] stack is {self.stack!r}; a temporal stream needs one, a spatial stream has none"
            )
        if self.resize_px and self.crop_px > self.resize_px:
            raise ValueError(
                f"[{self.stream}] crop_px is {self.crop_px}; it must be at most resize_px ({self.resize_px})"
            )
        self._check_schedule()
        self._check_parts()
        self._check_with()

    def _check_schedule(self):
        if self.warmup >= self.steps:
            raise ValueError(f"[{self.stream}] warmup is {self.warmup}; it must be less than steps ({self.steps})")
        if self.learning_rate_end > self.learning_rate:
            raise ValueError(
                f"[{self.stream}] learning_rate_end is {self.learning_rate_end:g}; it must be at most "
                f"learning_rate ({self.learning_rate:g})"
            )

    def _check_parts(self):
        parts = self.accumulate * max(1, self.processes) * self.machines
        if self.batch % parts:
            raise ValueError(
                f"[{self.stream}] batch is {self.batch}; accumulate ({self.accumulate}) x processes "
                f"({max(1, self.processes)}) x machines ({self.machines}) must divide it"
            )
        if self.machines > 1 and not re.fullmatch(r"\S+:\d+", self.rendezvous):
            raise ValueError(
                f"[{self.stream}] rendezvous is {self.rendezvous!r}; machines > 1 needs the first machine's host:port"
            )

    def _check_with(self):
        if bool(self.with_dataset) != bool(self.with_how):
            raise ValueError(
                f"[{self.stream}] with_dataset is {self.with_dataset!r} and with_how is {self.with_how!r}; give both "
                "(the name of another data set; heads, classes or start), or neither"
            )
        if self.with_same and self.with_how != "classes":
            raise ValueError(
                f"[{self.stream}] with_same is {', '.join(self.with_same)!r}, which means something only with "
                "with_how = classes"
            )
        if wrong := [pair for pair in self.with_same if not re.fullmatch(r"[^:]+:[^:]+", pair)]:
            raise ValueError(
                f"[{self.stream}] with_same holds {wrong[0]!r}; allowed: a class of this set, a colon, and a class of "
                "the other, such as ride_bike:Biking"
            )

    def alone(self) -> StreamSpec:
        """The same stream, trained without another data set."""
        return dataclasses.replace(self, with_dataset="", with_how="", with_same=())

    @property
    def items_per_step(self) -> int:
        """Clips in a training step: `batch`, of each of the data sets that have a head."""
        return self.batch * (2 if self.with_how == "heads" else 1)

    @property
    def channels(self) -> int:
        """Input channels of the network: 3, or 2L."""
        return 2 * self.stack.length if self.stack else 3


@dataclass(frozen=True, kw_only=True)
class ScoreSpec(Spec):
    """Test views of a clip (paper, section 5: 25 frames, four corners and the centre and their mirror images)."""

    SECTION: ClassVar[str] = "score"
    frames: int = setting(25, "frames at equal temporal spacing", low=1)
    crops: int = setting(
        10, "views of a frame: centre; and its mirror; corners and centre; and their mirrors", choices=(1, 2, 5, 10)
    )
    per_view: bool = setting(False, "keep the scores and features of every view besides their means")
    batch: int = setting(0, "views in one forward pass; 0 chooses by device", low=0, neutral=True)


@dataclass(frozen=True, kw_only=True)
class FusionSpec(Spec):
    """How two score tables become one. Everything is chosen on validation clips, in folds by group."""

    SECTION: ClassVar[str] = "fusion"
    VERSION: ClassVar[int] = 2
    weight_step: float = setting(
        0.05, "grid of the temporal stream's weight, searched on validation clips", low=0.001, high=0.5
    )
    svm_c: float = setting(0.0, "C of the linear SVM; 0 chooses it from svm_c_grid by cross-validation", low=0.0)
    svm_c_grid: tuple[float, ...] = setting((0.01, 0.1, 1.0, 10.0), "values of C that are tried if svm_c is 0")
    folds: int = setting(5, "folds of the cross-validation; a group is never split", low=2, high=100)

    def check(self):
        """C, where it is given, and every value of the grid are no smaller than the solver can do with."""
        if 0 < self.svm_c < 1e-6:
            raise ValueError(f"[fusion] svm_c is {self.svm_c}; it must be 0 or at least 1e-06")
        if not self.svm_c_grid or not all(1e-6 <= c < math.inf for c in self.svm_c_grid):
            given = ", ".join(f"{c:g}" for c in self.svm_c_grid)
            raise ValueError(f"[fusion] svm_c_grid is {given!r}; it must hold numbers of at least 1e-06")


@dataclass(frozen=True, kw_only=True)
class ClusterSpec(Spec):
    """Where preprocessing runs. Nothing here changes a result."""

    SECTION: ClassVar[str] = "cluster"
    kind: str = setting(
        "local",
        "this process, local processes, a running scheduler, or a job queue",
        choices=("inline", "local", "address", "jobqueue"),
        neutral=True,
    )
    workers: int = setting(
        0, "processes or jobs; 0 means one a core, one a GPU, or all that an address has", low=0, neutral=True
    )
    threads: int = setting(
        0, "threads of a worker in Flow for JPEG; 0 means the share of its GPU in the cores, or 1", low=0, neutral=True
    )
    address: str = setting("", "kind = address: tcp://host:port of the dask scheduler", neutral=True)
    queue_system: str = setting(
        "slurm", "kind = jobqueue: which", choices=("slurm", "pbs", "sge", "lsf", "htcondor"), neutral=True
    )
    queue: str = setting("", "kind = jobqueue: queue or partition", neutral=True)
    memory: str = setting("4GiB", "kind = jobqueue: memory of a job", neutral=True)
    walltime: str = setting("04:00:00", "kind = jobqueue: time limit of a job", neutral=True)
    in_flight: int = setting(2, "shards handed out at once, a worker", low=1, neutral=True)

    def check(self):
        """An address is needed exactly when the kind asks for one."""
        if self.kind == "address" and not self.address:
            raise ValueError(
                "[cluster] address is empty; kind = address needs the scheduler's, such as tcp://127.0.0.1:8786"
            )
