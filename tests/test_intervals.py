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


def by_matrices(values, clips, variances, weights):
    """The square of the standard error, and the degrees of freedom, from the unit's means (n, K), in whole matrices."""
    n, classes = clips.shape
    linear = np.zeros((n, n, classes))  # the deviation of each unit, from the mean of each unit and class
    for k in range(classes):
        part = clips[:, k] / clips[:, k].sum()
        minus_mean = np.eye(n) - np.outer(np.ones(n), part)
        expected = np.diag(minus_mean @ minus_mean.T)
        for g in range(n):
            if 0 < part[g] < 1:
                linear[g, :, k] = weights[k] / weights.sum() * part[g] / math.sqrt(expected[g]) * minus_mean[g]
    covariance = np.einsum("ghk,ihk,k->gi", linear, linear, variances)
    deviations = np.einsum("ghk,hk->g", linear, values)
    return (deviations**2).sum(), np.trace(covariance) ** 2 / (covariance**2).sum()


@pytest.mark.parametrize("seed", range(6))
def test_the_clustered_standard_error_by_matrices(seed):
    rng = np.random.default_rng(seed)
    clips = rng.integers(0, 6, size=(7, 4)).astype(float)
    clips[0, :3] += 1
    clips[:, 3] = [0, 0, 9, 0, 0, 0, 0]  # a class that one unit has all of
    values, variances, weights = rng.normal(size=(7, 4)), rng.random(4) + 0.1, rng.random(4) + 0.1
    error, freedom = clustered(values * clips, clips, variances, weights)
    square, expected = by_matrices(values, clips, variances, weights)
    assert (error**2, freedom) == (pytest.approx(square, rel=1e-9), pytest.approx(expected, rel=1e-9))


@pytest.mark.parametrize("sizes", [(20, 20), (30, 5), (12, 6, 3), (14, 6, 4, 3, 2, 1)])
def test_the_standard_error_has_no_bias_where_clips_of_a_group_are_alike(sizes):
    """Its square is a quadratic form in the groups' means; of independent ones its mean is the sum over unit vectors."""
    clips = np.array(sizes, float)[:, None]
    units = np.eye(len(sizes))[:, :, None]
    squares = [clustered(unit * clips, clips, np.ones(1), np.ones(1))[0] ** 2 for unit in units]
    truth = (clips**2).sum() / clips.sum() ** 2
    assert np.sum(squares) == pytest.approx(truth, rel=1e-12)


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
