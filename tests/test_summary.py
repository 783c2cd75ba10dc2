"""The table over splits and seeds, against means and counts made by hand."""

import json
import re

import numpy as np
import pytest
from pages import HOSTILE, Page
from scored import table

from pipeline.report import page, summary
from pipeline.report.summary import Run

CLASSES = ("x", "y")


def run(split="anna", seed=0, spatial="1100", temporal="1010", average="1110", **changes) -> Run:
    ids = [f"{split}{i}" for i in range(len(spatial))]
    said = {"spatial": spatial, "temporal": temporal, "average": average, "svm": average}
    groups, classes = changes.get("groups", [split] * len(ids)), changes.get("classes", CLASSES)
    of = {name: table(right, ids, groups, classes) for name, right in said.items()}
    fusion = {"weighted": {"weight": 0.55}, "svm": {"c": 0.1}}
    streams, fused = ({name: of[name] for name in names} for names in (("spatial", "temporal"), ("average", "svm")))
    return Run(split=split, seed=seed, streams=streams, fused=fused, fusion=fusion, page=changes.get("page", ""))


def test_means_spreads_and_pooled_counts_by_hand(tmp_path):
    runs = [run(), run("ben", spatial="000000", temporal="111111", average="11111-")]
    numbers = summary.write(tmp_path, dataset="toy", runs=runs, inputs="key")
    assert numbers == json.loads((tmp_path / "summary.json").read_text()) and numbers["inputs"] == "key"
    assert [(row["split"], row["num_test"], row["num_failed"], row["svm_c"]) for row in numbers["runs"]] == [
        ("anna", 4, 0, 0.1),
        ("ben", 6, 1, 0.1),
    ]
    assert numbers["runs"][0]["spatial"] == {"top1": 0.5, "mean_class": 0.5, "correct": 2}
    mean = numbers["mean"]["average"]
    assert mean["top1"] == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert mean["top1_std_splits"] == pytest.approx(abs(3 / 4 - 5 / 6) / np.sqrt(2))
    assert mean["top1_std_seeds"] is None
    pooled = numbers["pooled"]["average"]
    assert (pooled["correct"], pooled["total"], pooled["top1"]) == (8, 10, 0.8)
    assert list(numbers["against_stream"]) == ["average", "svm"]
    against = numbers["against_stream"]["svm"]  # temporal has 2 + 6 right, spatial 2 + 0
    assert (against["stream"], against["only_fusion"], against["only_stream"]) == ("temporal", 1, 1)
    assert against["mcnemar_p"] == 1
    assert numbers["clips_tested_more_than_once"] == 0
    assert "there are too few groups to resample, 2 of at least 5" in numbers["intervals"]["note"]


def test_an_svm_that_cannot_answer_all_classes_is_told_to_have_an_easier_task(tmp_path):
    few = Run(**{**vars(run("ben")), "fusion": {"svm": {"c": 0.1, "absent": ["y"]}}})
    assert few.fused["average"].per_class()[1].tolist() == [2, 2]
    numbers = summary.write(tmp_path, dataset="toy", runs=[run(), few])
    told = (
        "In 1 of 2 runs the svm chose among fewer classes: up to 1 has no validation clip and cannot be answered, "
        "so that 2 test clips count as wrong"
    )
    assert numbers["note"].startswith(told)
    assert told in (tmp_path / "summary.md").read_text().splitlines()[-1]
    assert told in " ".join((tmp_path / "summary.html").read_text().split())
    assert {n: against["never_answers"] for n, against in numbers["against_stream"].items()} == {"average": 0, "svm": 1}
    assert summary.write(tmp_path, dataset="toy", runs=[run()])["note"] == ""


def test_spread_between_seeds_is_that_of_means_over_splits():
    found = {("anna", 0): "1111", ("anna", 1): "1100", ("ben", 0): "1000", ("ben", 1): "1110"}
    mean = summary.collect("toy", [run(s, n, average=right) for (s, n), right in found.items()])["mean"]["average"]
    assert mean["top1"] == pytest.approx((1 + 0.5 + 0.25 + 0.75) / 4)
    assert mean["top1_std_splits"] == pytest.approx(np.std([0.75, 0.5], ddof=1))
    assert mean["top1_std_seeds"] == pytest.approx(np.std([0.625, 0.625], ddof=1))


def test_seeds_add_no_clips_to_what_an_interval_rests_on():
    names = "abcdefgh"
    once = [run(name, 0, average="1110" if name < "e" else "1000") for name in names]
    thrice = [run(name, seed, average="1110" if name < "e" else "1000") for seed in range(3) for name in names]
    one, three = summary.collect("toy", once), summary.collect("toy", thrice)
    assert one["pooled"]["average"]["top1_interval"] == pytest.approx(three["pooled"]["average"]["top1_interval"])
    assert (three["intervals"]["unit"], three["intervals"]["units"]) == ("groups", 8)
    assert three["clips_tested_more_than_once"] == 64
    assert three["against_stream"]["average"]["mcnemar_p"] is None
    assert one["against_stream"]["average"]["mcnemar_p"] is not None


def test_of_few_groups_a_clip_is_one_clip_whatever_the_seeds():
    found = summary.collect("toy", [run(seed=seed) for seed in range(3)])["intervals"]
    assert (found["unit"], found["units"]) == ("clips", 4)


def test_the_numbers_come_last(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(summary, "markdown", fail)
    with pytest.raises(OSError, match="disk full"):
        summary.write(tmp_path, dataset="toy", runs=[run()])
    assert not (tmp_path / "summary.json").exists()


def test_without_groups_a_clip_is_its_own():
    runs = [run(split, seed, groups=None) for split in ("a", "b") for seed in (0, 1)]
    assert summary.collect("toy", runs)["intervals"]["units"] == 8


def test_the_markdown_table(tmp_path):
    summary.write(tmp_path, dataset="to|y", runs=[run(), run("ben", average="1111")])
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert lines[0] == r"to\|y"
    assert lines[2] == "| split | clips | spatial | temporal | average | svm |"
    assert lines[4] == "| anna | 4 | 50.0% (2) | 50.0% (2) | 75.0% (3) | 75.0% (3) |"
    assert lines[6] == "| mean |  | 50.0% | 50.0% | 87.5% | 87.5% |"
    assert lines[7] == "| standard deviation between splits |  | 0.0% | 0.0% | 17.7% | 17.7% |"
    assert lines[8].startswith("| pooled | 8 | 50.0% (4) | ")
    assert lines[9].startswith("| 95 % interval |  | 21.5% to 78.5% | ")  # Wilson's for 4 of 8
    assert lines[10] == "| mean class accuracy |  | 50.0% | 50.0% | 87.5% | 87.5% |"
    assert len({line.count("|") for line in lines[2:10]}) == 1
    assert (
        "Interval: BCa bootstrap over 8 clips, widened by Student's t (there are too few groups to resample, 2 of at least 5"
        in lines[-1]
    )
    assert (
        "; where fewer than 5 clips are wrong, or fewer than 5 right (counting only classes of several clips with right and wrong clips), Wilson's for 8"
        in lines[-1]
    )
    told = json.loads((tmp_path / "summary.json").read_text())
    # four of eight clips are wrong in each stream, one in the fusion: nowhere five
    methods = {name: told["pooled"][name]["top1_interval_method"] for name in ("spatial", "average")}
    assert methods == {"spatial": "Wilson", "average": "Wilson"}


def test_the_page_shows_the_table_and_leads_to_the_reports(tmp_path):
    runs = [run(seed=seed, page="../../report/anna-1/report.html") for seed in (0, 1)]
    summary.write(tmp_path, dataset="toy", runs=runs)
    found = Page((tmp_path / "summary.html").read_text())
    assert found.addresses == ["./../../report/anna-1/report.html"] * 2
    assert found.tags.count("table") == 2 and not found.loose_tables
    text = re.sub(r"\s+", " ", found.text)
    for shown in (
        "1 split, 2 seeds",
        "75.0 (3)",
        "± between seeds",
        "95 % interval",
        "Clips were tested more than once",
    ):
        assert shown in text


def test_the_page_claims_no_choice_that_was_not_made(tmp_path):
    full = run()
    weighted = Run(**{**vars(full), "fused": {"average": full.fused["average"], "weighted": full.fused["svm"]}})
    alone = Run(**{**vars(full), "fused": {"average": full.fused["average"]}})
    for of, chosen in ((weighted, True), (alone, False)):
        summary.write(tmp_path, dataset="toy", runs=[of])
        text = (tmp_path / "summary.html").read_text()
        assert ("Everything was chosen on validation clips" in text) == chosen != ("Nothing was chosen" in text)


def test_hostile_names_are_only_text(tmp_path):
    runs = [run(name, page="javascript:alert(1)") for name in HOSTILE]
    summary.write(tmp_path, dataset=HOSTILE[0], runs=runs)
    found = Page((tmp_path / "summary.html").read_text())
    assert not {"script", "img"} & set(found.tags) and not [a for a in found.attributes if a.startswith("on")]
    assert all(address.startswith("./") for address in found.addresses)
    assert '<script>alert("x")</script>' in found.text
    rows = [line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "there is no run to summarize"),
        ([run(), run()], "split 'anna' with seed 0 appears twice"),
        (
            [
                run(),
                Run(split="b", seed=0, streams=run().streams, fused={"average": run().fused["average"]}, fusion={}),
            ],
            "split 'b' has other classes or fusions than split 'anna'",
        ),
        ([run(), run("b", classes=("x", "z"))], "split 'b' has other classes or fusions than split 'anna'"),
    ],
)
def test_refusals(runs, message):
    with pytest.raises(ValueError, match=message):
        summary.collect("toy", runs)


@pytest.mark.parametrize(
    ("difference", "interval", "p", "said"),
    [
        (0.1, (0.02, 0.2), 0.01, "fusion is better"),
        (-0.1, (-0.2, -0.02), 0.01, "the stream is better"),
        (0.1, (-0.01, 0.2), 0.01, "no clear difference"),
        (0.1, (0.02, 0.2), 0.2, "no clear difference"),
        (0.1, (0.02, 0.2), None, "fusion is better"),
        (0.1, None, None, "no clear difference"),
        (0.1, None, 0.01, "no clear difference"),
    ],
)
def test_a_comparison_in_words(difference, interval, p, said):
    against = {
        "difference": difference,
        "difference_interval": interval,
        "mcnemar_p": p,
        "only_fusion": 5,
        "only_stream": 1,
        "never_answers": 0,
    }
    assert page.verdict(against) == said
    better = said == "fusion is better"
    assert page.verdict({**against, "never_answers": 2}) == said + ", choosing among fewer classes" * better
    assert page.verdict({**against, "only_fusion": 0, "only_stream": 0}) == "right on the same clips"


def test_the_markdown_table_of_several_seeds_keeps_its_columns(tmp_path):
    summary.write(tmp_path, dataset="toy", runs=[run(seed=0), run(seed=1, average="1111")])
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert lines[2] == "| split | seed | clips | spatial | temporal | average | svm |"
    assert lines[5] == "| anna | 1 | 4 | 50.0% (2) | 50.0% (2) | 100.0% (4) | 100.0% (4) |"
    assert lines[6] == "| mean |  |  | 50.0% | 50.0% | 87.5% | 87.5% |"
    assert lines[7] == "| standard deviation between seeds |  |  | 0.0% | 0.0% | 17.7% | 17.7% |"
    assert lines[8].startswith("| pooled |  | 8 | 50.0% (4) | ")
    assert len({line.count("|") for line in lines[2:11]}) == 1
