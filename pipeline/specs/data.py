"""The settings of the stages up to the flow: the run, the dataset, frames and flow."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.specs.base import A_FILE, Spec, check_device, setting
from pipeline.system.errors import UserError

OFFICIAL_LAYOUTS = ("ucf101", "hmdb51")
FLOW_METHODS = (
    *("tvl1", "brox", "raft_small", "raft_large"),
    *("dis_ultrafast", "dis_fast", "dis_medium", "farneback", "deepflow", "pcaflow"),
    *("opencv_cuda_tvl1", "opencv_cuda_brox", "nvidia_of"),
)
# torchvision's RAFT weights, the default first: name -> first digits of the SHA-256, with which the file name ends
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
    """Defaults of a run where the command line gives none, and the folder of its artifacts."""

    SECTION: ClassVar[str] = "run"
    dataset: str = setting("demo", "dataset used when none is given", neutral=True)
    artifacts: str = setting("data/artifacts", "folder of everything that is made", neutral=True, path=True)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N", neutral=True)
    seed: int = setting(0, "seed of both trainings", low=0, high=2**63 - 1)

    def check(self):
        """Check that the device is named as in torch."""
        check_device("[run] device", self.device)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """Where a video set lies and how it is read and split."""

    SECTION: ClassVar[str] = "dataset"
    # 2: groups that hold much of a class are drawn last; 3: csv with a group pattern; 4: `videos_key` without groups
    VERSION: ClassVar[int] = 4
    layout: str = setting(
        "folder",
        "how videos and labels lie on disk; unlabeled ones go as far as Flow, and ScoreVideos scores them",
        choices=(*OFFICIAL_LAYOUTS, "folder", "csv", "unlabelled"),
    )
    videos: str = setting("", "folder of the videos", neutral=True, path=True)
    lists: str = setting("", "folder of the official split lists, or the CSV file", neutral=True, path=True)
    generator: str = setting("", "writes the videos first, if they are not there", choices=("", "demo"), neutral=True)
    split: str = setting("1", "split used when none is given: a number, or the name of the test group", neutral=True)
    partial: bool = setting(False, "go on when videos named by the lists are absent")
    group_pattern: str = setting(
        "", "layouts folder and csv: regular expression whose (?P<group>...) is found in the clip's path"
    )
    test_fraction: float = setting(
        0.3, "folder or csv layout without a test group: share of groups that are tested", low=0.0, high=0.9
    )
    val_fraction: float = setting(0.15, "share of the training groups kept for validation", low=0.0, high=0.9)
    split_seed: int = setting(0, "seed of the cuts by group")

    @property
    def has_official_lists(self) -> bool:
        """Whether lists name the test clips of numbered splits."""
        return self.layout in OFFICIAL_LAYOUTS

    @property
    def reads_lists(self) -> bool:
        """Whether clips are named by lists, or by a CSV file."""
        return self.has_official_lists or self.layout == "csv"

    @property
    def draws_groups(self) -> bool:
        """Whether groups, which a pattern may find, are drawn for the test part."""
        return self.layout in ("folder", "csv")

    def unread(self) -> set[str]:
        """How parts are drawn, where official lists give the test part, or where unlabeled videos have no parts."""
        drawing = {"test_fraction", "val_fraction", "split_seed"}
        return drawing if self.layout == "unlabelled" else set() if self.draws_groups else {"test_fraction"}

    def check(self):
        """Check that the layout reads what is given: lists, and a group pattern, which needs a group named `group`."""
        if self.lists and not self.reads_lists:
            raise UserError(
                f"[dataset] lists is {self.lists!r}, but layout {self.layout} reads no lists; set layout = csv (or "
                "ucf101, hmdb51), or leave lists out"
            )
        if self.group_pattern:
            if not self.draws_groups:
                raise UserError(
                    f"[dataset] group_pattern is {self.group_pattern!r}, but layout {self.layout} does not read it "
                    "(official lists give the groups, unlabeled videos have none); leave it out, or empty"
                )
            try:
                named = "group" in re.compile(self.group_pattern).groupindex
            except (re.error, OverflowError, RecursionError) as error:
                raise UserError(
                    f"[dataset] group_pattern {self.group_pattern!r} is no regular expression: {error}"
                ) from None
            if not named:
                raise UserError(f"[dataset] group_pattern {self.group_pattern!r} has no (?P<group>...)")

    def unlabelled(self, videos: str) -> DatasetSpec:
        """Settings for a folder `videos` of unlabeled videos, with the same default split."""
        return DatasetSpec(layout="unlabelled", videos=videos, split=self.split)


@dataclass(frozen=True, kw_only=True)
class DemoSpec(Spec):
    """The demo dataset: three textures by two motions, in the UCF-101 layout."""

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
    shard_clips: int = setting(8, "clips in one shard, at most", low=1, neutral=True)
    shard_mb: int = setting(
        256, "video file megabytes in one shard, at most (one clip may be larger)", low=1, neutral=True
    )
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
    enlarge: int = setting(1, "frames are enlarged this many times while their motion is estimated", low=1, high=4)
    tvl1_gradient_weight: float = setting(
        0.4, "TV-L1: weight of a changed image gradient, per gray value and pixel", low=0.0, only_for=("tvl1",)
    )
    tvl1_brightness_weight: float = setting(
        0.15, "TV-L1: weight of a changed gray value, of 0..255", low=0.0, only_for=("tvl1",)
    )
    tvl1_scale_step: float = setting(
        0.62, "TV-L1: size of each pyramid level over the one below", low=0.3, high=0.95, only_for=("tvl1",)
    )
    tvl1_warps: int = setting(2, "TV-L1: warpings a pyramid level that is not coarse", low=1, only_for=("tvl1",))
    tvl1_coarse_warps: int = setting(3, "TV-L1: warpings a coarse pyramid level", low=1, only_for=("tvl1",))
    tvl1_iterations: int = setting(16, "TV-L1: inner iterations a warping", low=1, only_for=("tvl1",))
    brox_smoothness: float = setting(
        2.6,
        "Brox: weight of the smoothness term, beside a brightness term of 1",
        low=0.001,
        high=1e5,
        only_for=("brox",),
    )
    brox_gradient_weight: float = setting(
        4.0, "Brox: weight of gradient constancy, beside a brightness term of 1", low=0.0, high=1e5, only_for=("brox",)
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
        "",
        "RAFT: torchvision's weights by name, or a file; empty: its default",
        only_for=tuple(RAFT_WEIGHTS),
        path=True,
    )
    raft_updates: int = setting(12, "RAFT: updates of the flow", low=1, high=1000, only_for=tuple(RAFT_WEIGHTS))
    batch_pairs: int = setting(0, "pairs computed at once; 0 chooses by frame size and device", low=0, neutral=True)

    # how often a method's algorithm has changed
    METHOD_CHANGES: ClassVar[dict[str, int]] = {
        "tvl1": 7,
        "brox": 7,
        "farneback": 1,
        "dis_ultrafast": 2,
        "dis_fast": 2,
        "dis_medium": 1,
        **dict.fromkeys(RAFT_WEIGHTS, 1),
    }

    def unread(self) -> set[str]:
        """Settings of other methods; `bound_px` with min-max scaling; `enlarge = 1`, which changes nothing."""
        limited = {name: field.metadata["only_for"] for name, field in self.settings().items()}
        return {
            *(name for name, methods in limited.items() if methods and self.method not in methods),
            *(["bound_px"] if self.scaling == "minmax" else []),
            *(["enlarge"] if self.enlarge == 1 else []),
        }

    def identity(self) -> dict[str, Any]:
        """As for every spec, except for `version` and `raft_weights`.

        The version counts only this method's changes, so other methods' stores are not remade. A weights file counts by
        its content, which the stage adds, not by its path.
        """
        kept = super().identity()
        if self.weights_file:
            kept["raft_weights"] = A_FILE
        return {**kept, "version": self.VERSION + self.METHOD_CHANGES.get(self.method, 0)}

    def __post_init__(self):
        if self.method == "dis":  # the preset usually meant by DIS
            object.__setattr__(self, "method", "dis_medium")
        if not self.raft_weights and self.method in RAFT_WEIGHTS:  # torchvision's default may change with its version
            object.__setattr__(self, "raft_weights", next(iter(RAFT_WEIGHTS[self.method])))
        super().__post_init__()

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions in which flow is computed: forward, and perhaps backward."""
        return ("forward", "backward") if self.backward else ("forward",)

    @property
    def weights_file(self) -> Path | None:
        """The file of RAFT's weights; None for torchvision's, whose names have no dot or slash."""
        is_path = self.method in RAFT_WEIGHTS and ("." in self.raft_weights or "/" in self.raft_weights)
        return Path(self.raft_weights) if is_path else None

    def with_absolute_paths(self) -> FlowSpec:
        """The same settings with absolute paths, for workers that may run in another directory."""
        path = self.weights_file
        return dataclasses.replace(self, raft_weights=str(path.absolute())) if path else self

    def check(self):
        """Check that TV-L1 has a data term and that RAFT's weights are a file or torchvision's for this network."""
        if not self.tvl1_gradient_weight + self.tvl1_brightness_weight:
            raise UserError(
                "[flow] tvl1_gradient_weight and tvl1_brightness_weight are both 0; at least one must be more"
            )
        names = RAFT_WEIGHTS.get(self.method, {})
        if names and self.raft_weights not in names and self.weights_file is None:
            raise UserError(
                f"[flow] raft_weights is {self.raft_weights!r}; allowed for {self.method}: {', '.join(names)}, "
                "or the path of a file, such as ./weights.pth"
            )
