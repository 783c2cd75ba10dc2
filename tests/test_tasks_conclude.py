"""A fusion is chosen on validation clips; a split without any is refused before anything is made for it."""

import pytest
from test_tasks import build, config, fresh  # noqa: F401 (a fixture)

from pipeline import fusion
from tasks import AllSplits, Catalog, ExtractFeatures, Frames, FullPipeline, Fuse, PaperTable, ScoreStream, TrainStream

NONE = r"split 1 has no validation clips, on which fusions are chosen .*: \[dataset\] val_fraction is 0; raise it"


def test_fusions_are_chosen_on_validation_clips_and_judged_on_test_clips(config, monkeypatch):  # noqa: F811
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
        ({"val_fraction": "0"}, NONE),
        ({"test_fraction": "0"}, r"no test clips, on which all is reported: \[dataset\] test_fraction is 0; raise it$"),
        (
            {"group_pattern": "(?P<group>avi)"},
            "no validation clips, .*: too few groups: 1; whole groups are drawn .*; add clips of other groups, or change",
        ),
    ],
)
def test_a_split_that_lacks_a_part_is_refused_before_any_work(
    config,  # noqa: F811
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


def test_what_a_csv_file_does_not_name_may_be_named_in_it(config, tmp_path):  # noqa: F811
    listed = tmp_path / "clips.csv"
    assert not fresh(Fuse).complete()  # it names some
    listed.write_text(listed.read_text().replace(",val", ",train"))
    config.read_dict({"dataset.four": {"val_fraction": "0"}})
    with pytest.raises(ValueError, match=NONE + ", or name some in the split column of the CSV file"):
        fresh(Fuse).complete()


def test_a_stream_is_trained_and_scored_without_validation_clips(config, tmp_path):  # noqa: F811
    listed = tmp_path / "clips.csv"
    listed.write_text(listed.read_text().replace(",val", ",train"))
    config.read_dict({"dataset.four": {"val_fraction": "0"}})
    assert build(fresh(ScoreStream, stream="spatial"))


def test_a_table_is_refused_if_none_of_its_rows_does_without_validation_clips(config, tmp_path):  # noqa: F811
    listed = tmp_path / "clips.csv"
    listed.write_text(listed.read_text().replace(",val", ",train"))
    config.read_dict({"dataset.four": {"val_fraction": "0"}})
    with pytest.raises(ValueError, match=NONE):
        fresh(PaperTable, table="4", rows="average,svm").complete()
    assert not fresh(PaperTable, table="4", rows="spatial,svm").complete()  # its row of one stream is run


def test_a_single_class_has_frames_but_nothing_is_trained_on_it(config, tmp_path, capsys):  # noqa: F811
    listed = tmp_path / "clips.csv"
    listed.write_text(listed.read_text().replace("down", "right"))
    message = "there is one class, 'right', and a network learns to tell at least two apart"
    for task in (FullPipeline, ExtractFeatures):
        assert not build(fresh(task))
    with pytest.raises(ValueError, match=message):
        fresh(TrainStream, stream="temporal").complete()
    assert not (tmp_path / "artifacts").exists()
    assert build(fresh(Frames))
    assert "there is one class, 'right': frames and flow can be made, but nothing trained" in capsys.readouterr().err
    with pytest.raises(ValueError, match=message):
        fresh(TrainStream, stream="temporal").complete()


def test_a_demo_that_is_not_written_yet_is_known_by_its_settings(config, tmp_path):  # noqa: F811
    folder = tmp_path / "demo"
    section = {"generator": "demo", "layout": "ucf101", "videos": str(folder / "videos"), "lists": str(folder / "l")}
    config.read_dict({"dataset.demo": section})
    for split, fraction in [("7", "0.15"), ("1", "0")]:
        config.read_dict({"dataset.demo": {"val_fraction": fraction}})
        with pytest.raises(ValueError, match=NONE if split == "1" else "split '7' of the demo does not exist"):
            fresh(Fuse, dataset="demo", split=split).complete()
    config.read_dict({"dataset.demo": {"val_fraction": "0.15"}})
    assert not fresh(Fuse, dataset="demo", split="3").complete()
    assert not list(tmp_path.glob("*demo*"))


def test_a_split_that_does_not_exist_is_refused_before_another_is_run(config, tmp_path):  # noqa: F811
    assert not build(fresh(AllSplits, splits="1,7"))
    assert not (tmp_path / "artifacts").exists()
    with pytest.raises(ValueError, match="split '7' does not exist; the split column of clips.csv is split 1"):
        fresh(PaperTable, table="1a", splits="1,7").complete()
