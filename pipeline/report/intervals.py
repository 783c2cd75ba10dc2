"""Formulas of intervals: BCa from resamples, its ends moved out where units are few, and Wilson's."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

LEVEL = 0.95
Interval = tuple[float, float]
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)  # 1.96


def bca(estimate: float, resampled: np.ndarray, without_each: np.ndarray) -> Interval:
    """95 % interval by the bias-corrected and accelerated bootstrap.

    Args:
        estimate: the statistic of the sample.
        resampled: (B,) statistic of each resample.
        without_each: (n,) statistic of the sample without each of its n units (the jackknife).

    Source: B. Efron, JASA 82 (1987), equations 2.3 (the interval) and 6.6 (the acceleration).
    """
    normal, resampled = NormalDist(), np.round(resampled, 12)
    below = np.mean(resampled < round(estimate, 12)) + np.mean(resampled == round(estimate, 12)) / 2
    bias = normal.inv_cdf(float(np.clip(below, 1 / len(resampled), 1 - 1 / len(resampled))))
    spread = without_each.mean() - without_each
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)

    def moved(z: float) -> float:
        return normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))

    low, high = np.quantile(resampled, [moved(-Z), moved(Z)])
    return float(low), float(high)


def widened(interval: Interval, estimate: float, by: float, lowest: float) -> Interval:
    """The ends of an interval moved away from the estimate, `by` times as far (never nearer), within lowest..1."""
    low, high = (float(estimate + max(1.0, by) * (end - estimate)) for end in interval)
    return max(float(lowest), low), min(1.0, high)


def clustered(sums: np.ndarray, clips: np.ndarray, variances: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Standard error of a mean of class means whose clips come in units, and its degrees of freedom.

    It takes the clips of a unit and class as alike, and units as independent, and then has no bias if every class is
    divided among units in the same way. The bootstrap has: of n units that have the same clips, resamples vary by
    (n - 1) / n of what they should. A unit that has all clips of a class says nothing of how that class varies, and
    does not count.

    Args:
        sums: (n, K) sum over the clips of each unit and class of what is averaged.
        clips: (n, K) how many clips these are.
        variances: (K,) variance of single clips within a class; only the ratios between classes matter.
        weights: (K,) weight of each class in the mean; of any sum.

    Returns:
        Standard error and degrees of freedom (n - 1 if every unit has the same clips of every class); (0, 0) if nothing
        varies.

    Source: R. M. Bell and D. F. McCaffrey, Survey Methodology 28 (2002): each unit's part is divided by the root of its
    expected square (there by a matrix root, with independent clips: CR2), and Satterthwaite's degrees of freedom.
    """
    total = np.maximum(clips.sum(axis=0), 1)
    part = clips / total
    squares = (part**2).sum(axis=0)
    # what is expected of the square of a unit's mean minus the class's, as a share of the variance between units
    expected = np.where(clips < total, 1 - 2 * part + squares, np.inf)
    share = weights / weights.sum() / total / np.sqrt(expected)  # (n, K) what a clip adds to the mean, by unit
    deviations = (share * (sums - sums.sum(axis=0) / total * clips)).sum(axis=1)
    # their covariance: diag(own) - a b^T - b a^T + a diag(squares) a^T; its trace, and the sum of its squares
    a = share * clips * np.sqrt(variances)
    b, own, same = a * part, (a**2).sum(axis=1), np.eye(len(total))
    rest = (a**2 * (squares - 2 * part)).sum(axis=1)
    trace = (own + rest).sum()
    if trace <= 1e-12 * own.sum():
        return 0.0, 0.0
    both = np.hstack([a, b])
    inner = np.block([[np.diag(squares), -same], [-same, np.zeros_like(same)]]) @ (both.T @ both)
    of_squares = (own**2).sum() + 2 * (own * rest).sum() + (inner * inner.T).sum()
    return float(np.sqrt((deviations**2).sum())), float(trace**2 / of_squares)


def student(freedom: float) -> float:
    """How many standard errors an interval reaches to either side, by Student's t: 1.96 for many degrees of freedom."""
    from scipy.special import stdtrit  # takes a fifth of a second to import, and only reports need it

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def wilson(share: float, trials: int) -> Interval:
    """95 % score interval of a share; it keeps its level near 0 and 1, where share +- 2 sigma does not.

    Source: E. B. Wilson, JASA 22 (1927).
    """
    middle = share + Z * Z / (2 * trials)
    half = Z * np.sqrt(share * (1 - share) / trials + Z * Z / (4 * trials * trials))
    scale = 1 + Z * Z / trials
    low, high = float((middle - half) / scale), float((middle + half) / scale)
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding may leave out a share of 0 or 1
