"""The official lists: published counts from the lists alone, and refusal of lists that contradict themselves."""

from collections import Counter

import pytest

from pipeline.catalog.official import read_hmdb51_lists, read_ucf101_classes, read_ucf101_lists

HMDB_TAIL = "_f_cm_np1_ba_bad_"


def ucf(
    folder,
    classes="1 Run\n2 Jump\n",
    train="Run/v_Run_g02_c01.avi 1\nJump/v_Jump_g02_c01.avi 2\n",
    test="Run/v_Run_g01_c01.avi\nJump/v_Jump_g01_c01.avi\n",
):
    for name, text in {"classInd.txt": classes, "trainlist01.txt": train, "testlist01.txt": test}.items():
        if text is not None:
            (folder / name).write_text(text)
    return folder


# official lists


def test_a_list_that_is_not_utf8_is_named(tmp_path):
    ucf(tmp_path)
    (tmp_path / "trainlist01.txt").write_bytes("Run/v_Rün_g02_c01.avi 1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"trainlist01.txt is not UTF-8 \(invalid .*, byte 7\); save it as UTF-8"):
        read_ucf101_lists(tmp_path, "1")


@pytest.mark.parametrize(("split", "train", "test"), [("1", 9537, 3783), ("2", 9586, 3734), ("03", 9624, 3696)])
def test_official_ucf101_counts(shared, split, train, test):
    rows = read_ucf101_lists(shared / "data/splits/ucfTrainTestlist", split)
    assert Counter(row.part for row in rows) == {"train": train, "test": test}
    assert len({row.id for row in rows}) == 13320
    assert len({row.group for row in rows}) == 101 * 25
    assert not {row.group for row in rows if row.part == "train"} & {row.group for row in rows if row.part == "test"}


def test_official_ucf101_classes(shared):
    names = read_ucf101_classes(shared / "data/splits/ucfTrainTestlist")
    assert (len(names), names[0], names[36], names[100]) == (101, "ApplyEyeMakeup", "HandstandPushups", "YoYo")


def test_official_ucf101_handstand_pushups(shared):
    rows = read_ucf101_lists(shared / "data/splits/ucfTrainTestlist", "1")
    rows = [row for row in rows if row.class_name == "HandstandPushups"]
    assert len(rows) == 128  # as UCF counts them
    assert all(row.id.startswith("v_HandStandPushups_g") for row in rows)
    assert {row.group for row in rows} == {f"HandstandPushups_g{number:02d}" for number in range(1, 26)}


@pytest.mark.parametrize("split", ["1", "2", "3"])
def test_official_hmdb51_counts(shared, split):
    rows = read_hmdb51_lists(shared / "data/splits/testTrainMulti_7030_splits", split)
    assert Counter(row.part for row in rows) == {"train": 3570, "test": 1530, "unused": 1666}
    assert len({row.class_name for row in rows}) == 51
    assert [row.path for row in rows] == sorted(row.path for row in rows)
    per_class = Counter((row.class_name, row.part) for row in rows if row.part != "unused")
    assert set(per_class.values()) == {70, 30}


def test_official_hmdb51_groups_are_the_source_videos(shared):
    rows = read_hmdb51_lists(shared / "data/splits/testTrainMulti_7030_splits", "1")
    group = {row.id: row.group for row in rows}
    assert group["Amazing_Soccer_#2_kick_ball_f_cm_np1_ba_bad_5"] == "Amazing_Soccer_#2"
    assert group["50_FIRST_DATES_kick_f_cm_np1_ba_med_19"] == "50_FIRST_DATES"


# UCF-101


def test_ucf101_rows(tmp_path):
    ucf(tmp_path)
    (tmp_path / "trainlist02.txt").write_text("Run/v_Run_g01_c01.avi 1\n./Run//v_Run_g09_c01.avi 1\n")
    rows = read_ucf101_lists(tmp_path, "1")
    assert [(row.path, row.class_name, row.group, row.part) for row in rows] == [
        ("Jump/v_Jump_g01_c01.avi", "Jump", "Jump_g01", "test"),
        ("Jump/v_Jump_g02_c01.avi", "Jump", "Jump_g02", "train"),
        ("Run/v_Run_g01_c01.avi", "Run", "Run_g01", "test"),
        ("Run/v_Run_g02_c01.avi", "Run", "Run_g02", "train"),
        ("Run/v_Run_g09_c01.avi", "Run", "Run_g09", "unused"),
    ]


def test_ucf101_lists_with_windows_line_ends_and_byte_order_mark(tmp_path):
    ucf(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_ucf101_classes(tmp_path) == ["Run", "Jump"]
    assert len(read_ucf101_lists(tmp_path, "1")) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": "0 Run\n1 Jump\n"}, "not 1, 2, 3"),
        ({"classes": "1 Run\n2 run\n"}, "named twice"),
        ({"train": "Runn/v_Run_g02_c01.avi 1\n"}, "class 'Runn' does not exist; did you mean 'Run'"),
        ({"train": "Run/v_Run_g02_c01.avi 2\n"}, "has label 2; classInd.txt numbers Run 1"),
        ({"train": "Run/v_Run_g02_c01.avi 7\n"}, "has label 7"),
        ({"train": "Run/v_Run_g01_c01.avi 1\n"}, "listed twice in one split, as test and as train"),
        ({"train": "v_Run_g02_c01.avi 1\n"}, "is not <Class>/<video>"),
        ({"train": "Run/more/v_Run_g02_c01.avi 1\n"}, "is not <Class>/<video>"),
        ({"train": "Run/a.avi 1\n"}, "no _gNN_, so its group is unknown"),
        ({"train": "../Run/v_Run_g02_c01.avi 1\n"}, "must be relative to the folder"),
        ({"train": "/Run/v_Run_g02_c01.avi 1\n"}, "must be relative to the folder"),
        ({"train": "\n"}, "split 1: trainlist01.txt is missing or empty"),
        ({"test": None}, "split 1: testlist01.txt is missing or empty"),
    ],
)
def test_ucf101_lists_that_contradict_themselves(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_ucf101_lists(ucf(tmp_path, **change), "1")


@pytest.mark.parametrize("split", ["4", "daria"])
def test_ucf101_split_that_does_not_exist(tmp_path, split):
    with pytest.raises(ValueError, match=f"split '{split}' does not exist; allowed: 1"):
        read_ucf101_lists(ucf(tmp_path), split)


def test_ucf101_without_class_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="no classInd.txt"):
        read_ucf101_lists(tmp_path, "1")


# HMDB-51


def test_hmdb51_rows_with_names_as_they_are(tmp_path):
    names = [f"[x]_&_(y);_#2+!_kick{HMDB_TAIL}0.avi", f"a b_kick{HMDB_TAIL}1.avi", f"-q_kick{HMDB_TAIL}2.avi"]
    (tmp_path / "kick_test_split1.txt").write_text("".join(f"{name} {k} \n" for k, name in enumerate(names)))
    rows = {row.part: row for row in read_hmdb51_lists(tmp_path, "1")}
    wanted = {"unused": "[x]_&_(y);_#2+!", "train": "a b", "test": "-q"}
    assert {part: row.group for part, row in rows.items()} == wanted
    assert rows["train"].path == f"kick/{names[1]}"
    assert rows["test"].id == names[2][:-4]


def test_hmdb51_lists_that_contradict_themselves(tmp_path):
    file = tmp_path / "kick_test_split1.txt"
    file.write_text(f"a_kick{HMDB_TAIL}1.avi 3\n")
    with pytest.raises(ValueError, match="does not end in 0"):
        read_hmdb51_lists(tmp_path, "1")
    file.write_text("holiday.avi 1\n")
    with pytest.raises(ValueError, match="'holiday.avi' is not <source>_kick_"):
        read_hmdb51_lists(tmp_path, "1")
    file.write_text(f"a_kick{HMDB_TAIL}1.avi 1\na_kick{HMDB_TAIL}1.avi 2\n")
    with pytest.raises(ValueError, match="listed twice in one split, as train and as test"):
        read_hmdb51_lists(tmp_path, "1")
    with pytest.raises(ValueError, match="split '2' does not exist"):
        read_hmdb51_lists(tmp_path, "2")
    (tmp_path / "run_test_split2.txt").write_text(f"a_run{HMDB_TAIL}1.avi 1\n")
    with pytest.raises(ValueError, match="kick_test_split2.txt is missing"):
        read_hmdb51_lists(tmp_path, "2")
