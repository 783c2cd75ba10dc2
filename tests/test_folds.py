"""Cuts by group: what is never split, how even they are, and when they cannot serve."""

import numpy as np
import pytest

from pipeline.fusion.folds import cut_folds, scored_pair
from pipeline.scores import Scores


def table(labels, groups, classes: int = 4) -> Scores:
    ids = [f"clip{i:03d}" for i in range(len(labels))]
    return Scores(
        ids, np.full((len(labels), classes), 1 / classes), labels, [f"c{k}" for k in range(classes)], groups=groups
    )


def persons(count: int) -> Scores:
    """Every person shows every class once, person 0 twice."""
    labels = np.concatenate([np.tile(np.arange(4), count), np.arange(4)])
    return table(labels, [f"p{i}" for i in np.repeat(np.arange(count), 4)] + ["p0"] * 4)


def sources(groups_a_class: int) -> Scores:
    """UCF-101's way: three clips a group, each group of one class."""
    group = np.repeat(np.arange(4 * groups_a_class), 3)
    return table(group // groups_a_class, [f"g{i:02d}" for i in group])


@pytest.mark.parametrize("made", [persons(7), sources(6), sources(3)], ids=["persons", "six", "three"])
def test_folds_hold_whole_groups_and_every_clip_once(made):
    folds = cut_folds(made, 3)
    assert (len(folds), folds.unit, folds.note) == (3, "groups", "")
    seen = np.zeros(len(made), int)
    for fitted, held in folds:
        seen[held] += 1
        assert set(fitted) | set(held) == set(range(len(made))) and not set(fitted) & set(held)
        assert not {made.groups[row] for row in fitted} & {made.groups[row] for row in held}
    assert (seen == 1).all()


def test_classes_are_dealt_evenly():
    made = sources(6)
    for _, held in cut_folds(made, 3):
        assert np.bincount(made.labels[held]).tolist() == [6, 6, 6, 6]


def test_a_group_goes_where_its_own_classes_are_fewest_however_full_that_fold_is():
    made = table([1] * 10 + [0] * 5, ["a"] * 10 + ["b"] * 3 + ["c"] * 2)
    assert cut_folds(made, 2, by_class=False).of_row.tolist() == [0] * 10 + [1] * 3 + [0] * 2


def test_with_fewer_groups_than_folds_each_group_is_a_fold():
    made = persons(3)
    folds = cut_folds(made, 10)
    assert len(folds) == folds.units == 3
    assert (cut_folds(persons(2), 10).unit, len(cut_folds(persons(2), 10))) == ("groups", 2)
    assert sorted({made.groups[row] for row in held} for _, held in folds) == [{"p0"}, {"p1"}, {"p2"}]


def test_the_order_of_rows_does_not_matter():
    made = sources(5)
    order = np.random.default_rng(0).permutation(len(made))
    np.testing.assert_array_equal(cut_folds(made, 4).of_row[order], cut_folds(made.take(order), 4).of_row)


def test_one_group_is_cut_by_clip_with_its_classes_spread():
    made = table(np.arange(12) % 4, ["lena"] * 12)
    folds = cut_folds(made, 3)
    assert (folds.unit, len(folds)) == ("clips", 3) and folds.note == "there is only one of the groups"
    assert all(sorted(made.labels[held]) == [0, 1, 2, 3] for _, held in folds)


def test_a_class_of_a_single_group_cannot_be_judged_by_group():
    folds = cut_folds(sources(1), 3)
    assert folds.unit == "clips"
    assert folds.note == "cut by groups, 12 of 12 clips would have their class in no other fold"
    assert cut_folds(sources(1), 3, by_class=False).unit == "groups"  # where nothing is learned


def test_one_clip_a_class_is_not_cut_at_all():
    folds = cut_folds(table(np.arange(4), ["lena"] * 4), 3)
    assert (folds.unit, folds.units, len(folds), list(folds)) == ("none", 0, 0, [])
    assert folds.note.startswith("there is only one of the groups; cut by clips, 4 of 4 clips")
    assert (
        cut_folds(table([2], None), 2, by_class=False).note == "the groups are unknown; there is only one of the clips"
    )


def test_half_of_the_clips_are_enough():
    labels = [0, 0, 1, 2]  # class 0 in two groups, the others in one each
    assert cut_folds(table(labels, ["a", "b", "c", "d"]), 2).unit == "groups"
    assert cut_folds(table([*labels, 3], ["a", "b", "c", "d", "e"]), 2).unit == "none"


def test_unknown_groups_are_said():
    folds = cut_folds(table(np.arange(8) % 2, None), 2)
    assert (folds.unit, folds.units, folds.note) == ("clips", 8, "the groups are unknown")
    assert folds.as_dict() == {"folds": 2, "unit": "clips", "units": 8, "note": "the groups are unknown"}


def test_refusals():
    with pytest.raises(ValueError, match="folds is 1; it must be at least 2"):
        cut_folds(persons(3), 1)
    with pytest.raises(ValueError, match="there is no clip to cut into folds"):
        cut_folds(table([], []), 2)


def test_only_labeled_clips_are_chosen_on():
    made = persons(2)
    labels = np.where(np.arange(len(made)) % 2, made.labels, -1)
    some = Scores(made.video_ids, made.probabilities, labels, made.classes, groups=made.groups)
    a, b = scored_pair(some, some)
    assert a.video_ids == b.video_ids == tuple(sorted(made.video_ids[1::2])) and a.labeled.all()


def test_only_clips_that_both_streams_scored_are_chosen_on():
    made = persons(2)
    gone = made.probabilities.copy()
    gone[3] = np.nan
    a, b = scored_pair(made, made.with_probabilities(gone).take(np.arange(len(made))[::-1]))
    assert a.video_ids == b.video_ids and "clip003" not in a.video_ids and len(a) == len(made) - 1
    assert list(a.video_ids) == sorted(a.video_ids)
