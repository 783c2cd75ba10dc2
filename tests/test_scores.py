"""Score tables against numbers counted by hand."""

import numpy as np
import pytest

from pipeline import store
from pipeline.scores import Scores
from pipeline.system.errors import DamagedFile

NAN = float("nan")
CLASSES = ("jump", "run", "walk", "absent")


def table(**changes) -> Scores:
    """Five clips, three of four classes. Right: a, c. Wrong: b (run -> jump), d (failed), e (walk -> run)."""
    values = {
        "video_ids": ["a", "b", "c", "d", "e"],
        "probabilities": [
            [0.7, 0.1, 0.1, 0.1],
            [0.6, 0.2, 0.1, 0.1],
            [0.1, 0.8, 0.1, 0.0],
            [NAN, NAN, NAN, NAN],
            [0.0, 0.5, 0.4, 0.1],
        ],
        "labels": [0, 1, 1, 1, 2],
        "classes": CLASSES,
    }
    return Scores(**{**values, **changes})


def test_accuracies_count_failed_clips_as_wrong():
    scores = table()
    assert scores.top1() == 2 / 5
    assert scores.mean_class_accuracy() == pytest.approx((1 / 1 + 1 / 3 + 0 / 1) / 3)  # no clip of "absent"
    assert scores.failed == ("d",)
    assert scores.predictions().tolist() == [0, 0, 1, -1, 1]
    assert scores.correct().tolist() == [True, False, True, False, False]


def test_per_class_and_confusion():
    right, clips = table().per_class()
    assert right.tolist() == [1, 1, 0, 0]
    assert clips.tolist() == [1, 3, 1, 0]
    assert table().confusion().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_unlabeled_clips_are_in_no_accuracy():
    some = table(labels=[0, -1, 1, -1, 2])  # b, and d, which failed as well
    assert some.labeled.tolist() == [True, False, True, False, True]
    assert some.predictions().tolist() == [0, 0, 1, -1, 1] and some.top1() == 2 / 3
    assert some.correct().tolist() == [True, False, True, False, False]
    assert [counts.tolist() for counts in some.per_class()] == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert some.mean_class_accuracy() == pytest.approx(2 / 3) and some.confusion().sum() == 3
    none = table(labels=[-1] * 5)
    assert np.isnan(none.top1()) and np.isnan(none.mean_class_accuracy()) and not none.confusion().any()


def test_equal_probabilities_go_to_the_first_class():
    scores = Scores(["a"], [[0.5, 0.5]], [1], ["x", "y"])
    assert scores.predictions().tolist() == [0]


def test_a_table_without_clips_has_no_accuracy():
    scores = Scores([], np.zeros((0, 2)), [], ["x", "y"])
    assert len(scores) == 0
    assert np.isnan(scores.top1()) and np.isnan(scores.mean_class_accuracy())
    assert scores.predictions().shape == (0,)
    assert scores.confusion().tolist() == [[0, 0], [0, 0]]


def test_arrays_are_read_only_copies():
    source = np.array([[0.25, 0.75]], np.float32)
    scores = Scores(["a"], source, [0], ["x", "y"])
    source[:] = 9
    assert scores.probabilities.tolist() == [[0.25, 0.75]]
    with pytest.raises(ValueError, match="read-only"):
        scores.probabilities[0, 0] = 1


def test_repr_tells_shapes_not_data():
    text = repr(table(features=np.zeros((5, 7)), groups=list("ppqqr")))
    assert text == "Scores(probabilities=(5, 4), classes=4, features=(5, 7), groups=3, failed=1)"
    assert "features=none" in repr(table())


def test_dtypes():
    scores = table(features=np.ones((5, 2), np.float64))
    assert scores.probabilities.dtype == scores.features.dtype == np.float32
    assert scores.labels.dtype == np.int64


FULL = {"features": np.arange(10.0).reshape(5, 2), "groups": list("ppqqr")}


@pytest.mark.parametrize("extras", [{}, FULL], ids=["plain", "full"])
def test_written_and_read_again(tmp_path, extras):
    scores = table(video_ids=["a", "b c", "ü", "<script>", "e"], **extras)
    scores.write(tmp_path / "scores.h5", stream="spatial", seed=3)
    again = Scores.read(tmp_path / "scores.h5")
    assert again.video_ids == scores.video_ids and again.classes == scores.classes and again.groups == scores.groups
    np.testing.assert_array_equal(again.probabilities, scores.probabilities)
    np.testing.assert_array_equal(again.labels, scores.labels)
    if extras:
        np.testing.assert_array_equal(again.features, scores.features)
    else:
        assert again.features is None


def test_join_is_by_clip_id_whatever_the_order():
    first = table(features=np.arange(5.0)[:, None], groups=list("ppqqr"))
    order = [4, 2, 0, 3, 1]
    second = first.take(order)
    assert second.video_ids == ("e", "c", "a", "d", "b") and second.groups == ("r", "q", "p", "q", "p")
    a, b = first.join(second)
    assert a is first
    assert b.video_ids == first.video_ids and b.groups == first.groups
    np.testing.assert_array_equal(b.probabilities, first.probabilities)
    np.testing.assert_array_equal(b.labels, first.labels)
    np.testing.assert_array_equal(b.features, first.features)


OTHERS = {
    "other clips": (
        table(video_ids=["a", "b", "c", "x", "y"]),
        r"2 \('d', 'e'\) only in the first, 2 \('x', 'y'\) only in the second",
    ),
    "fewer clips": (table().take([0, 1, 2, 3]), r"1 \('e'\) only in the first, 0 only in the second"),
    "labels": (table(labels=[0, 1, 1, 0, 1]), r"disagree on the label of 2 \('d', 'e'\)"),
    "classes": (
        table(classes=("jump", "run", "walk", "swim")),
        r"1 \('absent'\) only in the first, 1 \('swim'\) only in the second",
    ),
    "order of classes": (
        table(classes=("jump", "walk", "run", "absent")),
        "different orders; class 1 is 'run' in the first, 'walk' in the second",
    ),
}


@pytest.mark.parametrize(("other", "message"), OTHERS.values(), ids=OTHERS)
def test_join_refuses_and_says_which(other, message):
    with pytest.raises(ValueError, match=message):
        table().join(other)


def test_long_lists_of_names_are_cut():
    many = [f"clip{i}" for i in range(9)]
    first, second = (Scores(ids, np.full((9, 2), 0.5), [0] * 9, "xy") for ids in (many, [f"{i}!" for i in many]))
    with pytest.raises(ValueError, match=r"9 \('clip0', 'clip1', 'clip2', \.\.\.\) only in the first"):
        first.join(second)


ROW = [0.25] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": np.full((4, 4), 0.25)}, r"probabilities is \(4, 4\); 5 clips and 4 classes need \(5, 4\)"),
        ({"probabilities": np.full((5, 3), 1 / 3)}, r"probabilities is \(5, 3\)"),
        ({"labels": [0, 0.5, 1, 1, 2]}, "labels holds values that are not whole numbers"),
        ({"labels": [0, 1]}, r"labels is \(2,\); 5 clips need \(5,\)"),
        ({"labels": [0, 4, 1, -2, 2]}, r"labels: 2 lie outside 0\.\.3 \(-1: unknown\), the first is 4 of 'b'"),
        ({"video_ids": ["a", "b", "a", "d", "a"]}, r"video_ids: 2 \('a', 'a'\) occur more than once"),
        ({"classes": ["x", "y", "y", "z"]}, r"classes: 1 \('y'\) occur more than once"),
        ({"features": np.zeros((4, 2))}, r"features is \(4, 2\); 5 clips need \(5, D\)"),
        ({"features": np.zeros(5)}, r"features is \(5,\)"),
        ({"groups": ["p"]}, "groups has 1 names; 5 clips need 5"),
        ({"probabilities": [ROW, [0.5] * 4, ROW, ROW, ROW]}, "1 rows neither .* the first is 'b' with sum 2"),
        ({"probabilities": [ROW, [0.1] * 4, ROW, ROW, ROW]}, "1 rows neither .* the first is 'b' with sum 0.4"),
        ({"probabilities": [ROW, ROW, [0.5, 0.7, -0.2, 0], ROW, ROW]}, "1 rows neither .* 'c' with sum 1"),
        ({"probabilities": [[NAN, 0.5, 0.5, 0], ROW, ROW, ROW, ROW]}, "1 rows neither .* 'a' with sum nan"),
        ({"probabilities": [ROW, ROW, ROW, [np.inf, -np.inf, 0, 0], [np.inf, 0, 0, 0]]}, "2 rows neither .* 'd'"),
    ],
)
def test_a_wrong_table_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_views_of_a_file_that_was_written_again_are_refused(tmp_path):
    """Its rows may be of other clips, as after a video was added."""
    path = tmp_path / "scores.h5"

    def write(*ids):
        probabilities = np.array([[ord(i) / 200, 1 - ord(i) / 200] for i in ids], np.float32)
        scores = Scores(ids, probabilities, np.zeros(len(ids)), ("x", "y"))
        with store.create_scores(path, {}, clips=len(ids), views=1) as writer:
            for row in range(len(ids)):
                writer.put(row, 0, probabilities[row : row + 1], np.zeros((1, 3), np.float32))
            writer.put_table(scores.arrays())
        return Scores.read(path)

    before = write("a", "c")
    views, late = before.views, before.take([1])
    np.testing.assert_array_equal(views["c"].probabilities, before.probabilities[1:])
    after = write("a", "b", "c")
    for read in (lambda: views["c"], lambda: late.views):
        with pytest.raises(DamagedFile, match="scores.h5 has been written again since it was read; read it again"):
            read()
    np.testing.assert_array_equal(after.views["c"].probabilities, after.probabilities[2:])


def test_a_table_in_memory_has_no_views():
    with pytest.raises(ValueError, match="a table in memory has no views; read it from a file scored with"):
        _ = table().views


def test_rows_are_taken_by_a_mask_too():
    table = Scores(["a", "b", "c"], [[0.5, 0.5]] * 3, [0, 1, 0], ["x", "y"])
    assert table.take(table.labels == 0).video_ids == ("a", "c")
    assert table.take([False, True, False]).video_ids == ("b",)
    assert table.take([]).video_ids == ()
    with pytest.raises(ValueError, match="the mask has 2 values; the table has 3 rows"):
        table.take([True, False])


def test_a_folder_stands_for_the_file_in_it(tmp_path):
    table = Scores(["a"], [[0.5, 0.5]], [0], ["x", "y"])
    table.write(tmp_path / "scores.h5")
    assert Scores.read(tmp_path).video_ids == ("a",)
    assert Scores.read(tmp_path).source == tmp_path / "scores.h5"
