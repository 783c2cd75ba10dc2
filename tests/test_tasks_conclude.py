"""A fusion is chosen on validation clips; a split without any is refused before anything is made for it."""

import pytest
from test_tasks import build, config, fresh  # noqa: F401 (a fixture)

from pipeline import fusion
from tasks import Catalog, FullPipeline, Fuse, ScoreStream

NONE = r"val_fraction is 0, and split 1 of four has no validation clips, on which fusions are chosen; raise it"


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


def test_settings_that_leave_no_validation_clips_are_refused_before_any_work(config, tmp_path):  # noqa: F811
    folder = {"layout": "folder", "lists": "", "val_fraction": "0"}
    config.read_dict({"dataset.four": folder})
    for task in (Fuse, FullPipeline):
        with pytest.raises(ValueError, match=NONE):
            fresh(task).complete()
    assert not (tmp_path / "artifacts").exists()
    assert not fresh(ScoreStream, stream="spatial").complete()  # needs none


def test_a_list_without_validation_clips_is_refused_once_it_is_read(config, tmp_path):  # noqa: F811
    listed = tmp_path / "clips.csv"
    assert not fresh(Fuse).complete()  # it names some
    listed.write_text(listed.read_text().replace(",val", ",train"))
    config.read_dict({"dataset.four": {"val_fraction": "0"}})
    assert not fresh(Fuse).complete()  # not known yet
    assert build(fresh(Catalog))
    with pytest.raises(ValueError, match=NONE):
        fresh(Fuse).complete()
    assert not (tmp_path / "artifacts/four/frames").exists()
