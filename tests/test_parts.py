"""A split that lacks a part is refused with the reason and what to do; the outline tells it without opening a video."""

from pathlib import Path

import pytest
from trees import csv_spec, folder_spec, make_ucf

from pipeline.catalog import outline, read_dataset
from pipeline.catalog.parts import check_classes, check_parts, draw_parts
from pipeline.catalog.rows import ListedClip
from pipeline.specs import DatasetSpec

HAS_NO = {"val": "split 1 has no validation clips, on which fusions are", "test": "split 1 has no test clips, on which"}


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("test", {"layout": "ucf101"}, "its lists name none that exists$"),
        ("val", {"layout": "ucf101"}, "too few groups: 2; whole .* never all groups of a class; add .* other groups$"),
        ("val", {}, "too few groups: 2; .* add clips of other groups$"),
        (
            "val",
            {"group_pattern": "(?P<group>.)"},
            r"too few .* of other groups, or change \[dataset\] group_pattern so",
        ),
        ("val", {"layout": "csv"}, "too few .* of other groups, or name some in the split column of the CSV file$"),
        ("test", {"test_fraction": 0.0}, r"\[dataset\] test_fraction is 0; raise it$"),
        (
            "test",
            {"layout": "csv", "test_fraction": 0.0},
            r"name some in the split column .* leave the column out: .* which is 0 \(raise it\), of the 2 groups is drawn",
        ),
        ("test", {"layout": "csv"}, "name some in the split column .* which is 0.3, of the 2 groups is drawn"),
    ],
)
def test_a_part_without_clips_is_refused_with_what_to_do(part, settings, message):
    found = {"train": {"clips": 5, "groups": 2}}
    check_parts(found, ["train"], DatasetSpec(**settings), "1")
    with pytest.raises(ValueError, match=f"{HAS_NO[part]}.*: {message}"):
        check_parts(found, [part], DatasetSpec(**settings), "1")


def test_whoever_wants_no_validation_clips_needs_none():
    check_parts({"train": {"clips": 5, "groups": 2}}, ["val"], DatasetSpec(val_fraction=0.0), "1")


def test_nothing_is_learned_from_one_class_or_none():
    check_classes(("x", "y"), "kin")
    with pytest.raises(ValueError, match="kin has one class, 'x', and a network learns to tell at least two apart"):
        check_classes(("x",), "kin")
    with pytest.raises(
        ValueError, match="videos of kin are unlabeled, so that nothing can be learned from them; any oth"
    ):
        check_classes((), "kin")


def test_an_outline_is_the_catalog_without_contents_and_says_nothing(tmp_path, monkeypatch, capsys):
    absent = ["Jump/v_Jump_g01_c01.avi"]
    specs = [
        make_ucf(tmp_path / "u", absent=absent, partial=True),
        folder_spec(tmp_path / "f", "x/a.avi", "x/b.avi", "y/c.avi", "y/d.avi"),
        csv_spec(tmp_path / "c", "path,label\na.avi,x\nb.avi,x\n", "a.avi", "b.avi", "more.avi"),
    ]
    catalogs = [read_dataset(spec, "1") for spec in specs]
    assert "absent" in capsys.readouterr().err
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda file, *a, **k: opened(file, *a, **k) if file.suffix != ".avi" else 1 / 0)
    for spec, catalog in zip(specs, catalogs, strict=True):
        found = outline(spec, "1")
        assert (found.counts(), found.classes, found.absent) == (catalog.counts(), catalog.classes, catalog.absent)
        assert [(c.id, c.part, c.group) for c in found.clips] == [(c.id, c.part, c.group) for c in catalog.clips]
    assert not capsys.readouterr().err


def test_validation_clips_are_drawn_from_training_clips_alone():
    """Test clips whose group also has training clips, as a list may have it, stay test clips."""
    rows = [ListedClip(f"{part}{g}", f"{part}{g}", "x", g, part) for part in ("train", "test") for g in "abcd"]
    parts = [row.part for row in draw_parts(DatasetSpec(val_fraction=0.5), rows, "1")]
    assert parts[4:] == ["test"] * 4 and parts[:4].count("val") == 2


def test_the_draw_of_validation_groups_never_changes():
    """Else the streams of every user would be trained and chosen on other clips than before."""
    rows = [ListedClip(f"c{n}", f"c{n}", "x", f"g{n}", "train") for n in range(12)]
    drawn = [row.group for row in draw_parts(DatasetSpec(val_fraction=0.25), rows, "1") if row.part == "val"]
    assert drawn == ["g6", "g10", "g11"]
