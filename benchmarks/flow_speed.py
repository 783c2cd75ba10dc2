"""The speed of flow methods beside OpenCV's TV-L1, in one process; in every round each method gets a turn."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import scenes
from common import spread, table

from pipeline import flow
from pipeline.flow.device import Download, pinned_array
from pipeline.specs import FlowSpec
from pipeline.system.progress import say

BASELINE = "OpenCV's DualTVL1"
CLIP_REACH_PX = 6.0


class Lane(NamedTuple):
    """A method on a device, perhaps with enlarged frames; `stays`: the flow is left on the device."""

    method: str
    device: str
    enlarge: int = 1
    stays: bool = False

    @property
    def spec(self) -> FlowSpec:
        """The method's settings; everything else is the default."""
        return FlowSpec(method=self.method, enlarge=self.enlarge)

    def flow(self, frames: np.ndarray) -> np.ndarray:
        """(2, H, W) flow, in pixels, of two RGB frames (2, H, W, 3) uint8."""
        return flow.estimate(frames, self.spec, device=self.device)[0]

    def __str__(self) -> str:
        enlarged = f" enlarged {self.enlarge} x" if self.enlarge > 1 else ""
        return f"{self.method}{enlarged}, {self.device}{', not fetched' if self.stays else ''}"


class _Runner(NamedTuple):
    compute: Callable[[int], Any]  # makes this many calls; returns when they are done
    pairs: int  # computed in one call
    peak_bytes: float | None  # peak memory of a call
    seconds: float  # of one call, after the call that compiles and warms up


def measure(lanes: list[Lane], sizes: tuple, threads: int, seconds: float, rounds: int) -> list[dict]:
    """Pairs per second of every lane and of OpenCV's TV-L1 at every (height, width), printed as a table.

    Args:
        lanes: methods and devices that are available.
        sizes: (height, width) each.
        threads: number of threads, already set; on the CPU a call computes this many pairs.
        seconds: about how long each lane computes at one size; a slow one gets fewer turns, but at least one.
        rounds: turns of each lane, with equal shares of the seconds.
    """
    lanes = [kind for lane in lanes for kind in ([lane] if lane.device == "cpu" else [lane, lane._replace(stays=True)])]
    found = []
    for size in sizes:
        say(f"flow, speed at {size[1]} x {size[0]}: {rounds} rounds of {len(lanes)} methods")
        runners = {str(lane): _runner(lane, size, threads) for lane in lanes}
        if (baseline := _baseline(size)) is not None:
            runners = {BASELINE: baseline, **runners}
        found += _rounds(runners, size, seconds, rounds)
    _show(found)
    return found


def _rounds(runners: dict[str, _Runner], size: tuple[int, int], seconds: float, rounds: int) -> list[dict]:
    """Run all runners in turn; a ratio compares two turns of the same round."""
    rates: dict[str, dict[int, float]] = {name: {} for name in runners}
    for turn in range(rounds):
        for name, runner in runners.items():
            spent = turn * max(seconds / rounds, runner.seconds)
            # the baseline runs in every round, since the others are compared with it
            if turn and spent + runner.seconds > seconds and name != BASELINE:
                continue
            calls = max(1, round(seconds / rounds / runner.seconds))
            begun = time.perf_counter()
            runner.compute(calls)
            rates[name][turn] = calls * runner.pairs / (time.perf_counter() - begun)
    base = rates.get(BASELINE, {})
    return [
        {
            "lane": name,
            "size": size,
            "pairs_per_second": list(taken.values()),
            "ratio": [rate / base[turn] for turn, rate in taken.items()] if base else [],
            "pairs_in_a_call": runners[name].pairs,
            "peak_bytes": runners[name].peak_bytes,
        }
        for name, taken in rates.items()
    ]


def has_opencv_tvl1() -> bool:
    """Whether this OpenCV has the contrib modules."""
    return hasattr(getattr(cv2, "optflow", None), "createOptFlow_DualTVL1")


def opencv_tvl1(frames: np.ndarray) -> np.ndarray:
    """(2, H, W) flow of two gray frames by OpenCV's TV-L1 with its defaults, called as usual.

    Each call makes a new estimator, which costs next to nothing: an old one keeps its memory, which would then not be
    counted.
    """
    return cv2.optflow.createOptFlow_DualTVL1().calc(*frames, None).transpose(2, 0, 1)


def _baseline(size: tuple[int, int]) -> _Runner | None:
    frames = flow.to_gray(_clip(2, size))

    def compute(calls: int) -> None:
        for _ in range(calls):
            opencv_tvl1(frames)

    return _prepared(compute, 1, "cpu") if has_opencv_tvl1() else None


def _runner(lane: Lane, size: tuple[int, int], threads: int) -> _Runner:
    """A lane, warmed up. On CUDA a call also sends the frames, as many as the Flow stage sends at once."""
    tensors_on = flow.tensor_device(lane.method, lane.device)  # "cpu" for OpenCV, wherever it computes
    pairs = threads if lane.device == "cpu" else flow.pairs_of(size, lane.spec, device=tensors_on)
    clip = _clip(pairs + 1, size)
    clip = clip if flow.takes_color(lane.method) else flow.to_gray(clip)
    frames = pinned_array(clip.shape, device=tensors_on)
    frames[:] = clip

    def compute(calls: int) -> None:
        for _ in range(calls):
            found = flow.estimate_on_device(frames, lane.spec, device=lane.device)
            if not lane.stays:
                Download(found).wait()
        _wait_for(tensors_on)

    return _prepared(compute, pairs, tensors_on)


def _clip(count: int, size: tuple[int, int]) -> np.ndarray:
    """(count, H, W, 3) uint8 RGB: the two frames of a layered scene, alternating."""
    return scenes.layered(0, reach_px=CLIP_REACH_PX, size=size).frames[np.arange(count) % 2]


def _prepared(compute: Callable[[int], Any], pairs: int, device: str) -> _Runner:
    compute(1)  # compiles, or reads what was compiled before
    with _Peak(device) as peak:
        begun = time.perf_counter()
        compute(1)
        seconds = time.perf_counter() - begun
    return _Runner(compute, pairs, peak.bytes, seconds)


def _wait_for(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


class _Peak:
    """Peak memory allocated inside the block, in bytes beyond what was in use before; None if it cannot be counted.

    On CUDA torch counts, so OpenCV's memory is not included. On the CPU Linux counts the pages of this process.
    """

    def __init__(self, device: str):
        self.device, self.bytes, self.before = device, None, 0

    def __enter__(self) -> _Peak:
        if self.device == "cpu":
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # free pages that the process keeps would hide allocations
                Path("/proc/self/clear_refs").write_text("5")  # resets the peak
                self.before = _status_bytes("VmRSS")
        else:
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cpu":
            self.bytes = _status_bytes("VmHWM") - self.before if self.before else None
        else:
            import torch

            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before or None


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _show(found: list[dict]) -> None:
    rows = []
    for row in found:
        rate, ratio, peak = row["pairs_per_second"], row["ratio"], row["peak_bytes"]
        rows.append(
            [
                f"{row['size'][1]} x {row['size'][0]}",
                row["lane"],
                _three_digits(rate),
                _three_digits(ratio) if ratio else "-",
                str(row["pairs_in_a_call"]),
                f"{peak / 2**20:.0f}" if peak else "-",
            ]
        )
    header = ["size", "method, device", "pairs/s", f"over {BASELINE}", "pairs a call", "memory of a call, MiB"]
    print(f"\nspeed, medians (lowest to highest) of rounds\n\n{table(header, rows)}")


def _three_digits(values: list[float]) -> str:
    middle = statistics.median(values)
    return spread(values, 2 if middle < 10 else 1 if middle < 100 else 0)
