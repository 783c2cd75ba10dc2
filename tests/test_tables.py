"""A table of the paper beside ours, against means, spreads and differences made by hand."""

import dataclasses
import json
import re

import numpy as np
import pytest
from pages import HOSTILE, Page
from scored import table as scores

from pipeline.report import page, paper, tables
from pipeline.report.paper import Row, Table
from pipeline.report.tables import Result, Trial

ROW = Row(key="a", words="one field", paper={"ucf101": 73.9}, score="temporal")
TABLE = Table(name="1b", title="Temporal stream", rows=(ROW,))


def trial(right: str, split="1", seed=0, **values) -> Trial:
    return Trial(split=split, seed=seed, scores=scores(right, [f"{split}/{i}" for i in range(len(right))], **values))


def collected(*trials: Trial, table=TABLE, **values) -> dict:
    return tables.collect(table, "toy", [Result(row=table.rows[0], trials=trials)], **values)


def test_splits_count_alike_or_all_clips_do():
    trials = trial("1100", "1"), trial("111111", "2")
    (apart,) = collected(*trials)["rows"]
    (pooled,) = collected(*trials, pooled=True)["rows"]
    assert apart["top1"] == pytest.approx((0.5 + 1) / 2) and pooled["top1"] == pytest.approx(8 / 10)
    assert apart["clips"] == pooled["clips"] == 10
    assert "per cent, mean over splits 1, 2 (" in tables.markdown(collected(*trials))
    assert "per cent, of the clips of all splits 1, 2;" in tables.markdown(collected(*trials, pooled=True))
    assert apart["top1_lowest"] == apart["top1_highest"] == apart["top1"]
    assert apart["mean_class"] == pytest.approx((0.5 + 1) / 2)


def test_seeds_are_averaged_and_their_ends_are_reported():
    seeds = [trial("1000", seed=0), trial("1111", seed=1), trial("111-", seed=2)]
    numbers = collected(*seeds)
    (row,) = numbers["rows"]
    assert row["top1"] == pytest.approx((0.25 + 1 + 0.75) / 3)
    assert (row["top1_lowest"], row["top1_highest"]) == (0.25, 1.0)
    assert row["mean_class"] == pytest.approx((0.25 + 1 + 0.75) / 3)
    assert row["clips"] == 4 and [t["failed"] for t in row["trials"]] == [0, 0, 1]
    assert numbers["seeds"] == [0, 1, 2] and numbers["splits"] == ["1"]
    text = tables.markdown(numbers)
    assert "66.7 | 25.0 to 100.0 |" in text and "per cent, split 1; mean of seeds 0, 1, 2;" in text


def test_the_interval_is_over_groups_however_many_seeds():
    groups = list("aabbccddeeffgghh")
    one = collected(trial("1110" * 4, groups=groups))
    two = collected(*(trial("1110" * 4, seed=seed, groups=groups) for seed in (0, 1)))
    assert (one["intervals"]["unit"], one["intervals"]["units"]) == ("groups", 8)
    assert one["rows"][0]["interval"]["top1"] == pytest.approx(two["rows"][0]["interval"]["top1"])
    low, high = one["rows"][0]["interval"]["top1"]
    assert low <= 0.75 <= high and low < high
    text = tables.markdown(one)
    assert "over 8 groups" in text and f"| 75.0 | {100 * low:.1f} to {100 * high:.1f} |" in text
    assert "| 75.0 | 75.0 to 75.0 | " in tables.markdown(two)  # of both seeds


def test_a_difference_is_given_on_the_papers_clips_only(monkeypatch):
    monkeypatch.setattr(tables, "TEST_CLIPS", {"ucf101": {"1": 4, "2": 4, "3": 4}})
    (row,) = collected(trial("1110"), on="ucf101")["rows"]
    assert row["difference"] == pytest.approx(0.75 - 0.739) and row["paper"] == {"ucf101": 0.739}
    numbers = collected(trial("1110"), on="ucf101")
    assert numbers["compared_with"] == "UCF-101" and numbers["no_difference"] == []
    assert numbers["sets"] == {"ucf101": "UCF-101"}
    assert "| +1.1 |" in tables.markdown(numbers) and "for orientation" not in tables.markdown(numbers)
    for trials, on, why in [
        ([trial("1110")], "", "another dataset than the paper's"),
        ([trial("1110")], "hmdb51", "another dataset than the paper's"),
        ([trial("1110", "2")], "ucf101", "split 2; the paper's figures are of split 1"),
        ([trial("1110", "1"), trial("1110", "2")], "ucf101", "split 1, 2; the paper's figures are of split 1"),
        ([trial("11")], "ucf101", "split 1 has 2 test clips; that of UCF-101 has 4"),
    ]:
        numbers = collected(*trials, on=on)
        assert numbers["rows"][0]["difference"] is None and numbers["no_difference"] == [why]
        assert numbers["compared_with"] == ""
    three = [trial("1110", split) for split in "312"]  # as `--splits 3,1,2` runs them
    assert collected(*three, on="ucf101", table=dataclasses.replace(TABLE, split="all"))["no_difference"] == []


def test_a_row_whose_fusion_cannot_answer_all_classes_says_so():
    first, second = trial("1100", "1"), trial("1110", "2")
    absent = second.scores.classes[-1:]
    clips = second.scores.per_class()[1][-1]
    lost = [Trial(**{**vars(second), "never_answers": absent})]
    (row,) = collected(first, *lost)["rows"]
    told = "chose among fewer classes: up to 1 has no validation clip and cannot be answered"
    assert row["setup"].startswith(told) and (f"so that {clips} test clips count" in row["setup"]) == bool(clips)
    assert collected(first)["rows"][0]["setup"] == ""


def results() -> list[Result]:
    """Two measured rows, one that failed after a seed, one that was not run, one of others."""
    others = Row(key="o", words="others", paper={"hmdb51": 66.8})
    return [
        Result(row=ROW, trials=[trial("1110")], changes={"stack_length": "1"}),
        Result(row=ROW, trials=[trial("1100")], reason="TrainStream: diverged", failed=True),
        Result(row=ROW, reason="needs a second dataset"),
        Result(row=others, reason="published only"),
    ]


def test_rows_without_figures_keep_their_places(tmp_path):
    numbers = tables.write(
        tmp_path, table=TABLE, dataset="toy", results=results(), inputs="key", setup={"flow": "tvl1"}
    )
    assert numbers == json.loads((tmp_path / "table.json").read_text()) and numbers["inputs"] == "key"
    assert [row["state"] for row in numbers["rows"]] == ["measured", "failed", "not run", "published"]
    assert [row["top1"] for row in numbers["rows"]] == [0.75, None, None, None]
    assert numbers["sets"] == {"ucf101": "UCF-101", "hmdb51": "HMDB-51"}
    lines = (tmp_path / "table.md").read_text().splitlines()
    body = [line for line in lines if line.startswith("|")]
    assert len(body) == 6 and len({line.replace("\\|", "").count("|") for line in body}) == 1
    assert "All rows: flow: tvl1." in lines[-1]
    assert "| failed: TrainStream: diverged |" in body[3] and "| not run: needs a second dataset |" in body[4]
    assert body[5].startswith("| others | - | 66.8 |") and body[2].startswith("| one field | 73.9 | - | 75.0 |")
    shown = Page((tmp_path / "table.html").read_text())
    for text in ("1 row measured", "1 failed", "stack_length = 1", "needs a second dataset", "tvl1", "66.8", "75.0"):
        assert text in re.sub(r"\s+", " ", shown.text), text
    assert "script" not in shown.tags and not shown.addresses
    assert shown.tags.count("table") == 2 and not shown.loose_tables


def test_rows_without_figures_have_as_many_cells_beside_rows_of_several_seeds():
    seeds = Result(row=ROW, trials=[trial("1110"), trial("1100", seed=1)])
    text = tables.markdown(tables.collect(TABLE, "toy", [seeds, *results()[1:]]))
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_table_without_any_figure_is_a_table(tmp_path):
    numbers = tables.write(tmp_path, table=TABLE, dataset="toy", results=results()[2:])
    assert numbers["intervals"] is None and "No row was measured." in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("name", paper.TABLES)
def test_every_table_of_the_paper_has_as_many_cells_in_each_row(name):
    of = [Result(row=row, trials=[trial("1110")] if row.score else []) for row in paper.TABLES[name].rows]
    numbers = tables.collect(paper.TABLES[name], "toy", of)
    html = page.render_table(numbers)
    body = html.split("<tbody>")[1].split("</tbody>")[0]
    columns = html.split("<thead>")[1].split("</thead>")[0].count("<th")
    rows = re.findall(r"<tr>.*?</tr>", body, re.S)
    for row in rows:
        spans = [int(n) for n in re.findall(r'colspan="(\d+)"', row)]
        assert row.count("<td") + sum(spans) - len(spans) == columns
    assert len(rows) == len(paper.TABLES[name].rows)
    widths = {line.count("|") for line in tables.markdown(numbers).splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_rows_of_one_seed_each_are_no_mean_over_seeds():
    """The streams may have seeds of their own; repeated trainings are those of one row."""
    of = [Result(row=ROW, trials=[trial("1100", seed=seed)]) for seed in (0, 7, "0 and 7")]
    numbers = tables.collect(TABLE, "toy", of)
    text, html = tables.markdown(numbers), page.render_table(numbers)
    assert "split 1; seeds 0, 7, 0 and 7, one for each row;" in text and "lowest to highest" not in text
    assert "mean over seeds" not in html and "lowest" not in html and "seeds 0, 7, 0 and 7" in html
    several = collected(trial("1100", seed=0), trial("1100", seed=1))
    assert "; mean of seeds 0, 1;" in tables.markdown(several) and "mean over seeds" in page.render_table(several)


def test_nothing_of_a_name_or_reason_is_markup(tmp_path):
    bad = dataclasses.replace(ROW, words=HOSTILE[3])
    of = [
        Result(row=ROW, trials=[trial("1110", HOSTILE[0])], changes={HOSTILE[3]: HOSTILE[5]}),
        Result(row=bad, reason=HOSTILE[0] + " | x\ny", failed=True),
    ]
    tables.write(tmp_path, table=TABLE, dataset=HOSTILE[5], results=of, setup={HOSTILE[1]: HOSTILE[3]})
    shown = Page((tmp_path / "table.html").read_bytes().decode("utf-8"))
    assert not {"script", "img"} & set(shown.tags) and not shown.addresses and "onload" not in shown.attributes
    assert HOSTILE[3] in shown.text and "{{ 7*7 }}" in shown.text
    text = (tmp_path / "table.md").read_text()
    assert "<script" not in re.sub(r"\\.", "", text) and "\n" not in text.split("failed: ")[1].split(" |")[0]
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 4


def test_means_agree_with_plain_numpy():
    rng = np.random.default_rng(0)
    said = {(split, seed): "".join(rng.choice(list("10"), 20)) for split in "12" for seed in (0, 1)}
    (row,) = collected(*(trial(right, split, seed) for (split, seed), right in said.items()))["rows"]
    by_seed = [np.mean([said[s, seed].count("1") / 20 for s in "12"]) for seed in (0, 1)]
    assert row["top1"] == pytest.approx(np.mean(by_seed))
    assert (row["top1_lowest"], row["top1_highest"]) == pytest.approx((min(by_seed), max(by_seed)))
