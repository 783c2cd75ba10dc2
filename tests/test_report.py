"""The numbers and drawings of a report against counts made by hand."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from pages import Page
from reports import CURVE, arguments, certain, grouped, write

from pipeline import report
from pipeline.report import figures, metrics
from pipeline.scores import Scores

BEST = {"last_step": 6, "best_step": 6, "device": "cpu, 1 thread", "precision": "float32"}


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


def test_a_headline_tells_what_no_figure_covers_and_what_is_easier(tmp_path):
    fusion = {"weighted": {"weight": 0.65}, "svm": {"c": 1.0, "coefficients": [], "absent": ["z"]}}
    numbers = write(tmp_path, **arguments(fusion=fusion, absent=["z/b.avi", "z/a.avi"]))
    assert numbers["absent"] == ["z/b.avi", "z/a.avi"]
    first, *_, easier, last = metrics.headline_text(numbers).splitlines()
    assert first == "toy, split 1: 6 test clips; 2 listed videos, of any part, are absent and in no figure"
    told = "the svm chose among 2 classes: 1 has no validation clip and cannot be answered, so that"
    assert easier.startswith(f"{told} {numbers['per_class']['z']['clips']} test clips count as wrong")
    assert numbers["per_class"]["z"]["clips"] > 0
    assert metrics.never_answered_text(2, 0).endswith(
        "; without test clips of these either, the task is easier than that of the others"
    )
    assert last.startswith("intervals: groups are unknown, so clips are resampled as if each were independent")
    page = (tmp_path / "report.html").read_text()
    assert "2 listed videos, of any part, are absent" in page and "C = 1; never answers 1 class<" in page
    assert "test clips of 3 of 3 classes are right" in page
    assert {name: row["against_stream"]["never_answers"] for name, row in numbers["fused"].items()}["svm"] == 1
    without = metrics.headline_text(write(tmp_path, **arguments()))
    assert "absent" not in without and "the svm chose" not in without
    assert "intervals: " not in metrics.headline_text(write(tmp_path, **grouped()))


def test_failed_clips_of_all_parts_are_counted_once():
    given = arguments(failed=[{"id": name, "stage": "flow", "reason": "empty"} for name in ("of training", "clip5")])
    background = metrics.Background(
        **{name: given[name] for name in metrics.Background.__dataclass_fields__ if name in given}
    )
    tables = metrics.join(given["streams"], given["fused"])
    numbers = metrics.collect(tables, background, dataset="toy", split="1")
    assert (numbers["num_failed"], numbers["num_failed_all_parts"]) == (1, 2)
    silent = metrics.collect(tables, replace(background, failed=[]), dataset="toy", split="1")
    assert (silent["num_failed"], silent["num_failed_all_parts"]) == (1, 1)


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


def test_a_clip_that_failed_in_two_stages_is_reported_once():
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


def test_same_input_same_bytes(tmp_path):
    for run in ("first", "second"):
        write(tmp_path / run, drawn=True, **arguments())
    names = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*"))
    assert len(names) == 10 and not [name for name in names if name.name.startswith(".")]
    assert all((tmp_path / "first" / name).stat().st_size > 1000 for name in names)
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


def test_accuracy_by_group(tmp_path):
    numbers = write(tmp_path, **grouped())
    assert numbers["per_group"]["person0"] == {
        "clips": 4,
        **dict.fromkeys(("spatial", "temporal", "average", "weighted"), 0.75),
    }
    assert [row["average"] for row in numbers["per_group"].values()] == [0.75, 1, 1, 1, 1]
    shown = Page((tmp_path / "report.html").read_text()).text
    assert "Accuracy by group" in shown and shown.index("person0") < shown.index("person1")


@pytest.mark.parametrize("given", [arguments(), grouped(clips=5)], ids=["unknown", "of one clip each"])
def test_groups_that_tell_nothing_are_left_out(tmp_path, given):
    assert write(tmp_path, **given)["per_group"] == {}
    assert "Accuracy by group" not in (tmp_path / "report.html").read_text()


def test_the_headline_as_text(tmp_path):
    numbers = write(tmp_path, **grouped())
    low, high = numbers["spatial"]["top1_interval"]
    lines = metrics.headline_text(numbers).splitlines()
    assert lines[1].split() == ["top-1", "95", "%", "interval", "mean", "class"]
    assert lines[2].split() == ["spatial", "95.0%", f"{low:.1%}", "to", f"{high:.1%}", "95.0%"]


def test_where_the_streams_agree_and_what_fusion_adds(tmp_path):
    numbers = write(tmp_path, **arguments())
    assert numbers["agreement"]["only_spatial"] == {"clips": 1, "fused_right": 0}  # clip 2
    assert numbers["fused"]["average"]["against_stream"] == {
        "stream": "temporal",
        "difference": pytest.approx(-1 / 6),
        "difference_interval": None,
        "only_fusion": 0,
        "only_stream": 1,
        "mcnemar_p": 1.0,
        "never_answers": 0,
    }


def test_pairs_of_confused_classes_come_most_frequent_first():
    table = certain([1, 0, 0, 2, 2, 2, 0], [0, 1, 1, 1, 1, 1, 0], ("x", "y", "z"))
    found = [(row["truth"], row["predicted"], row["clips"]) for row in metrics.confused_pairs(table)]
    assert found == [("y", "z", 3), ("y", "x", 2), ("x", "y", 1)]
    assert [row["clips"] for row in metrics.confused_pairs(table, most=2)] == [3, 2]


def test_a_wrong_clip_has_the_probability_of_what_was_said_and_of_the_truth():
    table = certain([1, 0], [0, 0], ("x", "y", "z"))
    (row,) = metrics.misclassified(dict.fromkeys(("spatial", "temporal", "average"), table))
    assert (row["p_predicted"], row["p_truth"]) == (pytest.approx(0.9), pytest.approx(0.05))
