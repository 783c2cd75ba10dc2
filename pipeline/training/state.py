"""The state of a training and the file from which it resumes, with any number of processes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from pipeline.networks import build, imagenet
from pipeline.networks.checkpoint import load_tensors
from pipeline.specs import StreamSpec
from pipeline.system.digests import code_key
from pipeline.system.errors import DamagedFile, StageFailed, UserError
from pipeline.system.files import MAY_PASS
from pipeline.system.progress import say
from pipeline.system.tensors import save_tensors
from pipeline.training import recipe
from pipeline.training.parallel import World, data_parallel
from pipeline.training.whole_batch import Piece, draw_for_whole_batch

_FORMAT, _VERSION = "two-stream-resume", 1
_CURVE_POINTS = 1000
_QUICK_S = 1.0  # if saving is faster than this, it happens as often as the settings say
_SHARE_OF_SAVING = 0.02  # largest share of the time spent on saving, if that is not quick
UNUSABLE = ".unusable"  # suffix of a state that could not be read, which is kept until the training is done


def identity_of(spec: StreamSpec, inputs_key: str, classes: Sequence[str], other_classes: Sequence[str]) -> str:
    """Digest that identifies a training; only a training with the same digest resumes from `resume.pt`."""
    return spec.digest(inputs_key, *classes, *other_classes)


def steps_done(path: Path, identity: str) -> int:
    """Steps that a training of this identity has done according to `resume.pt`; 0 if it would start over."""
    try:
        saved = _read(path, mmap=True)
    except (FileNotFoundError, UserError, DamagedFile):
        return 0
    return saved["step"] if saved["identity"] == identity else 0


def _read(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """What `TrainingState.save` wrote.

    Raises:
        FileNotFoundError, OSError, MemoryError: as `checkpoint.load_tensors`.
        ValueError: as `checkpoint.load_tensors`, or a part is missing.
    """
    saved = load_tensors(path, _FORMAT, _VERSION, mmap=mmap)
    parts = {"identity": str, "step": int, **dict.fromkeys(("network", "optimizer", "scaler", "best", "curve"), dict)}
    whole = all(isinstance(saved.get(name), kind) for name, kind in parts.items())
    kinds = {"curve": Curve, "best": Best} if whole and saved["best"] else {"curve": Curve}
    if not whole or any(saved[name].keys() != {part.name for part in fields(of)} for name, of in kinds.items()):
        raise UserError(f"{path} does not hold a training's state as this version of the code keeps it")
    return saved


class TrainingDiverged(StageFailed):
    """Weights or losses of a training are no longer finite numbers."""


@dataclass
class Best:
    """The weights with the best validation so far; without validation clips, the last ones."""

    step: int
    state: dict[str, torch.Tensor]
    top1: float | None = None
    loss: float | None = None


@dataclass
class Curve:
    """What is recorded about a training, for `curve.json`."""

    steps: list[int] = field(default_factory=list)
    """Steps done at each point."""
    loss: list[float] = field(default_factory=list)
    """Mean loss of the steps since the previous point."""
    learning_rate: list[float] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    """{"step", "top1", "loss"} of every validation."""
    pending: list[float] = field(default_factory=list)
    """Losses not yet part of a point."""
    seconds: float = 0.0
    seconds_stepping: float = 0.0
    """Time in training steps."""
    seconds_waiting: float = 0.0
    """Time spent waiting for data."""
    seconds_saving: float = 0.0
    """Time spent writing `resume.pt`."""

    @property
    def seconds_busy(self) -> float:
        """Time in steps, and spent waiting and writing; without validations."""
        return self.seconds_stepping + self.seconds_waiting + self.seconds_saving

    def record(self, loss: float, spec: StreamSpec, step: int) -> None:
        """Note the loss of the last of `step` steps; add a point once enough are pending (about 1000 per training)."""
        self.pending.append(loss)
        if len(self.pending) >= max(1, spec.steps // _CURVE_POINTS) or step == spec.steps:
            self.steps.append(step)
            self.loss.append(sum(self.pending) / len(self.pending))
            self.learning_rate.append(recipe.learning_rate(spec, step - 1))
            self.pending.clear()


class TrainingState:
    """The state of a training after `step` steps: what `resume.pt` holds, and the objects that compute with it.

    Attributes:
        network, optimizer, scaler: torch's.
        model: the network as training calls it; its gradients are averaged over all processes.
        world, device, piece: all processes, this one's device, and the piece of a batch that it computes.
        step: steps done.
        best: the best validation so far; None before the first.
        curve: the record of the training.
    """

    def __init__(
        self,
        spec: StreamSpec,
        num_classes: int,
        device: torch.device,
        world: World | None = None,
        *,
        other_classes: int = 0,
        start: Path | None = None,
    ):
        """Takes the arguments of `networks.build`, the device, and the processes (None: only this one)."""
        torch.manual_seed(spec.seed)
        self.spec, self.device, self.world = spec, device, world or World()
        self.network = build(spec, num_classes, other_classes, start=start).to(
            device, memory_format=torch.channels_last
        )
        self.piece = Piece(self.world.size * spec.accumulate)
        draw_for_whole_batch(self.network, self.piece)
        self.model = data_parallel(self.network, self.world, device)
        self.optimizer = recipe.make_optimizer(spec, self.network)
        self.precision = recipe.precision(spec, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.step, self.best, self.curve = 0, None, Curve()

    def how(self) -> dict[str, str]:
        """What the settings leave open: the device, the precision, and the version of the ImageNet weights."""
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        else:  # the number of threads changes the order of sums
            threads = torch.get_num_threads()
            device = f"{self.device.type}, {threads} thread{'s' * (threads != 1)}"
        found = {"device": device, "precision": recipe.name_of(self.precision)}
        return found | ({"imagenet": name} if (name := imagenet.name_of(self.spec)) else {})

    def save(self, path: Path, identity: str) -> None:
        """Write `resume.pt`, with the training's `identity_of`."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "optimizer", "scaler")}
        about = {"format": _FORMAT, "format_version": _VERSION, "identity": identity}
        best = vars(self.best) if self.best else {}
        save_tensors(path, {**about, **parts, "step": self.step, "best": best, "curve": asdict(self.curve)})

    def resume(self, path: Path, identity: str) -> None:
        """Resume from `resume.pt` if it has the same identity; if it exists but cannot be used, print why.

        Raises:
            UserError: the processes would resume from different steps, or have different identities or code.
        """
        self._load(path, identity)
        starts = self.world.gather((self.step, identity, code_key()))  # each has read files and settings itself
        hosts = self.world.gather(socket.gethostname())
        if different := [rank for rank, start in enumerate(starts) if start != starts[0]]:
            (step, own, code), (first, expected, first_code) = starts[different[0]], starts[0]
            what = f"goes on from step {step}, process 0 from step {first}"
            if own != expected:
                what = "has other settings or data"
            if code != first_code:
                what = "has another version of this project"
            raise UserError(
                f"[{self.spec.stream}] process {different[0]}, on {hosts[different[0]]}, {what}; "
                "all machines need one folder of artifacts, the same settings and the same version of this project"
            )

    def _load(self, path: Path, identity: str) -> None:
        try:
            saved = _read(path)
        except FileNotFoundError:
            return
        except (UserError, DamagedFile) as error:
            say(f"{self.spec.stream}: training starts over; {path.name} becomes {path.name}{UNUSABLE}: {error}")
            if self.world.rank == 0:
                path.replace(f"{path}{UNUSABLE}")
            return
        if saved["identity"] != identity:
            say(f"{self.spec.stream}: training starts over: {path} belongs to other settings or inputs")
            return
        if _shapes(saved["network"]) != _shapes(self.network.state_dict()):
            say(f"{self.spec.stream}: training starts over: since {path} the code of {self.spec.network} has changed")
            return
        for name in ("network", "optimizer", "scaler"):
            if saved[name]:  # a scaler that was not in use has no state to load
                getattr(self, name).load_state_dict(saved[name])
        self.step, self.curve = saved["step"], Curve(**saved["curve"])
        self.best = Best(**saved["best"]) if saved["best"] else None
        say(f"{self.spec.stream}: training goes on from step {self.step} of {self.spec.steps}")


def _shapes(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


class Saving:
    """Saves `resume.pt` when called, but less often if that would take more than `_SHARE_OF_SAVING` of the time.

    Writing a gigabyte of weights and momentum takes seconds in which the GPU waits; in 20 s it may do the 500 steps
    between two saves.
    """

    def __init__(self, save: Callable[[], None], curve: Curve):
        self._save, self._curve, self._took, self._ended = save, curve, 0.0, time.monotonic()

    def __call__(self) -> None:
        """Save, unless the last save was too recent for the time that it took.

        A fault that may pass is only told: the former file is whole, and an interruption would cost some more steps.

        Raises:
            OSError: another one, as of a full disk.
        """
        began = time.monotonic()
        if self._took > max(_QUICK_S, _SHARE_OF_SAVING * (began - self._ended)):
            return
        try:
            self._save()
        except OSError as error:
            if error.errno not in MAY_PASS:
                raise
            say(f"resume.pt cannot be written ({os.strerror(error.errno)}); training goes on, and tries again later")
        self._ended = time.monotonic()
        self._took = self._ended - began
        self._curve.seconds_saving += self._took
