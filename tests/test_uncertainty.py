"""Intervals and tests against simulations whose truth is known, and against formulas written out."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.report import uncertainty
from pipeline.report.intervals import clustered, wilson
from pipeline.report.uncertainty import Bootstrap, better, discordant, mcnemar
from pipeline.scores import Scores

CLASSES = ("x", "y", "z")


def answered(right, labels=None, groups=None, classes=CLASSES) -> Scores:
    """A table whose clips are right or wrong as said; None is a failed clip."""
    labels = np.zeros(len(right), int) if labels is None else np.asarray(labels)
    rows = np.full((len(right), len(classes)), 0.1 / (len(classes) - 1))
    for row, (good, label) in enumerate(zip(right, labels, strict=True)):
        rows[row, label if good else (label + 1) % len(classes)] = 0.9
        if good is None:
            rows[row] = np.nan
    return Scores([f"v{i}" for i in range(len(right))], rows, labels, classes, groups=groups)


def of_groups(rng, groups: int, clips: int, accuracy: float, alike: float) -> tuple[np.ndarray, list[str]]:
    """Right or wrong of groups x clips; each group has its own accuracy (beta), whose correlation of two clips is `alike`."""
    own = rng.beta(accuracy * (1 / alike - 1), (1 - accuracy) * (1 / alike - 1), size=groups)
    return rng.random((groups, clips)) < own[:, None], [f"g{i}" for i in np.repeat(np.arange(groups), clips)]


def covered(accuracy: float, groups: int, clips: int, *, known: bool, times: int = 300) -> float:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(times):
        right, names = of_groups(rng, groups, clips, accuracy, 0.3)
        table = answered(right.ravel(), groups=names if known else None)
        low, high = Bootstrap({"a": table}, table.groups, resamples=1000).top1("a").interval
        hits += low <= accuracy <= high
    return hits / times


def test_intervals_over_groups_hold_their_level():
    assert 0.91 <= covered(0.85, 30, 5, known=True) <= 0.98


@pytest.mark.parametrize(("people", "classes", "clips"), [(5, 3, 20), (9, 6, 4), (15, 6, 2)])
def test_intervals_over_few_people_who_did_everything_hold_their_level(people, classes, clips):
    """Each person has an accuracy of their own in all classes. Resamples alone would cover 83 to 91 %."""
    rng, hits, labels = np.random.default_rng(0), 0, np.tile(np.repeat(np.arange(classes), clips), people)
    for _ in range(400):
        right, names = of_groups(rng, people, classes * clips, 0.75, 0.1)
        table = answered(right.ravel(), labels, names, [f"c{k}" for k in range(classes)])
        low, high = Bootstrap({"a": table}, table.groups, resamples=1000).top1("a").interval
        hits += low <= 0.75 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_intervals_over_classes_of_two_groups_hold_their_level():
    rng, hits, labels = np.random.default_rng(0), 0, np.repeat(np.arange(6), 20)
    for _ in range(400):
        right, names = of_groups(rng, 12, 10, 0.7, 0.15)
        table = answered(right.ravel(), labels, names, [f"c{k}" for k in range(6)])
        low, high = Bootstrap({"a": table}, table.groups, resamples=1000).top1("a").interval
        hits += low <= 0.7 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_the_interval_of_a_difference_over_few_people_holds_its_level():
    """b answers as a does, but each person has a share of clips, half of them on average, that it gets right anyway."""
    rng, hits, labels = np.random.default_rng(0), 0, np.tile(np.repeat(np.arange(3), 10), 8)
    for _ in range(400):
        right, names = of_groups(rng, 8, 30, 0.6, 0.1)
        more = right | of_groups(rng, 8, 30, 0.5, 0.1)[0]
        a, b = (answered(which.ravel(), labels, names) for which in (right, more))
        low, high = Bootstrap({"a": a, "b": b}, a.groups, resamples=1000).difference("b", "a")
        hits += low <= 0.4 * 0.5 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_intervals_over_clips_that_are_not_independent_do_not():
    assert covered(0.85, 30, 5, known=False) < 0.88


def classes_of_one_group(rng, count: int = 20, clips: int = 5) -> Scores:
    """A table of `count` classes whose only group has an accuracy of its own, 0.7 on average."""
    labels = np.repeat(np.arange(count), clips)
    right = rng.random(len(labels)) < np.repeat(rng.beta(1.4, 0.6, count), clips)
    rows = np.eye(count, dtype=np.float32)[np.where(right, labels, (labels + 1) % count)]
    names = [f"c{k}" for k in range(count)]
    return Scores([f"v{i}" for i in range(len(labels))], rows, labels, names, groups=[f"g{k}" for k in labels])


def test_intervals_over_classes_of_one_group_each_hold_their_level():
    """Such a class has the same accuracy in all resamples that have it at all."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        table = classes_of_one_group(rng)
        low, high = Bootstrap({"a": table}, table.groups, resamples=1000).top1("a").interval
        hits += low <= 0.7 <= high
    assert hits >= 91


def test_a_difference_over_classes_of_one_group_each_has_no_interval():
    rng = np.random.default_rng(0)
    a, b = classes_of_one_group(rng), classes_of_one_group(rng)
    found = Bootstrap({"a": a, "b": b}, a.groups)
    assert found.difference("a", "b") is None and found.top1("a").method == uncertainty.WILSON


def test_the_interval_of_one_sample_by_plain_loops():
    """The same resamples summed one by one, BCa by its formulas, and its ends moved out."""
    from scipy.stats import norm, t

    rng = np.random.default_rng(3)
    right, names = of_groups(rng, 8, 4, 0.7, 0.2)
    labels = np.arange(32) % 3
    table = answered(right.ravel(), labels, names)
    found = Bootstrap({"a": table}, table.groups, resamples=400, seed=5)
    drawing = np.random.default_rng(5)
    drawn = np.concatenate([drawing.integers(8, size=(n, 8)) for n in (250, 150)])

    def by_class(units, weights):
        rows = np.concatenate([np.arange(4 * u, 4 * u + 4) for u in units])
        there = [k for k in range(3) if (labels[rows] == k).any()]
        return np.average([right.ravel()[rows][labels[rows] == k].mean() for k in there], weights=weights[there])

    def share(units):
        return by_class(units, np.bincount(labels))

    def mean_of_classes(units):
        return by_class(units, np.ones(3))

    cells = [[right.ravel()[4 * u : 4 * u + 4][labels[4 * u : 4 * u + 4] == k] for k in range(3)] for u in range(8)]
    right_of, clips_of = (np.array([[count(cell) for cell in row] for row in cells]) for count in (np.sum, len))
    spread = np.array([right.ravel()[labels == k].var() for k in range(3)])
    of_both = (
        (share, np.bincount(labels), found.top1("a").interval),
        (mean_of_classes, np.ones(3), found.mean_class("a").interval),
    )
    for statistic, of_class, interval in of_both:
        estimate, resampled = statistic(range(8)), np.array([statistic(units) for units in drawn])
        z0 = norm.ppf(np.mean(resampled < estimate - 1e-9) + np.mean(abs(resampled - estimate) < 1e-9) / 2)
        left = np.array([statistic([u for u in range(8) if u != out]) for out in range(8)])
        d = left.mean() - left
        a = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
        ends = [norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in norm.ppf([0.025, 0.975])]
        error, freedom = clustered(right_of, clips_of, spread, of_class)  # tested in test_intervals.py
        factor = t.ppf(0.975, freedom) * error / (norm.ppf(0.975) * resampled.std())
        expected = [estimate + factor * (end - estimate) for end in np.quantile(resampled, ends)]
        assert factor > 1.2 and interval == pytest.approx(tuple(expected), abs=1e-9)


def test_groups_of_one_class_each_do_not_widen_the_interval_by_the_spread_of_the_classes():
    """Three classes of 95, 80 and 50 %, ten groups each: the truth is their mean, whichever groups are drawn."""
    rng, hits, widths, deviations = np.random.default_rng(0), 0, [], []
    labels, truth = np.repeat(np.arange(3), 40), (0.95 + 0.8 + 0.5) / 3
    for _ in range(200):
        right = np.concatenate([of_groups(rng, 10, 4, accuracy, 0.2)[0].ravel() for accuracy in (0.95, 0.8, 0.5)])
        table = answered(right, labels, [f"g{i // 4}" for i in range(120)])
        low, high = Bootstrap({"a": table}, table.groups, resamples=1000).top1("a").interval
        hits += low <= truth <= high
        widths.append(high - low)
        deviations.append(table.top1() - truth)
    assert 0.91 <= hits / 200 <= 0.98
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(deviations), rel=0.12)


def test_tables_share_their_resamples():
    rng = np.random.default_rng(0)
    right, names = of_groups(rng, 20, 4, 0.6, 0.3)
    a = answered(right.ravel(), groups=names)
    b = answered((right | (rng.random(right.shape) < 0.3)).ravel(), groups=names)
    found = Bootstrap({"a": a, "b": b}, a.groups)
    low, high = found.difference("b", "a")
    assert 0 < low < b.top1() - a.top1() < high
    assert found.difference("a", "b") == pytest.approx((-high, -low), abs=5e-3)
    apart = [found.top1(name).interval for name in "ab"]
    assert high - low < (apart[0][1] - apart[0][0]) + (apart[1][1] - apart[1][0])  # paired: not as if unrelated
    assert found.difference("a", "a") is None
    assert (
        Bootstrap({"a": a}, a.groups).top1("a").interval == apart[0] == Bootstrap({"a": a}, a.groups).top1("a").interval
    )


def test_a_clip_that_is_counted_three_times_is_no_three_clips():
    right, names = of_groups(np.random.default_rng(1), 30, 3, 0.8, 0.3)
    once, thrice = answered(right.ravel(), groups=names), answered(np.tile(right.ravel(), 3), groups=names * 3)
    assert (
        Bootstrap({"a": thrice}, thrice.groups).top1("a").interval
        == Bootstrap({"a": once}, once.groups).top1("a").interval
    )


@pytest.mark.parametrize(("right", "expected"), [(True, (0.7225, 1.0)), (False, (0.0, 0.2775))])
def test_where_all_groups_agree_wilson_takes_groups_as_trials(right, expected):
    table = answered([right] * 40, np.arange(40) % 3, [f"g{i // 4}" for i in range(40)])
    found = Bootstrap({"a": table}, table.groups)
    # ten trials, all successes: 1 / (1 + 1.96^2 / 10) = 0.7225
    assert found.top1("a").interval == pytest.approx(expected, abs=1e-4)
    assert found.mean_class("a").interval == pytest.approx(expected, abs=1e-4)
    assert found.top1("a").method == found.mean_class("a").method == "Wilson"


def test_few_wrong_clips_are_no_surer_than_none():
    """Wilson's, until five groups have a wrong clip; 19 of 20 never looks better than 20 of 20."""
    lows = []
    for wrong in range(5):
        table = answered([i >= wrong for i in range(20)], np.arange(20) % 3, [f"g{i}" for i in range(20)])
        interval = Bootstrap({"a": table}, table.groups).top1("a").interval
        assert interval == pytest.approx(wilson(1 - wrong / 20, 20))
        lows.append(interval[0])
    assert lows == sorted(lows, reverse=True)
    table = answered([i >= 5 for i in range(20)], groups=[f"g{i}" for i in range(20)])
    resampled = Bootstrap({"a": table}, table.groups)
    assert resampled.top1("a").interval != pytest.approx(wilson(0.75, 20))
    assert resampled.top1("a").method == resampled.mean_class("a").method == resampled.as_dict()["method"]


def test_a_difference_needs_five_groups_that_show_it():
    groups = [f"g{i}" for i in range(20)]
    a, four, five = (answered([i >= wrong for i in range(20)], groups=groups) for wrong in (0, 4, 5))
    assert Bootstrap({"a": a, "b": four}, a.groups).difference("a", "b") is None
    low, high = Bootstrap({"a": a, "b": five}, a.groups).difference("a", "b")
    assert 0 < low < 0.25 < high


def test_groups_of_one_clip_each_are_called_clips():
    """Clips of a folder without a group pattern: nobody knows which belong together."""
    table = answered([True, False] * 20, groups=[f"g{i}" for i in range(40)])
    found = Bootstrap({"a": table}, table.groups)
    assert found.as_dict()["unit"] == "clips" and found.units == 40
    assert found.note.startswith("every clip is a group of its own, so clips are resampled as if each were independent")
    assert found.top1("a").interval == Bootstrap({"a": table}, None).top1("a").interval
    twice = answered([True, False] * 20, groups=[f"g{i % 20}" for i in range(40)])  # each clip with two seeds
    found = Bootstrap({"a": twice}, twice.groups, clips=tuple(f"c{i % 20}" for i in range(40)))
    assert (found.as_dict()["unit"], found.units) == ("clips", 20)


def test_few_groups_are_not_resampled():
    table = answered([True, False] * 20, groups=[f"g{i % 4}" for i in range(40)])
    found = Bootstrap({"a": table}, table.groups)
    assert (found.by_group, found.units) == (False, 40) and found.note.startswith(
        "there are too few groups to resample, 4 of at least 5"
    )
    assert "groups are unknown" in Bootstrap({"a": table}, None).note
    said = Bootstrap({"a": table}, tuple(f"g{i % 5}" for i in range(40))).as_dict()
    assert (said["unit"], said["units"], said["note"], said["resamples"]) == ("groups", 5, "", uncertainty.RESAMPLES)
    assert uncertainty.RESAMPLES >= 2000


def test_one_clip_says_next_to_nothing():
    table = answered([True])
    low, high = Bootstrap({"a": table}, None).top1("a").interval
    assert low == pytest.approx(0.2065, abs=1e-3) and high == 1


def test_a_class_of_one_clip_counts_as_much_as_any_in_the_mean_of_the_classes():
    table = answered([True] * 20 + [False], [0] * 20 + [1])
    found = Bootstrap({"a": table}, None)
    assert table.mean_class_accuracy() == 0.5
    assert found.mean_class("a").interval == wilson(0.5, 21) and found.top1("a").interval == wilson(20 / 21, 21)


def test_clips_whose_class_nobody_knows_are_in_no_interval():
    right, groups = [True, False] * 8, [f"g{i // 2}" for i in range(16)]
    known = answered(right, groups=groups)
    more = answered([*right, *[False] * 4], labels=[0] * 16 + [-1] * 4, groups=[*groups, *[f"g{i}" for i in range(4)]])
    assert more.top1() == known.top1() == 0.5
    assert (
        Bootstrap({"a": more}, more.groups).top1("a").interval
        == Bootstrap({"a": known}, known.groups).top1("a").interval
    )
    assert (
        Bootstrap({"a": more}, more.groups).mean_class("a").interval
        == Bootstrap({"a": known}, known.groups).mean_class("a").interval
    )


def test_a_failed_clip_is_wrong():
    a, b = answered([True, None, True, None]), answered([True, True, None, None])
    assert discordant(a, b) == (1, 1)
    assert better(("a", "b"), {"a": a, "b": b}) == "a"  # the first of equals
    assert better(("b", "a"), {"a": a, "b": answered([False] * 4)}) == "a"


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 6), (5, 5), (3, 9), (12, 40), (400, 460)])
def test_mcnemar_is_the_exact_binomial_test(b, c):
    n, m = b + c, min(b, c)
    exact = min(Fraction(1), 2 * sum(Fraction(math.comb(n, i), 2**n) for i in range(m + 1)))
    assert mcnemar(b, c) == float(exact) == mcnemar(c, b)
    if n:
        assert mcnemar(b, c) == pytest.approx(binomtest(m, n, 0.5).pvalue, rel=1e-9)


def test_mcnemar_of_numpys_integers_which_would_overflow():
    assert mcnemar(np.int64(5), np.int64(60)) == mcnemar(5, 60) == pytest.approx(binomtest(5, 65, 0.5).pvalue, rel=1e-9)


def test_mcnemar_at_its_ends():
    assert mcnemar(0, 0) == 1 and mcnemar(7, 7) == 1
    assert mcnemar(0, 6) == 2 / 64
    assert mcnemar(0, 5000) == 0  # smaller than any float
    with pytest.raises(ValueError, match="the clips are -1 and 3; counts are not negative"):
        mcnemar(-1, 3)


def test_mcnemar_rejects_no_more_often_than_it_says():
    rng = np.random.default_rng(0)
    splits = rng.binomial(24, 0.5, size=4000)  # both equally good
    assert np.mean([mcnemar(int(k), 24 - int(k)) < 0.05 for k in splits]) <= 0.05


@pytest.mark.parametrize(
    ("clips", "right"),
    [
        (9, [9, *[0] * 9]),  # a stream that gives one answer
        (9, [9, 1, *[0] * 8]),  # one clip more, which is no reason to be surer
        (37, [*[37] * 50, 36, *[0] * 50]),
    ],
)
def test_classes_that_are_all_right_or_all_wrong_look_certain_but_are_not(clips, right):
    labels = np.repeat(np.arange(len(right)), clips)
    correct = np.concatenate([np.arange(clips) < of_class for of_class in right])
    predictions = np.where(correct, labels, (labels + 1) % len(right))
    table = Scores(
        [f"clip{i}" for i in range(len(labels))],
        np.eye(len(right))[predictions],
        labels,
        [f"class{k}" for k in range(len(right))],
    )
    found = Bootstrap({"a": table}, None)
    assert found.top1("a").method == "Wilson" and found.top1("a").interval == wilson(correct.mean(), len(labels))


@pytest.mark.parametrize(
    ("right", "labels"),
    [
        (np.arange(30) % 5 == 0, np.repeat(np.arange(6), 5)),  # one right clip a class
        (np.arange(20) % 2 == 0, np.repeat(np.arange(10), 2)),  # two units a class
    ],
)
def test_classes_of_few_clips_are_resampled_too(right, labels):
    table = answered(right, labels, classes=[f"c{n}" for n in range(labels.max() + 1)])
    assert Bootstrap({"a": table}, None).top1("a").method == "BCa bootstrap"


def test_a_tables_interval_does_not_depend_on_the_others():
    labels = np.arange(40) % 3
    a, b = answered(np.arange(40) % 2 == 0, labels), answered([False] * 40, labels)
    both, alone = Bootstrap({"a": a, "b": b}, None), Bootstrap({"a": a}, None)
    assert both.top1("a").interval == alone.top1("a").interval
    assert both.top1("a").method == alone.top1("a").method == "BCa bootstrap"


def test_a_difference_takes_its_variances_from_the_clips(monkeypatch):
    """Per class, the variance over clips of (right in b) - (right in a), which weighs the degrees of freedom."""
    rng, labels = np.random.default_rng(1), np.repeat([0, 1, 2], [40, 20, 10])
    groups = [f"g{i % 10}" for i in range(70)]
    a, b = rng.random(70) < 0.4, rng.random(70) < np.repeat([0.9, 0.5, 0.4], [40, 20, 10])
    given = {}

    def noted(sums, clips, variances, weights):
        given.update(clips=clips.sum(axis=0), variances=variances)
        return clustered(sums, clips, variances, weights)

    monkeypatch.setattr(uncertainty, "clustered", noted)
    tables = {name: answered(right, labels, groups) for name, right in (("a", a), ("b", b))}
    assert Bootstrap(tables, tuple(groups)).difference("b", "a") is not None
    more = b.astype(int) - a
    np.testing.assert_allclose(given["variances"], [more[labels == k].var() for k in range(3)])
    assert given["clips"].tolist() == [40, 20, 10]


def test_classes_of_one_group_do_not_add_to_the_groups_that_tell():
    """Three groups of x have a wrong clip; those of y and z, each the only one of its class, say nothing of others."""
    labels = np.repeat([0, 1, 2], [24, 4, 4])
    groups = [f"x{i // 2}" for i in range(24)] + ["y"] * 4 + ["z"] * 4
    right = np.array([i not in (0, 2, 4) for i in range(24)] + [True, True, False, False] * 2)
    table = answered(right, labels, groups)
    found = Bootstrap({"a": table, "b": answered(np.ones(32, bool), labels, groups)}, table.groups)
    assert found.units == 14 and found.top1("a").method == found.mean_class("a").method == uncertainty.WILSON
    assert found.top1("a").interval == pytest.approx(wilson(25 / 32, 14))
    assert found.difference("b", "a") is None
