"""How often the 95 % interval of an accuracy covers the truth, in simulated tests with few groups.

    python benchmarks/intervals.py                # 1000 tests of each kind, with the plain BCa bootstrap beside ours

Each clip is right with a probability whose logit is that of its class plus normal deviates of its group, and of its
group in this class. The truth is the expected accuracy over new groups for the same classes. People have clips of every
class, as in Weizmann and KTH; groups of one class only, as in UCF-101.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from common import show

from pipeline.report import uncertainty
from pipeline.scores import Scores

TYPICAL, CLASS_SPREAD, GROUP_SPREAD, SPREAD_IN_CLASS = (0.5, 2.0), 1.0, 0.8, 0.8  # logits


@dataclass(frozen=True)
class Design:
    """`people` who have `clips` of each of `classes`; if 0, classes with groups of their own, of `sizes` clips."""

    classes: int
    people: int = 0
    clips: int = 0
    sizes: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.people:
            return f"{self.people} people, {self.classes} classes, {self.clips} clip{'s' * (self.clips > 1)} each"
        return f"{self.classes} classes, groups of {', '.join(map(str, self.sizes))} in each"


DESIGNS = (
    Design(people=5, classes=3, clips=20),
    Design(people=6, classes=10, clips=4),
    Design(people=9, classes=6, clips=16),
    Design(people=9, classes=10, clips=1),
    Design(people=15, classes=6, clips=8),
    Design(classes=6, sizes=(10, 10)),
    Design(classes=20, sizes=(5, 5)),
    Design(classes=50, sizes=(5, 5, 5)),
    Design(classes=6, sizes=(30, 5)),
    Design(classes=10, sizes=(40, 5, 5)),
    Design(classes=12, sizes=(14, 6, 4, 3, 2, 1)),
    Design(classes=20, sizes=(12, 6, 3)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = []
    for design in DESIGNS:
        for typical in TYPICAL:
            plain, ours, right = measured(design, typical, arguments.tests, arguments.seed)
            rows.append((f"{design}; {right:.0%} right", f"{plain:.1%} plain, {ours:.1%} ours"))
    show("intervals", rows, {"tests": arguments.tests, "seed": arguments.seed, "rows": rows})


def measured(design: Design, typical: float, tests: int, seed: int) -> tuple[float, float, float]:
    """Shares of tests whose truth lies in the plain BCa interval, and in ours, and the mean of the truths."""
    of_all = [(low <= truth <= high, truth) for (low, high), truth in intervals(design, typical, tests, seed)]
    ours, truths = zip(*of_all, strict=True)
    widened, uncertainty.widened = uncertainty.widened, lambda interval, *_: interval
    try:
        plain = [low <= truth <= high for (low, high), truth in intervals(design, typical, tests, seed)]
    finally:
        uncertainty.widened = widened
    return float(np.mean(plain)), float(np.mean(ours)), float(np.mean(truths))


def intervals(design: Design, typical: float, tests: int, seed: int) -> Iterator[tuple[tuple[float, float], float]]:
    """Interval and truth of each simulated test."""
    rng = np.random.default_rng(seed)
    for _ in range(tests):
        table, truth = simulated(design, typical, rng)
        yield uncertainty.Bootstrap({"a": table}, table.groups, resamples=2000).top1("a").interval, truth


def simulated(design: Design, typical: float, rng: np.random.Generator) -> tuple[Scores, float]:
    """A score table of one test, and its truth."""
    k, clips = design.classes, design.clips
    of_class = typical + CLASS_SPREAD * rng.standard_normal(k)
    if design.people:
        labels = np.tile(np.repeat(np.arange(k), clips), design.people)
        group = np.repeat(np.arange(design.people), k * clips)
    else:
        labels = np.repeat(np.arange(k), sum(design.sizes))
        group = np.repeat(np.arange(k * len(design.sizes)), design.sizes * k)
    shift = GROUP_SPREAD * rng.standard_normal(group.max() + 1)
    shift_in_class = SPREAD_IN_CLASS * rng.standard_normal((group.max() + 1, k))
    logit = of_class[labels] + shift[group] + shift_in_class[group, labels]
    right = rng.random(len(labels)) < 1 / (1 + np.exp(-logit))
    answers = np.eye(k, dtype=np.float32)[np.where(right, labels, (labels + 1) % k)]
    names = [f"g{n}" for n in group]
    table = Scores([f"v{n}" for n in range(len(labels))], answers, labels, [f"c{n}" for n in range(k)], groups=names)
    return table, expected(of_class)


def expected(of_class: np.ndarray) -> float:
    """Mean accuracy over classes for a random group: the logistic function's mean over a normal deviate."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    logits = of_class[:, None] + np.hypot(GROUP_SPREAD, SPREAD_IN_CLASS) * nodes
    return float(((1 / (1 + np.exp(-logits))) @ weights / weights.sum()).mean())


if __name__ == "__main__":
    main()
