"""Score tables, of random clips or of outcomes that are written down."""

import numpy as np

from pipeline.scores import Scores

CLASSES = ("one", "two", "three")


def noisy(labels, strength: float, seed: int, classes=CLASSES, prefix: str = "clip") -> Scores:
    """Softmax scores that lean to the label by `strength`."""
    labels = np.asarray(labels, int)
    logits = np.random.default_rng(seed).normal(size=(len(labels), len(classes)))
    logits[np.arange(len(labels)), labels] += strength
    powers = np.exp(logits)
    ids = [f"{prefix}{i:03d}" for i in range(len(labels))]
    return Scores(ids, powers / powers.sum(axis=1, keepdims=True), labels, classes)


def shuffled(scores: Scores, seed: int = 0) -> Scores:
    return scores.take(np.random.default_rng(seed).permutation(len(scores)))


def appearance_and_motion(seed: int, n: int = 48, prefix: str = "clip") -> tuple[Scores, Scores]:
    """Four classes texture x motion: one table knows only the texture, the other only the motion."""
    labels, rng = np.arange(n) % 4, np.random.default_rng(seed)
    ids = [f"{prefix}{i}" for i in range(n)]
    tables = []
    for of_class in (np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])):
        logits = rng.normal(scale=0.3, size=(n, 4)) + 3 * (of_class[None] == of_class[labels][:, None])
        powers = np.exp(logits)
        tables.append(Scores(ids, powers / powers.sum(1, keepdims=True), labels, ["tl", "tr", "cl", "cr"]))
    return tables[0], tables[1]


def table(right: str, ids, groups=None, classes=("x", "y")) -> Scores:
    """'1' right, '0' wrong, '-' failed; labels alternate."""
    labels = np.arange(len(right)) % 2
    rows = [
        [np.nan] * 2 if r == "-" else np.eye(2)[label if r == "1" else 1 - label]
        for r, label in zip(right, labels, strict=True)
    ]
    return Scores(ids, rows, labels, classes, groups=groups)
