"""What the catalog does without a disk: its records, its keys, the cut by group."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.catalog import Catalog, Clip, changes
from pipeline.catalog.groups import grouped
from pipeline.catalog.parts import draw_groups
from pipeline.catalog.rows import ListedClip
from pipeline.specs import DatasetSpec

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


def test_an_unlabeled_clip_has_no_class():
    unlabeled = Catalog((clip(label=-1, class_name=""),), (), "1", ())
    assert unlabeled.videos_key != Catalog((clip(),), ("x",), "1", ()).videos_key


def test_a_catalog_refuses_an_unknown_part():
    with pytest.raises(ValueError, match="part is 'dev'; allowed: train, val, test, unused"):
        Catalog((clip(),), ("x",), "1", ()).part("dev")


def test_a_catalog_shows_counts():
    assert "1 clips, 1 classes, 1 groups, split '1': train=1, val=0" in repr(Catalog((clip(),), ("x",), "1", ()))


@pytest.mark.parametrize(
    ("change", "videos_same", "same"),
    [
        ({"path": "else.avi"}, True, True),
        ({"mtime_ns": 3}, True, True),
        ({"part": "test"}, True, False),
        ({"group": "h"}, True, False),
        ({"content": "1" * 16}, False, False),
        ({"id": "b"}, False, False),
    ],
)
def test_what_the_keys_cover(change, videos_same, same):
    one, other = (Catalog((c,), ("x",), "1", ()) for c in (clip(), clip(**change)))
    assert (one.videos_key == other.videos_key) is videos_same
    assert (one.key == other.key) is same
    assert len(one.key) == len(one.videos_key) == 12


def test_what_became_of_the_videos_is_reported():
    old = Catalog(tuple(clip(id=name, path=f"{name}.avi") for name in "abcdef"), ("x",), "1", ())
    touched = [clip(id="a", path="a.avi", mtime_ns=9), clip(id="b", path="b.avi", content="1" * 16)]
    other = [clip(id="c", path="c.avi", group="h"), clip(id="d", path="d.avi", label=1, class_name="y")]
    new = Catalog((*touched, *other, clip(id="new", path="new.avi")), ("x", "y"), "1", ())
    assert changes(old, old) == [] and changes(old, new) == [
        "gone, with all that was made from them: 2 of 6 videos ('e', 'f')",
        "new: 1 of 5 videos ('new')",
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


def spanning(*groups):
    """Groups by the names of their classes: "ab" is a group of the classes a and b."""
    return rows(*((name, group) for group in groups for name in group))


def test_a_class_that_got_no_group_gets_one_that_it_shares():
    seen = set()
    for seed in range(40):
        drawn = draw_groups(spanning("ab", "bc", "ac", "abc"), 0.1, key=str(seed))
        assert len(drawn) == (1 if drawn == {"abc"} else 2)
        for name in "abc":
            assert 1 <= sum(name in group for group in drawn) <= 2  # of three
        seen.add(frozenset(drawn))
    assert {"abc"} in seen and {"ab", "bc"} in seen


def test_a_class_gets_no_group_if_it_would_be_the_last_of_another():
    for seed in range(20):
        assert len(draw_groups(spanning("ab", "bc", "ac"), 0.1, key=str(seed))) == 1


@pytest.mark.parametrize(("clips", "drawn"), [(8, True), (9, False)])
def test_a_group_of_more_than_twice_the_share_of_its_class_is_drawn_last(clips, drawn):
    """One of five groups is wanted, so 0.2 of the class: 8 of 20 clips are twice that, 9 are more."""
    sizes = {"large": clips, "b": 3, "c": 3, "d": 3, "e": 20 - clips - 9}
    data = rows(*(("x", group) for group, size in sizes.items() for _ in range(size)))
    assert any("large" in draw_groups(data, 0.2, key=str(seed)) for seed in range(60)) is drawn


def test_the_pattern_is_for_clips_without_a_group_only():
    given, found = ListedClip("1", "1.avi", "x", "anna", "train"), ListedClip("2", "x/ben_2.avi", "x", "", "train")
    spec = DatasetSpec(group_pattern=r"/(?P<group>[a-z]+)_")
    assert [row.group for row in grouped([given, found], spec)] == ["anna", "ben"]


def test_importing_the_catalog_is_light():
    program = "import sys, pipeline.catalog; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "cv2", "h5py", "numpy", "luigi", "sklearn"} & set(run.stdout.split())
