"""Fusion against the same sums written out in plain numpy."""

import json

import numpy as np
import pytest
from scored import CLASSES, appearance_and_motion, noisy, shuffled

from pipeline import fusion
from pipeline.fusion import LinearSVM, average, choose_weight, fuse, weighted
from pipeline.fusion.svm import choose_c
from pipeline.scores import Scores
from pipeline.specs import FusionSpec


def failing(scores: Scores, *rows: int) -> Scores:
    probabilities = scores.probabilities.copy()
    probabilities[list(rows)] = np.nan
    return Scores(scores.video_ids, probabilities, scores.labels, scores.classes)


def two_rows(p: float, q: float, labels=(0, 0)) -> Scores:
    """Two clips, two classes; p and q are the probabilities of class 0."""
    return Scores(["i", "j"], [[p, 1 - p], [q, 1 - q]], labels, ["x", "y"])


def test_average_by_hand():
    fused = average(two_rows(0.9, 0.2), two_rows(0.5, 0.4))
    np.testing.assert_allclose(fused.probabilities, [[0.7, 0.3], [0.3, 0.7]], atol=1e-7)


def test_weight_is_the_share_of_the_second_table():
    fused = weighted(two_rows(0.9, 0.2), two_rows(0.5, 0.4), 0.25)
    np.testing.assert_allclose(fused.probabilities[:, 0], [0.75 * 0.9 + 0.25 * 0.5, 0.75 * 0.2 + 0.25 * 0.4], atol=1e-7)


def test_extreme_weights_are_the_single_streams():
    labels = np.arange(60) % 3
    a, b = noisy(labels, 1.0, 0), noisy(labels, 1.0, 1)
    np.testing.assert_array_equal(weighted(a, b, 0).predictions(), a.predictions())
    np.testing.assert_array_equal(weighted(a, b, 1).predictions(), b.predictions())


FUSIONS = {
    "average": average,
    "weighted": lambda a, b: weighted(a, b, 0.3),
    "svm": lambda a, b: LinearSVM.fit(a, b).apply(a, b),
}


@pytest.mark.parametrize("fusion", FUSIONS.values(), ids=FUSIONS)
def test_the_order_of_rows_does_not_matter(fusion):
    labels = np.arange(60) % 3
    a, b = noisy(labels, 1.5, 0), noisy(labels, 1.5, 1)
    straight, mixed = fusion(a, b), fusion(shuffled(a, 1), shuffled(b, 2))
    assert mixed.video_ids == shuffled(a, 1).video_ids
    np.testing.assert_allclose(straight.join(mixed)[1].probabilities, straight.probabilities, atol=1e-6)


def test_a_clip_that_failed_in_one_stream_has_no_fused_score():
    labels = np.arange(30) % 3
    a, b = failing(noisy(labels, 3, 0), 4), failing(noisy(labels, 3, 1), 4, 7)
    for fused in (average(a, b), weighted(a, b, 0.0), LinearSVM.fit(a, b).apply(a, b)):
        assert fused.failed == ("clip004", "clip007")
        assert not fused.correct()[[4, 7]].any()


def test_groups_are_kept():
    a = Scores(["i"], [[1, 0]], [0], ["x", "y"], groups=["person"])
    assert average(a, a).groups == ("person",)


@pytest.mark.parametrize("weight", [-0.01, 1.01, float("nan")])
def test_weight_out_of_range(weight):
    with pytest.raises(ValueError, match=r"it must be in 0\.\.1"):
        weighted(two_rows(0.5, 0.5), two_rows(0.5, 0.5), weight)


def test_chosen_weight_has_the_most_right_clips_then_is_nearest_to_the_average():
    labels = np.arange(90) % 3
    a, b = noisy(labels, 0.6, 5), noisy(labels, 1.2, 6)
    weight, why = choose_weight(a, shuffled(b), step=0.1)
    best = []
    for w in np.arange(11) / 10:
        p = (1 - w) * a.probabilities.astype(float) + w * b.probabilities.astype(float)
        nll = -np.log(p[np.arange(90), labels]).mean()
        best.append((-(p.argmax(1) == labels).sum(), round(abs(w - 0.5), 9), nll, w))
    assert weight == pytest.approx(min(best)[3])
    assert why["right"] == [-row[0] for row in best]
    np.testing.assert_allclose(why["nll"], [row[2] for row in best], rtol=1e-6)
    assert why["weights"] == pytest.approx([row[3] for row in best])
    json.dumps(why)


def test_equal_accuracy_stays_with_the_average_then_goes_to_the_lower_likelihood():
    weight, _ = choose_weight(two_rows(0.6, 0.6), two_rows(0.9, 0.9), step=0.25)
    assert weight == 0.5  # every weight has both right
    weight, _ = choose_weight(two_rows(0.6, 0.6), two_rows(0.9, 0.9), step=1.0)
    assert weight == 1.0  # 0 and 1 are equally far; the second table is surer of the truth


def test_a_clip_is_right_at_a_weight_if_it_is_right_in_the_fused_table():
    """At 0.5 the truth leads by 5e-10, which is a tie in float32, and that goes to the first class."""
    a = Scores(["i", "j"], [[1, 1e-9], [1, 1e-9]], [1, 1], ["x", "y"])
    b = Scores(["i", "j"], [[0, 1], [0, 1]], [1, 1], ["x", "y"])
    weight, why = choose_weight(a, b, step=0.5)
    assert why["right"] == [int(weighted(a, b, w).correct().sum()) for w in why["weights"]] == [0, 0, 2]
    assert weight == 1.0


def test_equal_tables_go_to_the_middle():
    assert choose_weight(two_rows(0.9, 0.3), two_rows(0.9, 0.3))[0] == 0.5  # its neighbors are 0.45 and 0.55
    assert choose_weight(two_rows(0.9, 0.3), two_rows(0.9, 0.3), step=0.25)[0] == 0.5
    assert choose_weight(two_rows(0.9, 0.3), two_rows(0.9, 0.3), step=0.4)[0] == 0.4  # of 0, 0.4, 0.8, 1


def test_failed_validation_clips_are_wrong_at_every_weight():
    labels = np.arange(12) % 3
    a, b = noisy(labels, 9, 0), failing(noisy(labels, 9, 1), 0, 5)
    _, why = choose_weight(a, b, step=0.5)
    assert why["right"] == [10, 10, 10]
    assert (why["num_val"], why["num_val_failed"]) == (12, 2)
    assert why["out_of_fold_top1"] == pytest.approx(10 / 12)


def test_grid_ends_at_one():
    _, why = choose_weight(two_rows(0.9, 0.3), two_rows(0.9, 0.3), step=0.3)
    assert why["weights"] == [0.0, 0.3, 0.6, 0.9, 1.0]


@pytest.mark.parametrize("step", [0, -1, 1.5])
def test_step_out_of_range(step):
    with pytest.raises(ValueError, match="it must be above 0 and at most 1"):
        choose_weight(two_rows(0.9, 0.3), two_rows(0.9, 0.3), step)


@pytest.mark.parametrize("choose", [choose_weight, LinearSVM.fit], ids=["weight", "svm"])
@pytest.mark.parametrize("num_clips", [0, 3])
def test_nothing_to_choose_on(choose, num_clips):
    empty = failing(noisy([0] * num_clips, 1, 0), *range(num_clips))
    with pytest.raises(ValueError, match=rf"none of the {num_clips} validation clips .* val_fraction"):
        choose(empty, empty)


def streams(pair) -> dict[str, Scores]:
    return dict(zip(("spatial", "temporal"), pair, strict=True))


def test_fuse_gives_all_three_with_their_parameters():
    val, test = appearance_and_motion(0, prefix="val"), appearance_and_motion(1, prefix="test")
    fused, parameters = fuse(streams(val), streams(test), FusionSpec(weight_step=0.1, svm_c=2.0))
    assert list(fused) == list(parameters) == ["average", "weighted", "svm"]
    np.testing.assert_array_equal(fused["average"].probabilities, average(*test).probabilities)
    weight = choose_weight(*val, step=0.1)[0]
    assert parameters["weighted"]["weight"] == weight
    np.testing.assert_array_equal(fused["weighted"].probabilities, weighted(*test, weight).probabilities)
    powers = np.exp(LinearSVM.fit(*val, c=2.0).margins(*test) / parameters["svm"]["temperature"])
    np.testing.assert_allclose(fused["svm"].probabilities, powers / powers.sum(1, keepdims=True), rtol=1e-5)
    assert parameters["svm"]["choice"] == {"note": "given by [fusion] svm_c"}
    assert parameters["average"] == {"weight": 0.5, "val_top1": average(*val).top1()}
    json.dumps(parameters, allow_nan=False)


def test_without_validation_clips_there_is_the_average_alone(tmp_path):
    test = appearance_and_motion(1)
    none = [table.take([]) for table in test]
    fused, parameters = fuse(streams(none), streams(test), FusionSpec())
    assert list(fused) == ["average"] and parameters == {"average": {"weight": 0.5, "val_top1": None}}
    np.testing.assert_array_equal(fused["average"].probabilities, average(*test).probabilities)
    fusion.write(tmp_path / "fusion.json", parameters)
    assert fusion.read(tmp_path / "fusion.json") == {"average": fusion.Weighted(0.5)}


def test_fuse_refuses_test_clips_among_the_validation_clips():
    pair = appearance_and_motion(0)
    with pytest.raises(ValueError, match="48 clips are in the validation and in the test tables, such as 'clip0'"):
        fuse(streams(pair), streams(pair), FusionSpec())


def test_the_worth_of_a_weight_is_that_of_the_others_choice():
    """Fold by fold in plain numpy: choose on the other groups, count on this one."""
    labels, groups = np.arange(60) % 3, [f"g{i}" for i in np.repeat(np.arange(5), 12)]
    a, b = (
        Scores(t.video_ids, t.probabilities, labels, CLASSES, groups=groups)
        for t in (noisy(labels, 0.4, 1), noisy(labels, 0.9, 2))
    )
    weight, why = choose_weight(a, b, step=0.25, folds=5)
    hits, chosen = 0, []
    for group in sorted(set(groups)):
        rows = np.array([name == group for name in groups])
        without = choose_weight(a.take(np.flatnonzero(~rows)), b.take(np.flatnonzero(~rows)), step=0.25, folds=2)[0]
        mixed = (1 - without) * a.probabilities[rows] + without * b.probabilities[rows]
        hits += (mixed.argmax(1) == labels[rows]).sum()
        chosen.append(without)
    assert sorted(why["weights_without_fold"]) == sorted(chosen)
    assert why["out_of_fold_top1"] == pytest.approx(hits / 60)
    assert (why["folds"], why["unit"], why["units"]) == (5, "groups", 5)
    assert weight == choose_weight(a, b, step=0.25, folds=2)[0]  # folds judge the weight, they do not move it


def test_one_validation_clip_has_a_weight_but_no_worth():
    a, b = two_rows(0.9, 0.9).take([0]), two_rows(0.4, 0.4).take([0])
    weight, why = choose_weight(a, b, step=0.25)
    assert weight == 0.5 and (why["unit"], why["out_of_fold_top1"], why["weights_without_fold"]) == ("none", None, [])


def test_c_is_chosen_unless_it_is_given():
    val, test = (streams(appearance_and_motion(seed, prefix=prefix)) for seed, prefix in ((0, "val"), (1, "test")))
    _, given = fuse(val, test, FusionSpec(svm_c=2.0))
    assert given["svm"]["c"] == 2 and given["svm"]["choice"] == {"note": "given by [fusion] svm_c"}
    _, chosen = fuse(val, test, FusionSpec(svm_c_grid=(0.5, 5.0), folds=4))
    assert chosen["svm"]["c"] in (0.5, 5.0) and chosen["svm"]["choice"]["chosen_from"] == [0.5, 5.0]
    assert chosen["svm"]["choice"]["folds"] == chosen["weighted"]["folds"] == 4
    json.dumps(chosen, allow_nan=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"svm_c": 1e-9}, r"\[fusion\] svm_c is 1e-09; it must be 0 or at least 1e-06"),
        ({"svm_c": -1.0}, r"\[fusion\] svm_c is -1.0; it must be at least 0"),
        ({"svm_c_grid": ()}, r"\[fusion\] svm_c_grid is ''; it must hold numbers"),
        ({"svm_c_grid": (1.0, 0.0)}, r"\[fusion\] svm_c_grid is '1, 0'; it must hold numbers"),
        ({"svm_c_grid": (float("nan"),)}, r"\[fusion\] svm_c_grid is 'nan'; it must hold numbers"),
        ({"folds": 1}, r"\[fusion\] folds is 1; it must be at least 2"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FusionSpec(**values)


def test_what_was_chosen_can_be_applied_to_other_clips(tmp_path):
    val, test = appearance_and_motion(0, prefix="val"), appearance_and_motion(1, prefix="test")
    fused, parameters = fuse(streams(val), streams(test), FusionSpec())
    fusion.write(tmp_path / "fusion.json", parameters, digest="d", inputs="i")
    again = fusion.read(tmp_path)  # the folder stands for the file in it
    assert list(again) == list(fused)
    for name, table in fused.items():
        np.testing.assert_array_equal(again[name].apply(*test).probabilities, table.probabilities)
    said = json.loads((tmp_path / "fusion.json").read_text())
    assert (said["digest"], said["inputs"], said["order"]) == ("d", "i", ["spatial", "temporal"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"fusion.json is damaged \(Expecting .*\); delete it and run the same command again"),
        ("[]", r"fusion.json is damaged \(it holds no mapping\)"),
        ("{}", "is None version None, not two-stream-fusion version 2; run Fuse again"),
        ('{"format": "two-stream-fusion", "format_version": 9}', "is two-stream-fusion version 9, not"),
        ('{"format": "two-stream-fusion", "format_version": 2}', "not parameters of the fusions .* KeyError"),
        (
            '{"format": "two-stream-fusion", "format_version": 2, "parameters": {"svm": 3}}',
            "not parameters of .*TypeError",
        ),
        (
            '{"format": "two-stream-fusion", "format_version": 2, "parameters": {"average": {"weight": 2}}}',
            "not parameters of .*weight is 2; it must be in 0..1",
        ),
    ],
)
def test_what_is_no_fusion_is_refused(tmp_path, content, message):
    (tmp_path / "fusion.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        fusion.read(tmp_path / "fusion.json")
    with pytest.raises(FileNotFoundError):
        fusion.read(tmp_path / "absent.json")


def test_probabilities_of_the_fused_svm_are_those_of_the_chosen_temperature():
    """Softmax of margins / T, with the T that `choose_c` found on held-out clips, in plain numpy."""
    val, test = (appearance_and_motion(seed, prefix=p) for seed, p in ((0, "v"), (1, "t")))
    spec = FusionSpec()
    fused, parameters = fuse(*(dict(zip(("spatial", "temporal"), part, strict=True)) for part in (val, test)), spec)
    chosen = choose_c(*val, spec.svm_c_grid, folds=spec.folds)
    assert parameters["svm"]["temperature"] == chosen.temperature != 1
    powers = np.exp(LinearSVM.fit(*val, c=chosen.c).margins(*test) / chosen.temperature)
    np.testing.assert_allclose(fused["svm"].probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-6)


def test_a_weight_is_judged_by_group_even_if_each_class_has_one_group_only():
    """Nothing is learned of a class for a given weight, so a fold need not find its classes in the others."""
    labels = np.arange(30) % 3
    pair = [Scores(**{**vars(noisy(labels, 1.0, seed)), "groups": [f"g{k}" for k in labels]}) for seed in (0, 1)]
    why = choose_weight(*pair)[1]
    assert (why["unit"], why["units"], why["folds"]) == ("groups", 3, 3)


@pytest.mark.parametrize("lacking", ["spatial", "temporal"])
def test_a_stream_without_validation_scores_is_refused(lacking):
    val, test = (dict(zip(("spatial", "temporal"), appearance_and_motion(0, prefix=p), strict=True)) for p in "vt")
    with pytest.raises(ValueError, match="the tables hold different clips"):
        fuse({**val, lacking: val[lacking].take([])}, test, FusionSpec())
