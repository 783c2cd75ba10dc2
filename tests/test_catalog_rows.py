"""What the catalog does without a disk: its records, its keys, the cut by group."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.catalog import Catalog, Clip, changes
from pipeline.catalog.parts import draw_groups
from pipeline.catalog.rows import ListedClip

ROOT = Path(__file__).parents[1]


def clip(**changes):
    values = {"id": "a", "path": "x/a.avi", "label": 0, "class_name": "x", "group": "g", "part": "train"}
    return Clip(**{**values, "bytes": 1, "mtime_ns": 2, "content": "0" * 16, **changes})


def rows(*pairs):
    return [ListedClip(f"{c}{g}{n}", "", c, g, "train") for n, (c, g) in enumerate(pairs)]


@pytest.mark.parametrize(
    "change", [{"label": 1}, {"label": -1}, {"class_name": "y"}, {"class_name": ""}, {"part": "dev"}]
)
def test_a_catalog_refuses_clips_that_do_not_fit(change):
    with pytest.raises(ValueError, match="clip 'a': no part"):
        Catalog((clip(**change),), ("x",), "1", ())


def test_labels_do_not_count_from_the_end():
    with pytest.raises(ValueError, match="clip 'a': no part 'train', or 'x' not -2"):
        Catalog((clip(label=-2),), ("x", "y"), "1", ())


def test_an_unlabelled_clip_has_no_class():
    unlabelled = Catalog((clip(label=-1, class_name=""),), (), "1", ())
    assert unlabelled.videos_key != Catalog((clip(),), ("x",), "1", ()).videos_key


def test_a_catalog_refuses_an_unknown_part():
    with pytest.raises(ValueError, match="part is 'dev'; allowed: train, val, test, unused"):
        Catalog((clip(),), ("x",), "1", ()).part("dev")


def test_a_catalog_shows_counts():
    assert "1 clips, 1 classes, split '1': train=1, val=0" in repr(Catalog((clip(),), ("x",), "1", ()))


@pytest.mark.parametrize(
    ("change", "videos_same", "same"),
    [
        ({"path": "else.avi"}, True, True),
        ({"mtime_ns": 3}, True, True),
        ({"part": "test"}, True, False),
        ({"group": "h"}, False, False),
        ({"content": "1" * 16}, False, False),
        ({"id": "b"}, False, False),
    ],
)
def test_what_the_keys_cover(change, videos_same, same):
    one, other = (Catalog((c,), ("x",), "1", ()) for c in (clip(), clip(**change)))
    assert (one.videos_key == other.videos_key) is videos_same
    assert (one.key == other.key) is same
    assert len(one.key) == len(one.videos_key) == 12


def test_what_became_of_the_videos_is_told():
    old = Catalog(tuple(clip(id=name, path=f"{name}.avi") for name in "abcdef"), ("x",), "1", ())
    touched = [clip(id="a", path="a.avi", mtime_ns=9), clip(id="b", path="b.avi", content="1" * 16)]
    other = [clip(id="c", path="c.avi", group="h"), clip(id="d", path="d.avi", label=1, class_name="y")]
    new = Catalog((*touched, *other, clip(id="new", path="new.avi")), ("x", "y"), "1", ())
    assert changes(old, old) == [] and changes(old, new) == [
        "gone, and all that was made of them goes: 2 of 6 videos ('e', 'f')",
        "new: 1 of 6 videos ('new')",
        "changed: 1 of 6 videos ('b')",
        "of another class or group: 2 of 6 videos ('c', 'd')",
    ]
    moved = replace(old, clips=(*old.clips[1:], clip(id="a", path="a.avi", part="test")))
    told = "of another part (results before and after are not of the same clips): 1 of 6 videos ('a')"
    assert changes(old, moved) == [told] and changes(old, replace(moved, split_name="2")) == []


def test_the_cut_depends_on_the_seed_alone():
    data = rows(*(("x", f"g{n}") for n in range(20)))
    drawn = draw_groups(data, 0.25, key="0")
    assert len(drawn) == 5
    assert draw_groups(data[::-1], 0.25, key="0") == drawn
    assert draw_groups(data, 0.25, key="1") != drawn


@pytest.mark.parametrize(
    ("groups", "fraction", "count"), [(4, 0.25, 1), (2, 0.01, 1), (2, 0.9, 1), (1, 0.5, 0), (9, 0.0, 0)]
)
def test_neither_none_nor_all_groups_of_a_class_are_drawn(groups, fraction, count):
    assert len(draw_groups(rows(*(("x", f"g{n}") for n in range(groups))), fraction, key="")) == count


def test_groups_that_span_classes():
    """No class is emptied, though groups are shared and one class has a single group."""
    data = rows(("x", "a"), ("x", "b"), ("y", "b"), ("y", "c"), ("z", "only"), ("x", "only"))
    for seed in range(20):
        drawn = draw_groups(data, 0.15, key=str(seed))
        assert drawn and "only" not in drawn
        for name in "xyz":
            assert {row.group for row in data if row.class_name == name} - drawn


def test_importing_the_catalog_is_light():
    program = "import sys, pipeline.catalog; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "cv2", "h5py", "numpy", "luigi", "sklearn"} & set(run.stdout.split())
