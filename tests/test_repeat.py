"""All splits of a dataset as one command: which there are, what is run, what is written, what is refused."""

import json

import pytest
from chains import build, fresh, luigi_command, snapshot
from conftest import ROOT

from tasks import AllSplits, PaperTable, Report
from tasks.repeat import seed_of


def test_every_person_is_left_out_in_turn(tiny):
    assert [task.split_name for task in fresh(AllSplits, dataset=tiny).requires()] == ["anna", "ben", "cleo", "dan"]


def test_the_demo_has_three_splits_before_it_is_written(config, tmp_path):
    lists = {"videos": str(tmp_path / "demo/videos"), "lists": str(tmp_path / "demo/ucfTrainTestlist")}
    config.read_dict({"dataset.made": {"layout": "ucf101", "generator": "demo", **lists}})
    assert fresh(AllSplits, dataset="made").split_list == ["1", "2", "3"]


def test_one_table_of_two_persons(tiny, tmp_path, capsys):
    two = {"dataset": tiny, "splits": "dan,anna"}
    assert build(fresh(AllSplits, **two))
    done = [line.split()[0] for line in capsys.readouterr().err.splitlines() if ": done in" in line]
    assert done[:3] == ["Catalog", "Catalog", "Frames"]  # so a video that is added now is in all catalogs or in none
    folder = fresh(AllSplits, **two).folder
    numbers = json.loads((folder / "summary.json").read_text())
    assert numbers["splits"] == [row["split"] for row in numbers["runs"]] == ["dan", "anna"]
    assert numbers["pooled"]["average"]["total"] == 4 and numbers["seeds"] == [0]
    for row in numbers["runs"]:
        assert (folder / row["page"]).is_file()
        report = json.loads((folder / row["page"]).with_name("metrics.json").read_text())
        assert (report["split"], report["num_test"]) == (row["split"], 2)
        for name, of in {"spatial": report["spatial"], **report["fused"]}.items():
            assert row[name]["correct"] == of["correct"]
    pooled = sum(row["svm"]["correct"] for row in numbers["runs"])
    assert numbers["pooled"]["svm"]["correct"] == pooled
    assert (folder.parent / "latest").resolve() == folder.resolve()
    assert "summary.html" in [path.name for path in folder.iterdir()]

    before = snapshot(tmp_path / "artifacts")
    assert fresh(AllSplits, **two).complete() and build(fresh(AllSplits, **two))
    assert snapshot(tmp_path / "artifacts") == before  # nothing to do: nothing is written


def test_splits_and_seeds_may_be_named(tiny):
    task = fresh(AllSplits, dataset=tiny, splits="dan, anna", seeds="0,3")
    assert [(t.split_name, t.seed) for t in task.requires()] == [("dan", 0), ("dan", 3), ("anna", 0), ("anna", 3)]
    assert task.label == "2splits-2seeds"
    assert fresh(AllSplits, dataset=tiny, splits="dan").requires() == [fresh(Report, dataset=tiny, split="dan")]
    digests = {fresh(AllSplits, dataset=tiny, seeds=seeds).digest for seeds in ("0", "1", "0,1")}
    assert len(digests) == 3


def test_other_settings_are_another_summary(tiny, config):
    before = fresh(AllSplits, dataset=tiny).digest
    config.set("fusion", "weight_step", "0.1") if config.has_section("fusion") else config.read_dict(
        {"fusion": {"weight_step": "0.1"}}
    )
    assert fresh(AllSplits, dataset=tiny).digest != before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"seeds": "0,x"}, "--seeds is '0,x'; 'x' is not a whole number from 0 up"),
        ({"seeds": "-1"}, "'-1' is not a whole number"),
        ({"seeds": "9" * 5000}, "' is not a whole number from 0 up"),
        ({"seeds": "1,1"}, "--seeds is '1,1'; it must be different names, separated by commas"),
        ({"seeds": "1,01"}, "--seeds is '1,01'; it must be different names"),
        ({"splits": "a,,b"}, "--splits is 'a,,b'; it must be different names"),
    ],
)
def test_wrong_lists_are_refused(tiny, parameters, message):
    with pytest.raises(ValueError, match=message):
        fresh(AllSplits, dataset=tiny, **parameters).requires()


def test_seeds_that_a_stream_does_not_follow_are_refused(tiny, config):
    config.read_dict({"temporal": {"seed": "7"}})
    assert not fresh(AllSplits, dataset=tiny, seeds="0,1").complete()  # --seeds wins over a section ...
    message = r"--seeds is '0,1', but \[temporal\] seed is given, so this stream would be the same with each"
    for task, more in ((AllSplits, {}), (PaperTable, {"table": "1b"})):  # ... but not over what is given beside it
        with pytest.raises(ValueError, match=message):
            fresh(task, dataset=tiny, seeds="0,1", changes={"temporal_seed": "7"}, **more).complete()


@pytest.mark.parametrize(("spatial", "temporal", "told"), [("3", "3", 3), ("3", "4", "3 and 4")])
def test_the_seed_that_is_reported_is_the_one_of_the_trainings(tiny, config, spatial, temporal, told):
    config.read_dict({"spatial": {"seed": spatial}, "temporal": {"seed": temporal}})
    report = fresh(Report, dataset=tiny)
    assert seed_of(report) == told and seed_of(report, ["temporal"]) == int(temporal)


def test_official_splits_that_are_one_are_refused_and_others_are_names(tiny, config):
    config.read_dict({"dataset.u": {"layout": "ucf101", "videos": "v", "lists": "l"}})
    with pytest.raises(ValueError, match="--splits is '1,01'; it must be different names, separated by commas"):
        _ = fresh(AllSplits, dataset="u", splits="1,01").split_list
    assert fresh(AllSplits, dataset="u", splits="02, 1").split_list == ["2", "1"]
    assert fresh(AllSplits, dataset=tiny, splits="1,01").split_list == ["1", "01"]


def test_a_mistake_is_reported_in_one_line(overlay):
    failed = luigi_command("AllSplits", "--seeds", "zero", cwd=ROOT, PYTHONPATH=str(ROOT), **overlay)
    assert failed.returncode != 0 and "Traceback" not in failed.stderr
    assert "error: --seeds is 'zero'" in failed.stderr
