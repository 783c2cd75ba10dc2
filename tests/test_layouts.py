"""Layouts "folder" and "csv", and the search for videos, against small trees made here."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.catalog import files_fingerprint, outline, read_dataset
from pipeline.catalog.layouts import list_files, read_layout, scan_videos, split_names
from pipeline.specs import DatasetSpec


def touch(folder, *paths):
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode(errors="surrogateescape"))
    return folder


def csv_spec(folder, text):
    file = folder / "clips.csv"
    file.write_text(text)
    return DatasetSpec(layout="csv", videos=str(folder), lists=str(file))


# folder


def folder_rows(folder, split="1", **settings):
    spec = DatasetSpec(layout="folder", videos=str(folder), **settings)
    return read_layout(spec, split, scan_videos(folder))


def test_folder_groups_by_pattern_and_leaves_one_out(tmp_path):
    touch(tmp_path, "bend/eli_bend.avi", "bend/ira_bend.avi", "walk/eli_walk.avi", "walk/slow/ira_walk.avi")
    rows, classes = folder_rows(tmp_path, "eli", group_pattern="(?P<group>[a-z]+)_")
    assert classes == ["bend", "walk"]
    assert [(row.id, row.group, row.part) for row in rows] == [
        ("bend__eli_bend", "eli", "test"),
        ("bend__ira_bend", "ira", "train"),
        ("walk__eli_walk", "eli", "test"),
        ("walk__slow__ira_walk", "ira", "train"),
    ]


def test_folder_without_pattern_makes_each_clip_its_own_group(tmp_path):
    rows, _ = folder_rows(touch(tmp_path, "a/x.avi", "a/y.mp4"))
    assert [(row.group, row.part) for row in rows] == [("a__x", ""), ("a__y", "")]


def test_unlabeled_videos_are_test_clips_of_no_class(tmp_path):
    touch(tmp_path, "a.avi", "some/where/b.mp4")
    spec = DatasetSpec(layout="unlabelled", videos=str(tmp_path))
    rows, classes = read_layout(spec, "1", scan_videos(tmp_path))
    assert classes == [] and [(row.id, row.class_name, row.group, row.part) for row in rows] == [
        ("a.avi", "", "a.avi", "test"),
        ("some__where__b.mp4", "", "some__where__b.mp4", "test"),
    ]
    assert split_names(spec) == ["1"]


def test_folder_refusals(tmp_path):
    touch(tmp_path, "walk/eli_walk.avi", "walk/other.avi")
    with pytest.raises(ValueError, match="finds no group in 1 of 2 paths: 'walk/other.avi'"):
        folder_rows(tmp_path, group_pattern="(?P<group>[a-z]+)_")
    with pytest.raises(ValueError, match="split 'el' .* does not exist; did you mean 'eli'"):
        folder_rows(tmp_path, "el", group_pattern="(?P<group>eli|other)")
    touch(tmp_path, "stray.avi")
    with pytest.raises(ValueError, match=r"1 of 3 videos lie in no class folder \('stray.avi'\); layout folder needs"):
        folder_rows(tmp_path)


# CSV


def test_csv_with_group_and_split_and_any_name(tmp_path):
    text = 'path,label,group,split\n"-a, ""b"".avi",x,g1,train\n深/é,x,,test\nd/ e .avi,y,g3,val\ng.avi,y,g1,unused\nf.avi,y,g2,unused\n'
    rows, classes = read_layout(csv_spec(tmp_path, text), "1", [])
    assert classes == ["x", "y"]
    assert [(row.path, row.id, row.group, row.part) for row in rows] == [
        ('-a, "b".avi', '-a, "b"', "g1", "train"),
        ("深/é", "深__é", "深__é", "test"),
        ("d/ e .avi", "d__ e ", "g3", "val"),
        ("g.avi", "g", "g1", "unused"),
        ("f.avi", "f", "g2", "unused"),
    ]


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        ("a.avi,x\n", "1", r"the header is 'a.avi,x'; it must be path,label\[,group\]"),
        ("path,label,person\n", "1", "the header is"),
        ("", "1", "the header is ''"),
        ("path,label,split,split\na.avi,x,val,train\n", "1", "the header is 'path,label,split,split'"),
        ("path,label\na.avi\n", "1", "line 2: it has more or fewer fields"),
        ("path,label\na.avi,x,y\n", "1", "line 2: it has more or fewer fields"),
        ("path,label\na.avi,\n", "1", "'a.avi' has no label"),
        ("path,label,split\na.avi,x,dev\n", "1", "split is 'dev'; allowed: train, val, test, unused"),
        ("path,label,split\na.avi,x,train\n", "2", "split '2' does not exist; the split column"),
        ("path,label\n../a.avi,x\n", "1", r"'../a.avi' must be relative to"),
        ("path,label\n/etc/a.avi,x\n", "1", "'/etc/a.avi' must be relative to"),
        ("path,label\n,x\n", "1", "'' must be relative to"),
        (
            "path,label,group,split\na.avi,x,eli,train\nb.avi,x,eli,test\nc.avi,x,ira,val\n",
            "1",
            "clips.csv: 1 groups have clips in more than one of train, val and test: 'eli'; a group .* belongs to one part",
        ),
        ("path,label,group\na.avi,x,eli\n", "ira", "split 'ira' .* does not exist"),
    ],
)
def test_csv_refusals(tmp_path, text, split, message):
    with pytest.raises(ValueError, match=message):
        read_layout(csv_spec(tmp_path, text), split, [])


def test_csv_without_a_group_column_takes_groups_from_the_paths(tmp_path):
    spec = csv_spec(tmp_path, "path,label\nx/eli_1.avi,x\ny/eli_2.avi,y\nx/ira_1.avi,x\n")
    spec = replace(spec, group_pattern="/(?P<group>[a-z]+)_")
    rows, _ = read_layout(spec, "ira", [])
    assert [(row.group, row.part) for row in rows] == [("eli", "train"), ("eli", "train"), ("ira", "test")]
    assert split_names(spec) == ["eli", "ira"]
    with pytest.raises(ValueError, match="group_pattern 'x.*' finds no group in 1 of 3 paths: 'y/eli_2.avi'"):
        read_layout(replace(spec, group_pattern="x(?P<group>.)"), "1", [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,label,group\nx/eli_1.avi,x,g\n",
            "clips.csv has a group column, and .* group_pattern is '/.*; leave one out",
        ),
        (
            "path,label,split\nx/eli_1.avi,x,train\ny/eli_2.avi,y,test\n",
            "1 groups have clips in more than one of train",
        ),
    ],
)
def test_csv_refuses_two_sources_of_groups_and_torn_ones(tmp_path, text, message):
    spec = replace(csv_spec(tmp_path, text), group_pattern="/(?P<group>[a-z]+)_")
    with pytest.raises(ValueError, match=message):
        read_layout(spec, "1", [])


def test_csv_leaves_a_group_out(tmp_path):
    rows, _ = read_layout(csv_spec(tmp_path, "path,label,group\na.avi,x,eli\nb.avi,x,ira\n"), "ira", [])
    assert [row.part for row in rows] == ["train", "test"]


# files


def test_scan_finds_videos_only_and_follows_links(tmp_path):
    touch(tmp_path, "a/x.avi", "a/Y.MP4", "a/x.txt", "a/.hidden.avi", ".git/z.avi", "b/c/d.webm", "-.avi", "q 'é\".mkv")
    other = touch(tmp_path.parent / f"{tmp_path.name}-other", "far.mov")
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "a/round").symlink_to(tmp_path)
    (tmp_path / "a/nowhere.avi").symlink_to(tmp_path / "none.avi")
    (tmp_path / "a/itself.avi").symlink_to(tmp_path / "a/itself.avi")
    found = scan_videos(tmp_path)
    assert list(found) == ["-.avi", "a/Y.MP4", "a/x.avi", "b/c/d.webm", "link/far.mov", "q 'é\".mkv"]
    assert found["a/x.avi"].bytes == len("a/x.avi")
    assert found["a/x.avi"].mtime_ns == (tmp_path / "a/x.avi").stat().st_mtime_ns


def test_a_file_is_no_folder_of_videos(tmp_path):
    touch(tmp_path, "a.avi")
    with pytest.raises(NotADirectoryError, match="a.avi' is a file; give the folder that holds it"):
        scan_videos(tmp_path / "a.avi")


def test_what_cannot_be_read_or_named_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder '.*none' does not exist"):
        scan_videos(tmp_path / "none")
    touch(tmp_path, os.fsdecode(b"\xff.avi"), os.fsdecode(b"\xfe.avi"))
    told = r"the names of videos in '.*' are not UTF-8 \(2\): '\\udcfe.avi', '\\udcff.avi'; rename them"
    with pytest.raises(ValueError, match=told):
        outline(DatasetSpec(videos=str(tmp_path)), "1")


def test_a_folder_whose_name_would_crash_the_decoder_is_refused(tmp_path):
    videos = Path(os.fsdecode(bytes(tmp_path) + b"/\xff/videos"))
    touch(videos, "a.avi")
    for layout in ("folder", "unlabelled"):
        with pytest.raises(
            ValueError, match=r"videos is below a folder whose name is not UTF-8: '.*\\udcff/videos'; ren"
        ):
            outline(DatasetSpec(layout=layout, videos=str(videos)), "1")


def test_an_unlabeled_video_whose_name_cannot_be_written_is_left_out(tmp_path, capsys):
    touch(tmp_path, "a.avi", os.fsdecode(b"\xff.avi"))
    spec = DatasetSpec(layout="unlabelled", videos=str(tmp_path))
    assert [clip.id for clip in read_dataset(spec, "1").clips] == ["a.avi"]
    assert r"are not UTF-8 (1): '\udcff.avi'; they are ignored" in capsys.readouterr().err
    assert outline(spec, "1").clips[0].id == "a.avi" and files_fingerprint(spec)


@pytest.mark.parametrize("layout", ["ucf101", "hmdb51", "csv"])
@pytest.mark.parametrize("lists", ["", "none"])
def test_lists_that_are_not_there(tmp_path, layout, lists):
    lists = lists and str(tmp_path / lists)
    with pytest.raises(FileNotFoundError, match=rf"\[dataset\] lists: '.*' is no .* layout {layout} needs one"):
        list_files(DatasetSpec(layout=layout, videos=str(tmp_path), lists=lists))


def test_official_lists_have_their_numbers(tmp_path):
    for name in (
        "trainlist01.txt",
        "testlist01.txt",
        "trainlist02.txt",
        "trainlist10.txt",
        "classInd.txt",
        "notes.txt",
    ):
        (tmp_path / name).write_text("")
    assert split_names(DatasetSpec(layout="ucf101", lists=str(tmp_path))) == ["1", "2", "10"]
    hmdb = tmp_path / "hmdb"
    hmdb.mkdir()
    for name in ("wave_test_split1.txt", "run_test_split1.txt", "wave_test_split3.txt"):
        (hmdb / name).write_text("")
    assert split_names(DatasetSpec(layout="hmdb51", lists=str(hmdb))) == ["1", "3"]


def test_groups_are_left_out_in_turn(tiny_dataset, tmp_path):
    spec = DatasetSpec(layout="folder", videos=str(tiny_dataset), group_pattern=r"/(?P<group>[a-z]+)_")
    assert split_names(spec) == ["anna", "ben", "cleo", "dan"]
    file = tmp_path / "clips.csv"
    file.write_text("path,label,group\na.avi,x,two\nb.avi,y,one\nc.avi,x,one\n")
    assert split_names(DatasetSpec(layout="csv", lists=str(file))) == ["one", "two"]
    file.write_text("path,label,group,split\na.avi,x,g,train\nb.avi,y,h,test\n")
    assert split_names(DatasetSpec(layout="csv", lists=str(file))) == ["1"]


def test_a_group_without_videos_is_not_left_out(tmp_path):
    touch(tmp_path, "a.avi", "b.avi", "c.avi")
    spec = csv_spec(tmp_path, "path,label,group\na.avi,x,one\nb.avi,y,two\nc.avi,y,two\nd.avi,y,three\n")
    assert split_names(spec) == ["one", "three", "two"]  # that a video is absent is refused later, by name
    assert split_names(replace(spec, partial=True)) == ["one", "two"]


def test_clips_without_groups_are_not_left_out_one_by_one(tiny_dataset, tmp_path):
    with pytest.raises(ValueError, match=r"each of the 8 clips is a group of its own, .* by \[dataset\] group_pattern"):
        split_names(DatasetSpec(layout="folder", videos=str(tiny_dataset)))
    file = tmp_path / "clips.csv"
    file.write_text("path,label,group\na.avi,x,g\nb.avi,y,g\n")
    with pytest.raises(
        ValueError, match="there are no two groups, .* by .dataset. group_pattern or a group column in the CSV"
    ):
        split_names(DatasetSpec(layout="csv", lists=str(file)))


@pytest.mark.parametrize("layout", ["csv", "folder"])
def test_names_spelled_with_composed_and_decomposed_accents_are_one_class_and_one_group(tmp_path, layout):
    one, other = "na\u00efve/Jos\u00e9_a.avi", "nai\u0308ve/Jose\u0301_b.avi"
    touch(tmp_path, "x/eli_c.avi", one, other)
    text = f"path,label,group\n{one},na\u00efve,Jos\u00e9\n{other},nai\u0308ve,Jose\u0301\nx/eli_c.avi,x,eli\n"
    spec = csv_spec(tmp_path, text)
    if layout == "folder":
        spec = DatasetSpec(layout="folder", videos=str(tmp_path), group_pattern="/(?P<group>[^_/]+)_")
    rows, classes = read_layout(spec, "Jose\u0301", scan_videos(tmp_path))
    assert classes == ["na\u00efve", "x"]
    assert sorted(row.group for row in rows if row.part == "test") == ["Jos\u00e9"] * 2


def test_blanks_in_a_csv_file_make_no_other_class_or_group(tmp_path):
    """A blank at the end is seen by nobody: with two groups of one person, half of the person would be trained on."""
    touch(tmp_path, "a.avi", "b.avi")
    spec = csv_spec(tmp_path, "path, label, group, split\na.avi,run,ido,train\nb.avi,run , ido ,train \n")
    rows, classes = read_layout(spec, "1", scan_videos(tmp_path))
    assert classes == ["run"] and {(row.group, row.part) for row in rows} == {("ido", "train")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\nä.avi,x\n".encode("cp1252"), r"clips.csv is not UTF-8 \(invalid .*, byte 11\); save it as UTF-8"),
        (b"path,label\n" + b"a" * 200_000 + b",x\n", "clips.csv is no CSV file: field larger than field limit"),
        (b"path,label\n", "clips.csv lists no video"),
    ],
)
def test_csv_files_that_cannot_be_read_are_named(tmp_path, content, message):
    spec = csv_spec(tmp_path, "")
    (tmp_path / "clips.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_layout(spec, "1", {})
