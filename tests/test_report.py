"""The report against counts made by hand, and against names that strangers chose."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from pages import HOSTILE, Page

from pipeline import report
from pipeline.fusion import average
from pipeline.report import figures, metrics
from pipeline.report.metrics import Chain
from pipeline.scores import Scores

CURVE = {
    "steps": [2, 4, 6],
    "loss": [1.5, 0.7, 0.4],
    "learning_rate": [0.01, 0.01, 0.001],
    "validation": [{"step": 3, "top1": 0.5, "loss": 1.1}, {"step": 6, "top1": 0.75, "loss": 0.9}],
    "best_step": 6,
}


def certain(predictions, labels, classes, *, ids=None) -> Scores:
    """A table that is 0.9 sure of each prediction; -1 is a failed clip."""
    k = len(classes)
    rows = [np.full(k, np.nan) if p < 0 else np.where(np.arange(k) == p, 0.9, 0.1 / (k - 1)) for p in predictions]
    return Scores(ids or [f"clip{i}" for i in range(len(labels))], rows, labels, classes)


def arguments(labels=(0, 0, 1, 1, 2, 2), spatial=(0, 1, 1, 1, 0, -1), temporal=(0, 0, 0, 1, 2, -1), **changes) -> dict:
    """Average: clips 0 and 3 agree and are right; 1, 2, 4 disagree, so the lower class index of the two wins."""
    classes, ids = changes.pop("classes", ("x", "y", "z")), changes.pop("ids", None)
    said = {"spatial": spatial, "temporal": temporal}
    streams = {name: certain(predictions, labels, classes, ids=ids) for name, predictions in said.items()}
    fused = {"average": average(*streams.values()), "weighted": streams["temporal"], "svm": streams["spatial"]}
    fusion = {"weighted": {"weight": 0.65}, "svm": {"c": 1.0, "coefficients": [[0.5, 0.25]], "absent": []}}
    values = {
        "dataset": "toy",
        "split": "1",
        "streams": streams,
        "fused": fused,
        "fusion": fusion,
        "curves": {"spatial": CURVE, "temporal": CURVE},
        "failed": [],
        "odd": {"clip3": "68 of 444 promised frames decode"},
        "settings": {"flow": {"method": "tvl1"}, "temporal": {"seed": 7, "stack": {"length": 10}}},
        "stages": [{"stage": "flow", "digest": "1f3a9c2e04b7"}],
        "counts": {"test": {"clips": 6, "groups": 2}},
    }
    return {**values, **changes}


def write(folder, **given) -> dict:
    of_chain = {name: given.pop(name) for name in Chain.__dataclass_fields__ if name in given}
    return report.write(folder, Chain(**of_chain), **given)


BEST = {"last_step": 6, "best_step": 6, "device": "", "precision": ""}


def test_metrics_are_those_counted_by_hand(tmp_path):
    numbers = write(tmp_path, **arguments())
    assert numbers == json.loads((tmp_path / "metrics.json").read_text())
    assert (numbers["dataset"], numbers["split"], numbers["num_test"], numbers["num_failed"]) == ("toy", "1", 6, 1)
    assert numbers["spatial"]["top1"] == pytest.approx(3 / 6)
    assert numbers["spatial"]["mean_class"] == pytest.approx((1 / 2 + 2 / 2 + 0 / 2) / 3)
    assert numbers["temporal"]["top1"] == pytest.approx(4 / 6)
    assert numbers["temporal"]["mean_class"] == pytest.approx((2 / 2 + 1 / 2 + 1 / 2) / 3)
    assert set(numbers["fused"]) == {"average", "weighted", "svm"}
    assert numbers["fused"]["average"]["correct"] == 3  # clips 0, 3 and, by the tie, 1
    assert numbers["fused"]["average"]["total"] == 6
    assert numbers["fused"]["svm"]["top1"] == numbers["spatial"]["top1"]
    z = {"clips": 2, "spatial": 0, "temporal": 0.5, "average": 0, "weighted": 0.5, "svm": 0}
    assert numbers["per_class"]["z"] == z
    assert numbers["agreement"]["both"] == {"clips": 2, "fused_right": 2}
    assert numbers["agreement"]["only_temporal"] == {"clips": 2, "fused_right": 1}
    assert numbers["agreement"]["neither"] == {"clips": 1, "fused_right": 0}
    assert numbers["training"]["spatial"] == {**BEST, "val_top1": 0.75}
    assert numbers["seeds"] == {"temporal.seed": 7}
    assert numbers["fusion"] == {"weighted": {"weight": 0.65}, "svm": {"c": 1.0, "absent": []}}
    assert {"numpy", "numba", "python"} <= set(numbers["versions"])


def test_streams_are_joined_by_id():
    given = arguments()
    order = [3, 0, 5, 1, 4, 2]
    given["streams"]["temporal"] = given["streams"]["temporal"].take(order)
    given["fused"]["average"] = given["fused"]["average"].take(order)
    tables = metrics.join(given["streams"], given["fused"])
    assert {table.video_ids for table in tables.values()} == {given["streams"]["spatial"].video_ids}
    assert metrics.agreement(tables)["both"] == {"clips": 2, "fused_right": 2}


def test_confused_pairs_and_wrong_clips():
    given = arguments()
    tables = metrics.join(given["streams"], given["fused"])
    assert metrics.confused_pairs(tables["average"]) == [
        {"truth": "y", "predicted": "x", "clips": 1, "share": 0.5},
        {"truth": "z", "predicted": "x", "clips": 1, "share": 0.5},
    ]
    wrong = metrics.misclassified(tables)
    assert [(row["id"], row["truth"], row["predicted"], row["spatial"], row["temporal"]) for row in wrong] == [
        ("clip2", "y", "x", "y", "x"),
        ("clip4", "z", "x", "x", "z"),
    ]
    assert wrong[0]["p_truth"] == pytest.approx((0.9 + 0.05) / 2)


def test_a_clip_that_failed_in_two_stages_is_told_of_once():
    frames, flow = {"a": "no frame decodes"}, {"a": "no frame decodes", "b": "one frame"}
    assert metrics.first_reasons({"Frames": frames, "Flow": flow}) == [
        {"id": "a", "stage": "Frames", "reason": "no frame decodes"},
        {"id": "b", "stage": "Flow", "reason": "one frame"},
    ]


def test_every_failed_clip_is_listed_with_its_reason():
    given = arguments()
    tables = metrics.join(given["streams"], given["fused"])
    other = {"id": "train9", "stage": "frames", "reason": "no frame decodes"}
    rows = metrics.failures(tables, [other])
    assert rows == [
        {"id": "clip5", "stage": "score", "reason": "no score, and no stage gave a reason", "test": True},
        {**other, "test": False},
    ]
    known = {"id": "clip5", "stage": "flow", "reason": "one frame"}
    assert metrics.failures(tables, [known]) == [{**known, "test": True}]


@pytest.mark.parametrize(
    "shown",
    [
        "Spatial stream",
        "66.7",
        "temporal weight 0.65",
        "1f3a9c2e04b7",
        "stack.length",
        "tvl1",
        "scikit-learn",
        "Misclassified by the fused average: 2",
        "clip4",
        "Used, but odd: 1",
        "68 of 444 promised frames decode",
        "1 test clip failed and counts as wrong",
        "Weights of step 6",
    ],
)
def test_the_page_shows_what_it_should(html, shown):
    assert shown in re.sub(r"\s+", " ", Page(html).text)


def test_the_page_holds_its_drawings(html):
    assert Page(html).tags.count("svg") == 4


def test_tables_scroll_inside_their_own_container(hostile_page, html):
    assert re.search(r"\.wide \{[^}]*overflow-x: auto", html)
    for shown in (hostile_page, Page(html)):
        assert shown.tags.count("table") >= 9 and not shown.loose_tables


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    write(folder, **arguments())
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory) -> Page:
    folder = tmp_path_factory.mktemp("hostile")
    given = arguments(ids=HOSTILE, classes=tuple(f"{name} class" for name in HOSTILE[:3]))
    given |= {"dataset": HOSTILE[0], "split": HOSTILE[1]}
    given["failed"] = [{"id": HOSTILE[5], "stage": HOSTILE[0], "reason": HOSTILE[3]}]
    given["odd"] = {HOSTILE[0]: HOSTILE[4]}
    given["settings"] = {HOSTILE[0]: {HOSTILE[3]: HOSTILE[5]}}
    given["stages"] = [{"stage": HOSTILE[0], HOSTILE[3]: HOSTILE[1]}]
    write(folder, **given)
    for drawing in (folder / "figures").glob("*.svg"):
        ElementTree.parse(drawing)  # well-formed, whatever the class names
    return Page((folder / "report.html").read_bytes().decode("utf-8"))


def test_hostile_names_are_only_text(hostile_page):
    assert not {"script", "img", "iframe", "object", "link", "form"} & set(hostile_page.tags)
    assert not [name for name in hostile_page.attributes if name.startswith("on")]
    assert '<script>alert("x")</script>' in hostile_page.text
    assert "<img src=http://evil.example/x.png>" in hostile_page.text
    assert "{{ 7*7 }}" in hostile_page.text
    assert "broken\ufffd\ufffdname" in hostile_page.text


def test_the_page_fetches_nothing(hostile_page):
    assert hostile_page.addresses
    assert all(address.startswith("#") for address in hostile_page.addresses)


def test_the_style_fetches_nothing(html):
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}


@pytest.mark.parametrize("num_classes", [2, 31, 101])
def test_labels_of_the_drawings_do_not_overlap(num_classes):
    labels = np.arange(2 * num_classes) % num_classes
    classes = [f"SomeLongAction{i}" for i in range(num_classes)]
    given = arguments(labels, labels, (labels + 1) % num_classes, classes=classes)
    for figure in figures.draw(metrics.join(given["streams"], given["fused"]), {}).values():
        figure.draw_without_rendering()
        for axes in figure.axes:
            boxes = sorted((label.get_window_extent() for label in axes.get_yticklabels()), key=lambda box: box.y0)
            # a line of text is given a tenth more than its letters fill
            assert all(low.y1 <= high.y0 + 0.1 * high.height for low, high in zip(boxes, boxes[1:], strict=False))


def test_bars_have_the_length_of_the_accuracy():
    given = arguments()
    (axes,) = figures.class_bars(metrics.join(given["streams"], given["fused"])).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    lengths = {
        kind: dict(zip(names, (bar.get_width() for bar in bars), strict=True))
        for kind, bars in zip(("average", "spatial", "temporal"), axes.containers, strict=True)
    }
    assert names[0] == "x"  # the fused average gets both of its clips right
    assert lengths["average"] == {"x": 1.0, "y": 0.5, "z": 0.0}
    assert lengths["spatial"] == {"x": 0.5, "y": 1.0, "z": 0.0}
    assert lengths["temporal"] == {"x": 1.0, "y": 0.5, "z": 0.5}


def test_inline_drawings_follow_the_theme_and_share_no_ids():
    first, second = (figures.inline(figures.training(CURVE, "spatial"), name) for name in ("one", "two"))
    assert "var(--spatial)" in first and figures.COLORS["spatial"] not in first
    assert not set(re.findall(r'\bid="([^"]+)"', first)) & set(re.findall(r'\bid="([^"]+)"', second))
    assert "<metadata" not in first and first.startswith("<svg ")
    ElementTree.fromstring(first)


@pytest.mark.parametrize(
    "curve",
    [{}, {"validation": [{"step": 4, "top1": 0.5}]}, {"steps": [1], "loss": [2.0]}],
    ids=["empty", "only validation", "only loss"],
)
def test_a_curve_may_lack_what_it_likes(tmp_path, curve):
    numbers = write(tmp_path, **arguments(curves={"spatial": curve}))
    assert numbers["training"]["spatial"]["best_step"] is None


def test_a_page_without_validation_clips_claims_no_choice(tmp_path):
    curve = {**CURVE, "validation": []}
    given = arguments(curves={"spatial": curve}, fusion={"average": {"weight": 0.5, "val_top1": None}})
    given["fused"] = {"average": given["fused"]["average"]}
    write(tmp_path, **given)
    html = (tmp_path / "report.html").read_text()
    assert "Nothing was chosen: without validation clips the weights of the last step are kept" in html
    assert "The plain mean, which has nothing to choose" in html and "and a p just below 0.05 is no proof" in html
    assert "on validation clips" not in html and "1 fusions" not in html
    titles = [[axes.get_title(loc="left") for axes in figures.training(c, "spatial").axes] for c in (curve, CURVE)]
    assert titles == [["loss", "learning rate"], ["loss", "validation accuracy", "learning rate"]]


@pytest.mark.parametrize(("choice", "said"), [({"chosen_from": [1.0]}, True), ({"note": "given"}, False)])
def test_a_c_that_was_given_is_not_called_chosen(tmp_path, choice, said):
    svm = {"c": 1.0, "choice": choice, "fitted_top1": 1.0}
    write(tmp_path, **arguments(fusion={**arguments()["fusion"], "svm": svm}))
    assert ("the SVM with its C were chosen" in (tmp_path / "report.html").read_text()) == said


def test_the_page_tells_where_and_how_a_stream_was_trained(tmp_path):
    write(tmp_path, **arguments(curves={"spatial": {**CURVE, "device": "abacus", "precision": "bfloat16"}}))
    assert "in bfloat16 on abacus." in (tmp_path / "report.html").read_text()


def test_same_input_same_bytes(tmp_path):
    for run in ("first", "second"):
        write(tmp_path / run, **arguments())
    names = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*"))
    assert len(names) == 10 and not [name for name in names if name.name.startswith(".")]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_metrics_come_last(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(report.page, "render", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, **arguments())
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "report.html").exists()


def test_refusals():
    given = arguments()
    with pytest.raises(ValueError, match="needs the scores of temporal, average; it got spatial, svm"):
        metrics.join({"spatial": given["streams"]["spatial"]}, {"svm": given["fused"]["svm"]})
    empty = Scores([], np.zeros((0, 2)), [], ["x", "y"])
    with pytest.raises(ValueError, match="the test part has no clips"):
        metrics.join({"spatial": empty, "temporal": empty}, {"average": empty})
