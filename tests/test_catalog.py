"""Reading datasets from small trees: matching with the disk, labels, parts, freshness."""

import errno
import hashlib
import os
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from trees import csv_spec, folder_spec, make_ucf, touch, ucf_paths

from pipeline import store
from pipeline.catalog import UNREADABLE, contents, files_fingerprint, outline, read_dataset
from pipeline.specs import DatasetSpec
from pipeline.system.errors import MachineFault

# what is read


def test_labels_are_zero_based_in_official_order(tmp_path):
    spec = make_ucf(tmp_path)
    catalog = read_dataset(spec, "1")
    assert catalog == read_dataset(spec, 1)
    assert catalog.classes == ("Run", "Jump")
    assert {(c.class_name, c.label) for c in catalog.clips} == {("Run", 0), ("Jump", 1)}
    assert [c.id for c in catalog.clips] == sorted(path.split("/")[1][:-4] for path in ucf_paths())
    assert (catalog.split_name, catalog.absent) == ("1", ())


def test_each_clip_carries_its_file(tmp_path):
    spec = make_ucf(tmp_path)
    for c in read_dataset(spec, "1").clips:
        stat = (tmp_path / "videos" / c.path).stat()
        assert (c.bytes, c.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        assert c.content == hashlib.blake2b(c.path.encode(), digest_size=8).hexdigest()


def test_a_class_that_looks_like_another_one_misspelled_is_reported(tmp_path, capsys):
    names = [f"bend/{k}.avi" for k in range(5)] + [f"wave{side}/{k}.avi" for side in (1, 2) for k in range(3)]
    read_dataset(folder_spec(tmp_path, *names), "1")
    assert "misspelled" not in capsys.readouterr().err
    rows = [f"{name},{name.split('/')[0]}" for name in names[1:]] + ["bend/0.avi,bedn"]
    text = "\n".join(["path,label", *rows]) + "\n"
    read_dataset(replace(csv_spec(tmp_path, text), partial=True), "1")
    assert capsys.readouterr().err.count("class 'bedn' has 1 clip; is it 'bend' (4), misspelled?") == 1
    read_dataset(replace(csv_spec(tmp_path, text.replace("3.avi,bend", "3.avi,Bend")), partial=True), "1")
    told = capsys.readouterr().err
    assert "class 'Bend' has 1 clip; is it 'bend' (3), misspelled?" in told and told.count("misspelled") == 2


def test_where_most_classes_are_rare_that_is_no_sign_of_a_slip(tmp_path, capsys):
    rows = ["bend/0.avi,bedn", *(f"bend/{k}.avi,bend" for k in range(1, 5)), *(f"{k}.avi,rare{k}" for k in range(50))]
    for count, expected in ((50, 1), (51, 0)):
        listed = rows[: 4 + count]
        spec = csv_spec(tmp_path, "\n".join(["path,label", *listed]) + "\n", *(row.split(",")[0] for row in listed))
        read_dataset(replace(spec, partial=True), "1")
        assert capsys.readouterr().err.count("'bedn' has 1 clip; is it 'bend'") == expected


def test_large_files_are_hashed_whole(tmp_path):
    spec = folder_spec(tmp_path, "x/a.avi", "x/b.avi")
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "x/a.avi").write_bytes(data)
    contents = {c.id: c.content for c in read_dataset(spec, "1").clips}
    assert contents["x__a"] == hashlib.blake2b(data, digest_size=8).hexdigest()


def test_case_of_names_on_disk_does_not_matter(tmp_path):
    spec = make_ucf(tmp_path)
    (tmp_path / "videos/Run").rename(tmp_path / "videos/RUN")
    (tmp_path / "videos/RUN/v_Run_g01_c01.avi").rename(tmp_path / "videos/RUN/v_run_g01_c01.AVI")
    by_id = {c.id: c for c in read_dataset(spec, "1").clips}
    assert by_id["v_Run_g01_c01"].path == "RUN/v_run_g01_c01.AVI"
    assert by_id["v_Run_g01_c01"].class_name == "Run"


def test_official_hmdb51_lists_read_as_a_partial_set(tmp_path, shared):
    name = "Amazing_Soccer_#2_kick_ball_f_cm_np1_fr_bad_1"
    touch(tmp_path, f"kick_ball/{name}.avi")
    lists = str(shared / "data/splits/testTrainMulti_7030_splits")
    catalog = read_dataset(DatasetSpec(layout="hmdb51", videos=str(tmp_path), lists=lists, partial=True), "1")
    assert [(c.id, c.label, c.group, c.part) for c in catalog.clips] == [(name, 0, "Amazing_Soccer_#2", "train")]
    assert catalog.classes == ("kick_ball",)
    assert len(catalog.absent) == 6765


def test_the_ucf101_sample(shared, capsys):
    data = shared / "data"
    lists = str(data / "splits/ucfTrainTestlist")
    spec = DatasetSpec(layout="ucf101", videos=str(data / "ucf101_sample"), lists=lists, partial=True)
    catalog = read_dataset(spec, "1")
    assert len(catalog.clips) == 22
    assert len(catalog.absent) == 13320 - 22
    assert catalog.classes == ("ApplyEyeMakeup", "BenchPress", "Biking", "BoxingSpeedBag", "Diving", "JavelinThrow")
    assert {c.id for c in catalog.part("test")} >= {"v_Diving_g01_c01", "v_JavelinThrow_g05_c05"}
    told = capsys.readouterr().err
    assert "13298 of 13320 listed videos are absent" in told
    assert "no training clip in split 1 of 3 of the classes: 'ApplyEyeMakeup', 'BenchPress', 'Diving'" in told


@pytest.mark.parametrize("person", ["daria", "denis", "eli"])
def test_weizmann_with_one_person_held_out(shared, person):
    videos = str(shared / "data/weizmann")
    catalog = read_dataset(DatasetSpec(layout="folder", videos=videos, group_pattern="(?P<group>[a-z]+)_"), person)
    assert (len(catalog.clips), len(catalog.classes)) == (90, 10)
    people = {part: {c.group for c in catalog.part(part)} for part in ("train", "val", "test")}
    assert people["test"] == {person}
    assert [len(people[part]) for part in ("train", "val")] == [7, 1]
    assert Counter(c.class_name for c in catalog.part("val")) == dict.fromkeys(catalog.classes, 1)


# absent videos, partial sets


ABSENT = ("Jump/v_Jump_g03_c01.avi", "Jump/v_Jump_g03_c02.avi")


def test_absent_videos_are_counted_and_shown(tmp_path):
    with pytest.raises(FileNotFoundError, match="2 of 16 listed videos are absent.*v_Jump_g03_c01.*partial = true"):
        read_dataset(make_ucf(tmp_path, absent=ABSENT), "1")


def test_many_absent_videos_are_cut_short(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"8 of 16 [^:]*: ('Jump/v_Jump\S+ ){5}\.\.\.;"):
        read_dataset(make_ucf(tmp_path, absent=ucf_paths(["Jump"])), "1")


def test_partial_goes_on_and_keeps_the_absent(tmp_path):
    catalog = read_dataset(make_ucf(tmp_path, absent=ABSENT, partial=True), "1")
    assert catalog.absent == ABSENT
    assert len(catalog.clips) == 14


def test_partial_drops_classes_without_videos_and_numbers_densely(tmp_path):
    catalog = read_dataset(make_ucf(tmp_path, absent=ucf_paths(["Run"]), partial=True), "1")
    assert catalog.classes == ("Jump",)
    assert {c.label for c in catalog.clips} == {0}


def test_partial_set_of_nothing(tmp_path):
    spec = make_ucf(tmp_path, absent=ucf_paths(), partial=True)
    touch(tmp_path / "videos", "other.avi")
    with pytest.raises(ValueError, match="none of the 16 listed videos"):
        read_dataset(spec, "1")


def test_videos_in_no_list_are_ignored_and_counted(tmp_path, capsys):
    spec = make_ucf(tmp_path)
    touch(tmp_path / "videos", "Run/holiday.mp4")
    assert len(read_dataset(spec, "1").clips) == 16
    assert "1 videos in" in capsys.readouterr().err


# refusals


def test_no_videos(tmp_path):
    touch(tmp_path, "readme.txt")
    with pytest.raises(ValueError, match="there is no video in"):
        read_dataset(DatasetSpec(videos=str(tmp_path)), "1")
    with pytest.raises(ValueError, match="videos is empty; give the folder"):
        read_dataset(DatasetSpec(), "1")


def test_duplicate_ids(tmp_path):
    with pytest.raises(ValueError, match="two videos have the id 'x__a': 'x/a.avi' and 'x/a.mp4'"):
        read_dataset(folder_spec(tmp_path, "x/a.avi", "x/a.mp4"), "1")


def test_one_video_under_two_names(tmp_path):
    with pytest.raises(ValueError, match="the video 'a.avi' is listed under 2 names"):
        read_dataset(csv_spec(tmp_path, "path,label\na.avi,x\nA.avi,x\n", "a.avi"), "1")


def test_empty_class(tmp_path):
    (tmp_path / "empty").mkdir()
    spec = folder_spec(tmp_path, "x/a.avi", "x/b.avi")
    with pytest.raises(ValueError, match="no clip of 1 of the classes: 'empty'"):
        read_dataset(spec, "1")
    assert read_dataset(replace(spec, partial=True), "1").classes == ("x",)


def test_files_that_are_no_videos_are_said(tmp_path, capsys):
    spec = folder_spec(tmp_path, "x/a.avi", "x/b.avi", "x/c.MTS", "y/d.avi", "y/e.avi")
    for name in ("x/half.mp4.part", "y/notes.txt", "y/.hidden"):
        (tmp_path / name).write_bytes(b"")
    assert len(read_dataset(spec, "1").clips) == 5
    said = capsys.readouterr().err
    assert f"2 files in {str(tmp_path)!r} lack the file extension of a video: 'x/half.mp4.part', 'y/notes.txt'" in said
    outline(spec, "1")
    assert capsys.readouterr().err == ""


def test_folders_that_look_like_parts_are_said_to_be_classes(tmp_path, capsys):
    spec = folder_spec(tmp_path, *(f"{part}/run/{name}.avi" for part in ("train", "Test") for name in "abc"))
    assert read_dataset(spec, "1").classes == ("Test", "train")
    assert "the classes are 'Test', 'train', by the first folder of each path; if" in capsys.readouterr().err


def test_class_without_training_clips(tmp_path):
    spec = folder_spec(tmp_path, "x/eli_.avi", "x/ira_.avi", "y/eli_.avi", group_pattern="(?P<group>[a-z]+)_")
    with pytest.raises(ValueError, match="no training clip in split eli of 1 of the classes: 'y'; add clips of other"):
        read_dataset(spec, "eli")


# cuts by group


def test_validation_is_cut_by_group_and_is_the_same_number_in_each_class(tmp_path):
    catalog = read_dataset(make_ucf(tmp_path, val_fraction=0.3), "1")
    groups = {part: {c.group for c in catalog.part(part)} for part in ("train", "val", "test")}
    assert groups["test"] == {"Run_g01", "Jump_g01"}
    assert not groups["train"] & groups["val"]
    assert Counter(c.class_name for c in catalog.part("val")) == {"Run": 2, "Jump": 2}
    assert len({group[-3:] for group in groups["val"]}) == 1


def test_a_source_that_holds_much_of_a_class_is_drawn_last(tmp_path):
    """Of ten sources of HMDB-51's smile one has 41 of 70 clips: to draw it would leave 29 for training."""
    names = [f"x/s{source}_{n}.avi" for source, clips in enumerate([41, *[3] * 9]) for n in range(clips)]
    names += [f"y/s{source}_{n}.avi" for source in range(10) for n in range(3)]
    for seed in range(10):
        spec = folder_spec(tmp_path, *names, group_pattern=r"/(?P<group>s\d)_", test_fraction=0.0, split_seed=seed)
        val = [clip for clip in read_dataset(spec, "1").clips if clip.part == "val"]
        assert {clip.group for clip in val if clip.class_name == "x"} and not any(clip.group == "s0" for clip in val)


def test_no_validation_when_none_is_wanted(tmp_path):
    assert read_dataset(make_ucf(tmp_path, val_fraction=0.0), "1").part("val") == ()


def test_test_part_drawn_by_number(tmp_path):
    spec = folder_spec(tmp_path, *(f"{c}/{n}.avi" for c in "xy" for n in range(10)), val_fraction=0.2)
    first, second = read_dataset(spec, "1"), read_dataset(spec, "2")
    assert [len(first.part(part)) for part in ("train", "val", "test")] == [12, 2, 6]
    assert first.part("test") != second.part("test")
    assert first.videos_key == second.videos_key
    assert first.key != second.key


def test_csv_split_column_is_kept(tmp_path):
    text = "path,label,split\na.avi,x,train\nb.avi,x,val\nc.avi,x,test\nd.avi,x,unused\ne.avi,x,train\n"
    catalog = read_dataset(csv_spec(tmp_path, text, *(f"{c}.avi" for c in "abcde"), val_fraction=0.9), "1")
    wanted = {"a": "train", "b": "val", "c": "test", "d": "unused", "e": "train"}
    assert {c.id: c.part for c in catalog.clips} == wanted


# keys and freshness


def test_clips_and_classes_do_not_depend_on_the_split(tmp_path):
    spec = make_ucf(tmp_path)
    first, second = read_dataset(spec, "1"), read_dataset(spec, "2")
    assert [replace(c, part="") for c in first.clips] == [replace(c, part="") for c in second.clips]
    assert first.videos_key == second.videos_key
    assert first.key != second.key


def test_known_files_are_not_read_again(tmp_path):
    spec = make_ucf(tmp_path)
    old = [replace(c, content="f" * 16) for c in read_dataset(spec, "1").clips]
    assert {c.content for c in read_dataset(spec, "2", known=old).clips} == {"f" * 16}
    touched = tmp_path / "videos" / old[0].path
    os.utime(touched, ns=(1, 1))
    again = read_dataset(spec, "2", known=old)
    assert again.clips[0].content == hashlib.blake2b(touched.read_bytes(), digest_size=8).hexdigest()
    assert {c.content for c in again.clips[1:]} == {"f" * 16}


def test_a_file_that_cannot_be_read_is_left_to_the_decoder(tmp_path, monkeypatch, capsys):
    spec = folder_spec(tmp_path, "x/a.avi", "x/b.avi")
    opened = Path.open

    def refuse(file, *args, **settings):
        if file.name == "a.avi":
            raise PermissionError("no")
        return opened(file, *args, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    catalog = read_dataset(spec, "1")
    assert [c.content == UNREADABLE for c in catalog.clips] == [True, False]
    assert "a.avi cannot be read: no" in capsys.readouterr().err
    monkeypatch.undo()
    assert UNREADABLE not in {c.content for c in read_dataset(spec, "1", known=catalog.clips).clips}


def fail_on(monkeypatch, name: str, *, times: int, seconds: float = 0.0) -> list[str]:
    """Let reading files of this name fail so many times. Returns the names of the files as they are read."""
    read, real = [], contents.file_hash

    def file_hash(file):
        read.append(file.name)
        if name in file.name and read.count(file.name) <= times:
            time.sleep(seconds)
            raise OSError(errno.EIO, "Input/output error")
        return real(file)

    monkeypatch.setattr(contents, "file_hash", file_hash)
    return read


def test_a_moment_in_which_a_disk_fails_does_not_cost_the_night(tmp_path, monkeypatch, capsys):
    spec = folder_spec(tmp_path, "x/a.avi", "x/b.avi", "x/c.avi")
    whole = read_dataset(spec, "1")
    read = fail_on(monkeypatch, "a.avi", times=1)
    assert read_dataset(spec, "1") == whole
    assert sorted(read[:3]) == ["a.avi", "b.avi", "c.avi"] and read[3:] == ["a.avi"]
    assert "a.avi cannot be read: [Errno 5] Input/output error; trying again when" in capsys.readouterr().err


def test_a_disk_that_fails_leaves_no_catalog_with_blanks(tmp_path, monkeypatch):
    spec = folder_spec(tmp_path, "x/a.avi", "x/b.avi")
    read = fail_on(monkeypatch, "a.avi", times=2)
    with pytest.raises(MachineFault, match="a.avi cannot be read: .*Input/output error; fix that, or remove the f"):
        read_dataset(spec, "1")
    assert read.count("a.avi") == 2


def test_a_disk_that_is_away_is_not_waited_for_file_by_file(tmp_path, monkeypatch, capsys):
    spec = folder_spec(tmp_path, *(f"x/{number:03}.avi" for number in range(500)))
    read = fail_on(monkeypatch, ".avi", times=1, seconds=0.02)
    with pytest.raises(MachineFault, match="008.avi cannot be read: .*Input/output error; fix that, or remove the f"):
        read_dataset(spec, "1")
    assert capsys.readouterr().err.count("trying again") == 8 and len(read) < 500


def test_listing_changes_with_any_video_or_list(tmp_path):
    spec = make_ucf(tmp_path)
    seen = [files_fingerprint(spec)]
    assert files_fingerprint(spec) == seen[0]
    touch(tmp_path / "videos", "Run/new.avi")
    seen.append(files_fingerprint(spec))
    os.utime(tmp_path / "videos/Run/new.avi", ns=(1, 1))
    seen.append(files_fingerprint(spec))
    (tmp_path / "lists/testlist02.txt").write_text("Run/v_Run_g02_c01.avi")
    seen.append(files_fingerprint(spec))
    (tmp_path / "videos/Run/new.avi").unlink()
    seen.append(files_fingerprint(spec))
    assert len(set(seen)) == 5


def test_unlabeled_videos(tmp_path, capsys):
    (tmp_path / "walk").mkdir()  # a folder is no class here
    for name in ("a.avi", "walk/b.avi"):
        (tmp_path / name).write_bytes(name.encode())
    found = read_dataset(DatasetSpec(layout="unlabelled", videos=str(tmp_path)), "1")
    assert [(c.id, c.label, c.class_name, c.part) for c in found.clips] == [
        ("a.avi", -1, "", "test"),
        ("walk__b.avi", -1, "", "test"),
    ]
    assert found.classes == () and "no " not in capsys.readouterr().err
    store.write_catalog(tmp_path / "catalog.h5", found)
    assert store.read_catalog(tmp_path / "catalog.h5") == store.read_catalog(tmp_path) == found


def test_a_video_that_may_be_read_again_is_looked_at_again(tmp_path, monkeypatch):
    spec = make_ucf(tmp_path)
    free = files_fingerprint(spec)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "v_Jump_g01_c01.avi")
    closed = files_fingerprint(spec)
    monkeypatch.undo()
    assert closed != free == files_fingerprint(spec)


def test_empty_parts_are_said_early(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / f"{name}.avi").write_bytes(name.encode())
    spec = DatasetSpec(layout="folder", videos=str(tmp_path), test_fraction=0.0, val_fraction=0.0)
    read_dataset(spec, "1")
    said = capsys.readouterr().err
    assert (
        "no val clips in this split: trainings keep their last weights, and the average is the only fusion; fo" in said
    )
    (tmp_path / "x" / "b.avi").unlink()  # one group is too few
    read_dataset(replace(spec, val_fraction=0.15), "1")
    assert "no val clips in this split: Fuse refuses it; add clips of other groups, or do" in capsys.readouterr().err
    assert "no test clips in this split: nothing can be reported" in said


@pytest.mark.parametrize(("split", "said"), [("1", True), ("7", False)])
def test_a_number_that_is_a_group_is_said(tmp_path, capsys, split, said):
    for name in ("walk", "run"):
        for person in range(1, 6):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{person}_{name}.avi").write_bytes(f"{person}{name}".encode())
    spec = DatasetSpec(layout="folder", videos=str(tmp_path), group_pattern=r"/(?P<group>\d+)_")
    read_dataset(spec, split)
    words = "catalog: split 1 is the name of a group, which alone is the test part; a number that names no group draws"
    assert (words in capsys.readouterr().err) == said


def test_an_outline_knows_the_content_of_files_that_were_read_before(tiny_dataset, tmp_path):
    folder = tmp_path / "videos"
    shutil.copytree(tiny_dataset, folder)
    spec = DatasetSpec(videos=str(folder), group_pattern=r"/(?P<group>[a-z]+)_")
    before = read_dataset(spec, "dan")
    assert outline(spec, "dan", known=before.clips) == before
    changed = folder / before.clips[2].path
    changed.write_bytes(changed.read_bytes() + b"x")
    after = outline(spec, "dan", known=before.clips)
    blank = [clip.id for clip in after.clips if clip.content == UNREADABLE]
    assert blank == [before.clips[2].id]
    assert {clip.content for clip in outline(spec, "dan").clips} == {UNREADABLE}


def test_links_that_lead_nowhere_are_no_reason_to_forget_their_videos(tmp_path, capsys):
    """Their disk may not be mounted: without an error all that was made of these videos would go."""
    spec = folder_spec(tmp_path / "v", *(f"{c}/{g}.avi" for c in ("run", "walk") for g in "abcd"))
    for path in ("run/far.avi", "bend", "walk/notes.txt"):
        (tmp_path / "v" / path).symlink_to(tmp_path / "not/mounted")
    for read in (lambda: read_dataset(spec, "1"), lambda: outline(spec, "1"), lambda: files_fingerprint(spec)):
        with pytest.raises(
            FileNotFoundError, match=r"2 links in .* lead nowhere: 'bend', 'run/far.avi'; mount the disk"
        ):
            read()
    assert len(read_dataset(replace(spec, partial=True), "1").clips) == 8
    assert "2 links in" in (told := capsys.readouterr().err) and "; they are ignored" in told
    assert len(read_dataset(DatasetSpec(layout="unlabelled", videos=spec.videos), "1").clips) == 8


def test_a_video_that_is_listed_twice(tmp_path):
    spec = csv_spec(tmp_path, "path,label\na.avi,x\na.avi,x\n", "a.avi")
    with pytest.raises(ValueError, match="the video 'a.avi' is listed twice; take one line out"):
        read_dataset(spec, "1")


def test_test_clips_that_are_training_clips_are_reported(tmp_path, capsys):
    spec = folder_spec(
        tmp_path, *(f"{c}/{g}_1.avi" for c in ("run", "walk") for g in "abcd"), group_pattern="/(?P<group>[a-z]+)_"
    )
    read_dataset(spec, "d")
    assert "byte for byte" not in capsys.readouterr().err
    (tmp_path / "run/d_1.avi").write_bytes((tmp_path / "run/a_1.avi").read_bytes())
    found = read_dataset(replace(spec, val_fraction=0.0), "d")
    assert found.part("test")[0].id == "run__d_1"
    assert "1 validation or test clips are byte for byte training clips: 'run__d_1'" in capsys.readouterr().err
    (tmp_path / "run/a_1.avi").write_bytes(b"another")  # so the copy is of no training clip, but of a validation clip
    found = read_dataset(replace(spec, val_fraction=0.4), "d")
    of_val = found.part("val")[0]
    told = capsys.readouterr().err
    assert "byte for byte" not in told
    (tmp_path / of_val.path.replace(of_val.group + "_1", "d_1")).write_bytes((tmp_path / of_val.path).read_bytes())
    read_dataset(replace(spec, val_fraction=0.4), "d")
    copy = of_val.id.replace(of_val.group + "_1", "d_1")
    assert f"1 test clips are byte for byte validation clips: {copy!r}" in capsys.readouterr().err
    for name in "ad":  # as downloads that were cut off leave them
        (tmp_path / f"run/{name}_1.avi").write_bytes(b"")
    read_dataset(replace(spec, val_fraction=0.0), "d")
    assert "byte for byte" not in capsys.readouterr().err


# what is told


def test_groups_that_differ_only_by_case_are_reported(tmp_path, capsys):
    names = [f"{c}/{n}_{c}.avi" for c in ("run", "walk") for n in ("ann", "ben", "cas", "dan")]
    names[0] = "run/Ann_run.avi"
    read_dataset(folder_spec(tmp_path, *names, group_pattern=r"/(?P<group>[A-Za-z]+)_"), "1")
    assert "groups differ only by upper and lower case, and may be in different parts: 'Ann', 'ann'" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("blank", [True, False])
def test_clips_without_a_group_where_others_have_one_are_reported(tmp_path, capsys, blank):
    """As spreadsheets export merged cells: only the first clip of each group names it."""
    videos = [f"{n}{k}.avi" for n in "abcd" for k in range(4)]
    lines = [f"{v},{'xy'[int(v[1]) % 2]},{'' if blank and v[1] != '0' else v[0]}" for v in videos]
    read_dataset(csv_spec(tmp_path, "path,label,group\n" + "\n".join(lines) + "\n", *videos), "1")
    assert ("catalog: 12 of 16 clips have no group in clips.csv; each is then" in capsys.readouterr().err) == blank


def test_classes_that_are_never_tested_or_validated_are_reported(tmp_path, capsys):
    names = [f"{c}/g{g}.avi" for c in "xy" for g in range(6)] + [f"{c}/g0_{k}.avi" for c in "zw" for k in range(3)]
    read_dataset(folder_spec(tmp_path, *names, group_pattern=r"/(?P<group>g\d)"), "1")
    told = capsys.readouterr().err
    assert "2 of 4 classes have no test clip, so no accuracy covers them: 'w', 'z'" in told
    assert "2 of 4 classes have no val clip, so the SVM never answers them: 'w', 'z'" in told
