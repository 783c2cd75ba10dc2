"""The settings of scoring and of fusion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from pipeline.specs.base import Spec, setting
from pipeline.specs.streams import StreamSpec
from pipeline.system.errors import UserError

FUSIONS = ("average", "weighted", "svm")


@dataclass(frozen=True, kw_only=True)
class ScoreSpec(Spec):
    """Test views of a clip (paper, section 5: 25 frames, four corners, the center, and their mirror images)."""

    SECTION: ClassVar[str] = "score"
    VERSION: ClassVar[int] = 2
    frames: int = setting(25, "frames at equal temporal spacing", low=1, high=1_000_000)
    crops: int = setting(
        10, "views of a frame: center; and its mirror; corners and center; and their mirrors", choices=(1, 2, 5, 10)
    )
    per_view: bool = setting(False, "keep the scores and features of every view besides their means")
    batch: int = setting(0, "views in one forward pass; 0 chooses by device", low=0, high=1_000_000, neutral=True)

    def warning(self, stream: StreamSpec) -> str:
        """Warning about views that a stream with these settings never saw in training; "" if there are none."""
        if stream.flip or self.crops not in (2, 10):
            return ""
        return (
            f"[score] crops is {self.crops}, half of which are mirror images, but [{stream.stream}] flip is false; if "
            f"mirroring changes the class, set crops to {self.crops // 2}"
        )


@dataclass(frozen=True, kw_only=True)
class FusionSpec(Spec):
    """How two score tables become one. All choices are made on validation clips, judged by folds of groups."""

    SECTION: ClassVar[str] = "fusion"
    # 3: the margins of the SVM are divided by a temperature; 4: which leaves its decision; 5: ties of float32 weights
    VERSION: ClassVar[int] = 5
    weight_step: float = setting(
        0.05, "grid of the temporal stream's weight, searched on validation clips", low=0.001, high=0.5
    )
    svm_c: float = setting(0.0, "C of the linear SVM; 0 chooses it from svm_c_grid by cross-validation", low=0.0)
    svm_c_grid: tuple[float, ...] = setting((0.01, 0.1, 1.0, 10.0), "values of C that are tried if svm_c is 0")
    folds: int = setting(5, "folds of the cross-validation; a group is never split", low=2, high=100)

    def unread(self) -> set[str]:
        """The grid of C, if C is given."""
        return {"svm_c_grid"} if self.svm_c else set()

    def check(self):
        """Check that C, if given, and every value of the grid are large enough for the solver."""
        if 0 < self.svm_c < 1e-6:
            raise UserError(f"[fusion] svm_c is {self.svm_c}; it must be 0 or at least 1e-06")
        if not self.svm_c_grid or not all(1e-6 <= c < math.inf for c in self.svm_c_grid):
            given = ", ".join(f"{c:g}" for c in self.svm_c_grid)
            raise UserError(f"[fusion] svm_c_grid is {given!r}; it must hold numbers of at least 1e-06")
