"""A fusion is chosen on validation clips; a split that lacks some is refused before anything is made for it."""

import json

import pytest
from chains import build, fresh

from pipeline import fusion
from pipeline.scores import Scores
from tasks import (
    AllSplits,
    Catalog,
    ExtractFeatures,
    Frames,
    FullPipeline,
    Fuse,
    PaperTable,
    Report,
    ScoreStream,
    TrainStream,
)


def test_fusions_are_chosen_on_validation_clips_and_judged_on_test_clips(config, monkeypatch):
    seen, real = [], fusion.fuse
    monkeypatch.setattr(fusion, "fuse", lambda *tables, **given: seen.append(tables) or real(*tables, **given))
    assert build(fresh(Fuse))
    catalog, ((chosen_on, judged_on),) = fresh(Catalog).read(), seen
    for tables, part in ((chosen_on, "val"), (judged_on, "test")):
        ids = tuple(clip.id for clip in catalog.part(part))
        assert ids and [(stream, table.video_ids) for stream, table in tables.items()] == [
            ("spatial", ids),
            ("temporal", ids),
        ]


@pytest.mark.parametrize("task", [Fuse, FullPipeline, AllSplits])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_fraction": "0"}, r"no test clips, on which all is reported: \[dataset\] test_fraction is 0; raise it$"),
        (
            {"group_pattern": "(?P<group>avi)"},
            "no validation clips, .*: too few groups: 1; whole groups are drawn .*; add clips of other groups, or change",
        ),
    ],
)
def test_a_split_that_lacks_a_part_is_refused_before_any_work(
    config,
    tmp_path,
    tiny_dataset,
    task,
    settings,
    message,
):
    config.read_dict({"dataset.tiny": {"layout": "folder", "videos": str(tiny_dataset), "split": "1", **settings}})
    of = {"splits": "1"} if task is AllSplits else {}
    assert not build(fresh(task, dataset="tiny", **of))
    assert not (tmp_path / "artifacts").exists()
    with pytest.raises(ValueError, match=message):
        fresh(Fuse, dataset="tiny").complete()
    assert not fresh(ScoreStream, dataset="tiny", stream="spatial").complete()  # needs none
    assert build(fresh(Catalog, dataset="tiny"))
    with pytest.raises(ValueError, match=message):
        fresh(Fuse, dataset="tiny").complete()


def without_validation_clips(config, tmp_path, fraction):
    listed = tmp_path / "clips.csv"
    listed.write_text(listed.read_text().replace(",val", ",train"))
    config.read_dict({"dataset.four": {"val_fraction": fraction}})


def test_what_a_csv_file_does_not_name_may_be_named_in_it(config, tmp_path):
    assert not fresh(Fuse).complete()  # it names some
    (tmp_path / "clips.csv").write_text(
        "path,label,group,split\na.avi,right,g,train\nb.avi,down,g,train\nd.avi,down,h,test\n"
    )
    with pytest.raises(
        ValueError, match="no validation clips, .*too few groups: 1; .* or name some in the split column"
    ):
        fresh(Fuse).complete()


def test_whoever_wants_no_validation_clips_gets_the_average(config, tmp_path, capsys):
    without_validation_clips(config, tmp_path, "0")
    assert build(fresh(FullPipeline)) and build(fresh(AllSplits, splits="1"))
    said = capsys.readouterr().err
    assert "no val clips in this split: trainings keep their last weights, and the average is the only fusion" in said
    report = fresh(Report)
    numbers = json.loads(report.path.read_text())
    assert set(numbers["fused"]) == {"average"} and numbers["counts"]["train"]["clips"] == 3
    two = [Scores.read(fresh(ScoreStream, stream=s, part="test").path) for s in ("spatial", "temporal")]
    assert numbers["fused"]["average"]["top1"] == fusion.average(*two).top1()
    assert "Fused: SVM" not in (report.folder / "report.html").read_text()
    summary = json.loads(fresh(AllSplits, splits="1").path.read_text())
    assert set(summary["mean"]) == {"spatial", "temporal", "average"}


def test_a_report_is_made_again_when_other_listed_videos_are_absent(config, tmp_path):
    config.set("dataset.four", "partial", "true")
    assert build(fresh(FullPipeline))
    trained = fresh(TrainStream, stream="spatial").path.stat().st_mtime_ns
    with (tmp_path / "clips.csv").open("a") as listed:
        listed.write("e.avi,right,e,train\n")
    assert build(fresh(FullPipeline))
    assert json.loads(fresh(Report).path.read_text())["absent"] == ["e.avi"]
    assert fresh(TrainStream, stream="spatial").path.stat().st_mtime_ns == trained
    assert fresh(FullPipeline).complete()


def test_a_table_says_that_the_svm_needs_validation_clips(config, tmp_path):
    without_validation_clips(config, tmp_path, "0")
    table = fresh(PaperTable, table="4", rows="average,svm")
    assert build(table)
    states = {row["key"]: (row["state"], row["reason"]) for row in json.loads(table.path.read_text())["rows"]}
    assert states["average"] == ("measured", "")
    assert states["svm"] == (
        "not run",
        "needs validation clips, which the SVM is fitted on: raise [dataset] val_fraction",
    )


def test_a_single_class_has_frames_but_nothing_is_trained_on_it(config, tmp_path, capsys):
    listed = tmp_path / "clips.csv"
    listed.write_text(listed.read_text().replace("down", "right"))
    message = "four has one class, 'right', and a network learns to tell at least two apart"
    for task in (FullPipeline, ExtractFeatures):
        assert not build(fresh(task))
    with pytest.raises(ValueError, match=message):
        fresh(TrainStream, stream="temporal").complete()
    assert not (tmp_path / "artifacts").exists()
    assert build(fresh(Frames))
    assert "there is one class, 'right': frames and flow can be made, but nothing trained" in capsys.readouterr().err
    with pytest.raises(ValueError, match=message):
        fresh(TrainStream, stream="temporal").complete()


def test_a_demo_that_is_not_written_yet_is_known_by_its_settings(config, tmp_path):
    folder = tmp_path / "demo"
    section = {"generator": "demo", "layout": "ucf101", "videos": str(folder / "videos"), "lists": str(folder / "l")}
    config.read_dict({"dataset.demo": section})
    with pytest.raises(ValueError, match="split '7' of the demo does not exist"):
        fresh(Fuse, dataset="demo", split="7").complete()
    assert not fresh(Fuse, dataset="demo", split="3").complete() and not fresh(Catalog, dataset="demo").lacks_val()
    config.read_dict({"dataset.demo": {"val_fraction": "0"}})
    assert not fresh(Fuse, dataset="demo", split="3").complete() and fresh(Catalog, dataset="demo").lacks_val()
    assert not list(tmp_path.glob("*demo*"))


def test_a_split_that_does_not_exist_is_refused_before_another_is_run(config, tmp_path):
    assert not build(fresh(AllSplits, splits="1,7"))
    assert not (tmp_path / "artifacts").exists()
    with pytest.raises(ValueError, match="split '7' does not exist; the split column of clips.csv is split 1"):
        fresh(PaperTable, table="1a", splits="1,7").complete()
