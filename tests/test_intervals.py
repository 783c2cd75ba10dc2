"""The formulas of intervals, against textbooks and against matrices."""

import math

import numpy as np
import pytest

from pipeline.report.intervals import bca, clustered, student, widened, wilson


def test_bca_of_a_symmetric_sample_is_the_percentile_interval():
    resampled = np.linspace(-1, 1, 2001)
    assert bca(0.0, resampled, np.array([-1.0, 1.0])) == pytest.approx((-0.95, 0.95), abs=1e-3)


def test_bca_of_an_estimate_beyond_all_resamples_is_at_their_end():
    resampled = np.linspace(0, 1, 1001)
    assert bca(-1.0, resampled, np.array([-1.0, 1.0])) == pytest.approx((0, 0), abs=1e-3)
    assert bca(2.0, resampled, np.array([-1.0, 1.0])) == pytest.approx((1, 1), abs=1e-3)


def test_wilson_by_the_textbook():
    # worked example of many textbooks: 8 of 10 gives 0.490 to 0.943
    assert wilson(0.8, 10) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_wilson_holds_the_share_itself(share):
    for trials in range(1, 200):
        low, high = wilson(share, trials)
        assert 0 <= low <= share <= high <= 1


def by_matrices(values, labels, groups, weights):
    """Variance and degrees of freedom of a mean of class means: CR2 of a regression on class indicators, in matrices."""
    x = (labels[:, None] == np.unique(labels)).astype(float)
    inverse = np.linalg.inv(x.T @ x)
    hat, mean = x @ inverse @ x.T, inverse @ weights / weights.sum()
    rest = values - hat @ values
    variance, of_noise = 0.0, []
    for name in np.unique(groups):
        mine = groups == name
        size, directions = np.linalg.eigh(np.eye(mine.sum()) - hat[np.ix_(mine, mine)])
        root = (directions * [1 / math.sqrt(s) if s > 1e-9 else 0 for s in size]) @ directions.T
        adjusted = root @ x[mine] @ mean
        variance += (adjusted @ rest[mine]) ** 2
        of_noise.append(adjusted @ (np.eye(len(values)) - hat)[mine])
    noise = np.array([np.var(values[labels == k]) for k in labels])
    covariance = (np.array(of_noise) * noise) @ np.array(of_noise).T
    return variance, np.trace(covariance) ** 2 / (covariance**2).sum()


@pytest.mark.parametrize("seed", range(6))
def test_the_clustered_standard_error_by_matrices(seed):
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(4, size=60), rng.integers(7, size=60).astype(str)
    groups[labels == 3] = "alone"  # a class that one group has all of, and nothing else does
    values, weights = rng.integers(-1, 2, size=60).astype(float), rng.random(4) + 0.1
    names = np.unique(groups)
    cell = [[(groups == name) & (labels == k) for k in range(4)] for name in names]
    sums, clips = (np.array([[v[c].sum() for c in row] for row in cell]) for v in (values, np.ones(60)))
    found = clustered(sums, clips, np.array([np.var(values[labels == k]) for k in range(4)]), weights)
    variance, freedom = by_matrices(values, labels, groups, weights)
    assert found == (pytest.approx(math.sqrt(variance), rel=1e-9), pytest.approx(freedom, rel=1e-9))


def test_groups_that_have_the_same_clips_leave_one_degree_of_freedom_less_than_they_are():
    right = np.random.default_rng(0).integers(5, size=(9, 6)).astype(float)
    error, freedom = clustered(right, np.full((9, 6), 4.0), np.ones(6), np.full(6, 24.0))
    assert freedom == pytest.approx(8) and error == pytest.approx(right.mean(axis=1).std(ddof=1) / 4 / 3)
    assert clustered(right[:1], np.full((1, 6), 4.0), np.ones(6), np.ones(6)) == (0, 0)


def test_students_t_by_the_textbook_and_widened_ends():
    assert student(4) == pytest.approx(2.776, abs=1e-3) and student(8) == pytest.approx(2.306, abs=1e-3)
    assert student(1e6) == pytest.approx(1.96, abs=1e-3)
    assert widened((0.5, 0.9), 0.8, 1.5, 0) == pytest.approx((0.35, 0.95))
    assert widened((0.5, 0.9), 0.8, 3, 0) == (0, 1) and widened((0.5, 0.9), 0.8, 0.3, 0) == pytest.approx((0.5, 0.9))
