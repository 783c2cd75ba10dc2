"""The SVM against its formula, and the choice of its C against the same folds fitted one by one with scikit-learn."""

import json

import numpy as np
import pytest
from scored import appearance_and_motion, noisy, shuffled
from sklearn.svm import LinearSVC

from pipeline.fusion.folds import cut_folds
from pipeline.fusion.svm import DEFAULT_C, LinearSVM, choose_c
from pipeline.scores import Scores

CLASSES = ("one", "two", "three")


def pair(seed: int, *, groups: int = 6, lean: float = 1.0) -> tuple[Scores, Scores]:
    """Three classes, four clips a group and class; the streams err independently."""
    rng, labels = np.random.default_rng(seed), np.tile(np.repeat(np.arange(3), 4), groups)
    names = [f"g{i}" for i in np.repeat(np.arange(groups), 12)]
    tables = []
    for _ in range(2):
        logits = rng.normal(size=(len(labels), 3)) + lean * np.eye(3)[labels]
        powers = np.exp(logits)
        ids = [f"v{i:03d}" for i in range(len(labels))]
        tables.append(Scores(ids, powers / powers.sum(1, keepdims=True), labels, CLASSES, groups=names))
    return tables[0], tables[1]


def stacked(a: Scores, b: Scores) -> np.ndarray:
    rows = [t.probabilities.astype(float) for t in (a, b)]
    return np.hstack([p / np.sqrt((p**2).sum(1))[:, None] for p in rows])


def test_right_clips_are_those_of_held_out_groups():
    a, b = pair(0)
    grid = [10.0, 0.01, 1.0]
    c, _, why = choose_c(a, b, grid, folds=3)
    x, expected = stacked(a, b), []
    for value in sorted(grid):
        hits = 0
        for fitted, held in cut_folds(a, 3):
            svm = LinearSVC(C=value, multi_class="crammer_singer", random_state=0, max_iter=20_000)
            hits += (svm.fit(x[fitted], a.labels[fitted]).predict(x[held]) == a.labels[held]).sum()
        expected.append(hits)
    assert (why["chosen_from"], why["right"]) == (sorted(grid), expected)
    assert c == sorted(grid)[int(np.argmax(expected))]
    assert why["out_of_fold_top1"] == pytest.approx(max(expected) / len(a))
    assert (why["folds"], why["unit"], why["units"], why["note"]) == (3, "groups", 6, "")
    assert json.loads(json.dumps(why)) == why


def test_many_fits_on_all_cores_give_the_same(monkeypatch, capsys):
    a, b = pair(0)
    alone = choose_c(a, b, [10.0, 0.1], folds=3)
    monkeypatch.setattr("pipeline.fusion.svm._MANY", 1)
    assert choose_c(a, b, [10.0, 0.1], folds=3) == alone
    assert "fusion, choosing C: 6 SVMs" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.* tasks:UserWarning")
def test_an_error_while_fits_come_ends_the_processes_that_make_the_others(monkeypatch):
    psutil = pytest.importorskip("psutil")

    def fail(self):
        raise ZeroDivisionError("of the one who counts")

    monkeypatch.setattr("pipeline.fusion.svm._MANY", 1)
    monkeypatch.setattr("pipeline.fusion.svm.Progress.advance", fail)
    with pytest.raises(ZeroDivisionError, match="of the one who counts") as raised:
        choose_c(*pair(0), [10.0 + k for k in range(200)], folds=3)
    at_work = [child for child in psutil.Process().children() if "popen_loky" in " ".join(child.cmdline())]
    assert not psutil.wait_procs(at_work, timeout=30)[1], raised  # which keeps what was begun from being collected


def platt_cross_entropy(margins, labels, temperature):
    powers = np.exp(margins / temperature)
    p, (n, k) = powers / powers.sum(1, keepdims=True), margins.shape
    targets = np.where(np.eye(k, dtype=bool)[labels], (n + 1) / (n + k), 1 / (n + k))
    return -(targets * np.log(p)).sum()


@pytest.mark.parametrize("c", [0.01, 1.0, 10.0])
def test_the_temperature_is_the_best_for_held_out_clips(c):
    a, b = pair(0)
    temperature, x, margins = choose_c(a, b, [c], folds=3).temperature, stacked(a, b), np.empty((len(a), 3))
    for fitted, held in cut_folds(a, 3):
        svm = LinearSVC(C=c, multi_class="crammer_singer", random_state=0, max_iter=20_000)
        margins[held] = svm.fit(x[fitted], a.labels[fitted]).decision_function(x[held])
    best, *others = (platt_cross_entropy(margins, a.labels, temperature * k) for k in (1, 0.97, 1.03))
    assert best < min(others)


@pytest.mark.parametrize("c", [0.01, 10.0])
def test_probabilities_of_the_svm_are_about_how_often_it_is_right(c):
    """Without a temperature they were near chance for a small C, however right it was."""
    a, b = pair(0)
    svm = LinearSVM.fit(a, b, c=c, temperature=choose_c(a, b, [c]).temperature)
    fresh = [svm.apply(*pair(seed)) for seed in range(1, 6)]
    said = np.concatenate([table.probabilities.max(1) for table in fresh]).mean()
    assert said == pytest.approx(np.mean([table.top1() for table in fresh]), abs=0.06)


def test_without_a_cut_the_temperature_is_that_of_the_fitted_clips():
    a, b = (t.take([0, 4, 8]) for t in pair(0, lean=12))
    c, temperature, _ = choose_c(a, b, [5.0])
    assert c == 5.0 and LinearSVM.fit(a, b, c=c).margins(a, b).argmax(1).tolist() == a.labels.tolist()
    svm = LinearSVM.fit(a, b, c=c, temperature=temperature)
    assert np.diag(svm.apply(a, b).probabilities[:, a.labels]) == pytest.approx(4 / 6, abs=0.02)  # Platt's target


@pytest.mark.parametrize("seed", range(8))
def test_streams_that_know_nothing_leave_the_svms_decision_as_it_is(seed):
    """The best temperature of meaningless margins has no end; probabilities then differ by less than float32 can tell."""
    rng = np.random.default_rng(seed)
    labels, classes = np.arange(200) % 10, [f"c{k}" for k in range(10)]
    powers = rng.uniform(0.5, 1, (2, 200, 10))
    ids = [f"v{row:03d}" for row in range(200)]
    a, b = (Scores(ids, p / p.sum(1, keepdims=True), labels, classes) for p in powers)
    val, test = (tuple(table.take(rows) for table in (a, b)) for rows in (range(20), range(20, 200)))
    c, temperature, _ = choose_c(*val, [0.01])
    svm = LinearSVM.fit(*val, c=c, temperature=temperature)
    margins = svm.margins(*test)
    assert np.array_equal(svm.apply(*test).predictions(), margins.argmax(1))
    assert np.median(np.ptp(margins, axis=1)) / temperature > 0.005  # not flattened forever
    flat = LinearSVM(svm.classes, svm.coefficients, svm.intercepts, c, 20, temperature=1e12)
    assert np.array_equal(flat.apply(*test).predictions(), margins.argmax(1))


def test_of_equal_c_the_smallest_is_taken():
    c, _, why = choose_c(*pair(0, lean=12), [100.0, 0.5, 3.0])
    assert len(set(why["right"])) == 1 and c == 0.5
    assert why["out_of_fold_top1"] == 1


def test_failed_clips_count_as_wrong_out_of_fold():
    a, b = pair(0, lean=12)
    gone = a.probabilities.copy()
    gone[:18] = np.nan
    assert choose_c(a.with_probabilities(gone), b, [1.0]).why["out_of_fold_top1"] == 1 - 18 / 72


def test_without_a_cut_c_is_the_default_and_that_is_said():
    a, b = (t.take([0, 4, 8]) for t in pair(0))  # one person, one clip a class: as on Weizmann
    c, _, why = choose_c(a, b, [0.01, 100.0])
    assert c == DEFAULT_C and (why["unit"], why["right"], why["out_of_fold_top1"]) == ("none", [], None)
    assert "only one of the groups" in why["note"]


@pytest.mark.parametrize("grid", [[], [0.0, 1.0], [-1.0], [float("nan")], [float("inf")]])
def test_a_wrong_grid_is_refused(grid):
    with pytest.raises(ValueError, match="it must hold numbers above 0"):
        choose_c(*pair(0), grid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coefficients": [[0.0] * 5] * 3}, r"an SVM of 3 classes has coefficients \(3, 6\) and intercepts \(3,\)"),
        ({"intercepts": [0.0]}, r"an SVM of 3 classes has coefficients \(3, 6\) and intercepts \(3,\)"),
        ({"coefficients": [[float("nan")] * 6] * 3}, "must be finite"),
        ({"intercepts": [None] * 3}, "an SVM without a single class predicts nothing"),
        ({"temperature": 0.0}, "the temperature of an SVM is 0.0; it must be above 0 and finite"),
    ],
)
def test_values_that_are_no_svm_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LinearSVM.from_dict({**LinearSVM.fit(*pair(0)).as_dict(), **changes})


def test_svm_joins_what_each_stream_knows():
    svm = LinearSVM.fit(*appearance_and_motion(0))
    a, b = appearance_and_motion(1)
    assert a.top1() < 0.8 and b.top1() < 0.8
    assert svm.apply(a, b).top1() == 1.0


def test_svm_margins_are_those_of_normalized_stacked_scores():
    a, b = appearance_and_motion(0)
    svm = LinearSVM.fit(a, b, c=0.5)
    p, q = a.probabilities.astype(float), b.probabilities.astype(float)
    stacked = np.hstack([p / np.sqrt((p**2).sum(1))[:, None], q / np.sqrt((q**2).sum(1))[:, None]])
    margins = stacked @ svm.coefficients.T + svm.intercepts
    np.testing.assert_allclose(svm.margins(a, b), margins, atol=1e-9)
    fused = svm.apply(a, b)
    np.testing.assert_array_equal(fused.predictions(), margins.argmax(1))
    np.testing.assert_array_equal(np.argsort(fused.probabilities, axis=1), np.argsort(margins, axis=1))


def test_svm_with_two_classes():
    labels = np.arange(40) % 2
    a, b = noisy(labels, 4, 0, classes=("x", "y")), noisy(labels, 4, 1, classes=("x", "y"))
    fused = LinearSVM.fit(a, b).apply(a, b)
    assert fused.probabilities.shape == (40, 2)
    assert fused.top1() > 0.95
    few = np.array([0, 1, 0, 0, 0, 1, 0, 0])  # so that there is an intercept
    a, b = noisy(few, 1, 2, classes=("x", "y")), noisy(few, 1, 3, classes=("x", "y"))
    svm = LinearSVC(C=1.0, multi_class="crammer_singer", random_state=0, max_iter=20_000).fit(stacked(a, b), few)
    margins = LinearSVM.fit(a, b, c=1.0).margins(a, b)
    np.testing.assert_allclose(margins[:, 1] - margins[:, 0], svm.decision_function(stacked(a, b)), atol=1e-9)


def test_svm_never_predicts_a_class_that_it_did_not_see():
    known = np.tile([0, 2], 20)
    svm = LinearSVM.fit(noisy(known, 4, 0), noisy(known, 4, 1))
    assert svm.absent == ("two",)
    labels = np.arange(30) % 3
    fused = svm.apply(noisy(labels, 4, 2), noisy(labels, 4, 3))
    assert (fused.probabilities[:, 1] == 0).all()
    right, clips = fused.per_class()
    assert right[1] == 0 and right[0] + right[2] >= 0.9 * (clips[0] + clips[2])


def test_svm_that_saw_one_class_always_says_it():
    svm = LinearSVM.fit(noisy([1, 1], 1, 0), noisy([1, 1], 1, 1))
    assert svm.absent == ("one", "three")
    assert set(svm.apply(noisy([0, 1, 2], 3, 2), noisy([0, 1, 2], 3, 3)).predictions()) == {1}


def test_svm_is_the_same_every_time_and_survives_json():
    a, b = appearance_and_motion(0)
    first, second = LinearSVM.fit(a, b), LinearSVM.fit(shuffled(a, 1), shuffled(b, 2))
    np.testing.assert_array_equal(first.coefficients, second.coefficients)
    known = LinearSVM.fit(noisy([0, 2] * 9, 2, 0), noisy([0, 2] * 9, 2, 1))
    again = LinearSVM.from_dict(json.loads(json.dumps(known.as_dict(), allow_nan=False)))
    test = noisy(np.arange(9) % 3, 2, 5)
    np.testing.assert_array_equal(again.apply(test, test).probabilities, known.apply(test, test).probabilities)
    assert again.absent == ("two",) and again.c == known.c and again.num_val == 18


def test_svm_refusals():
    a, b = appearance_and_motion(0)
    with pytest.raises(ValueError, match="c is 0; it must be above 0 and finite"):
        LinearSVM.fit(a, b, c=0)
    other = noisy([0, 1, 2], 1, 0)
    message = r"3 classes \('one', 'two', 'three'\); the SVM was fitted on 4 \('tl', 'tr', 'cl', \.\.\.\)"
    with pytest.raises(ValueError, match=message):
        LinearSVM.fit(a, b).apply(other, other)


def all_right(labels, classes: int) -> Scores:
    rows = np.full((len(labels), classes), 0.1)
    rows[np.arange(len(labels)), labels] = 0.9
    rows /= rows.sum(1, keepdims=True)
    return Scores([f"v{i}" for i in range(len(labels))], rows, labels, [f"c{i}" for i in range(classes)])


def test_validation_clips_of_one_class_leave_the_temperature_alone():
    a = all_right([1] * 6, 3)
    c, temperature, _ = choose_c(a, a, [0.1, 1.0])
    assert LinearSVM.fit(a, a, c=c, temperature=temperature).apply(a, a).predictions().tolist() == [1] * 6


def test_a_c_that_is_given_twice_is_tried_once():
    a = all_right([0, 1] * 3, 2)
    assert choose_c(a, a, [1, 1.0, 0.1]).why["chosen_from"] == [0.1, 1.0]
