"""What is said of unlabeled videos, as a text: against rows written by hand."""

import csv
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from pipeline.catalog import UNKNOWN, UNREADABLE, Catalog, Clip
from pipeline.scores import Scores, predictions

CLASSES = ("jump", "run", "walk")
NAN = [float("nan")] * 3


def catalog(*paths: str) -> Catalog:
    """Unlabelled clips at these paths."""
    rows = [Clip(path[:-4].replace("/", "__"), path, UNKNOWN, "", "g", "test", 1, 1, UNREADABLE) for path in paths]
    return Catalog(tuple(rows), (), "1", ())


def scores(said: dict[str, list[float]], classes: tuple[str, ...] = CLASSES) -> Scores:
    return Scores(tuple(said), np.array(list(said.values())), [UNKNOWN] * len(said), classes)


class Store:
    """What the predictions ask of a store: frames of each clip, and what is told of it."""

    def __init__(self, failed=(), *, odd=(), frames=()):
        self.failed, self.odd = dict(failed), dict(odd)
        self.rows = defaultdict(
            lambda: {"frames": 9}, {name: {"frames": count} for name, count in dict(frames).items()}
        )


def written(path, tables, clips, frames=None) -> list[list[str]]:
    predictions.write(path, tables, clips, frames or Store(), Store())
    return list(csv.reader(path.open(newline="")))


def test_a_row_says_the_likeliest_classes_and_each_streams_own(tmp_path):
    fused = scores({"a": [0.2, 0.5, 0.3], "in__b": NAN, "c": [0.4, 0.2, 0.4]})
    spatial = scores({"c": [0.1, 0.8, 0.1], "a": [0.1, 0.2, 0.7], "in__b": NAN})  # in another order
    temporal = scores({"a": [0.3, 0.7, 0.0], "in__b": [1, 0, 0], "c": [0.9, 0.05, 0.05]})
    tables = {"fused": fused, "spatial": spatial, "temporal": temporal}
    frames = Store({"in__b": "no frame decodes"}, odd={"c": "28 of 50 decode"}, frames={"a": 5, "in__b": 0, "c": 28})
    rows = written(tmp_path / "p.csv", tables, catalog("a.avi", "in/b.avi", "c.avi"), frames)
    ranks = ["class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    assert rows == [
        [
            "path",
            *ranks,
            "spatial",
            "spatial_probability",
            "temporal",
            "temporal_probability",
            "frames",
            "note",
            "reason",
        ],
        ["a.avi", "run", "0.5000", "walk", "0.3000", "jump", "0.2000", "walk", "0.7000", "run", "0.7000", "5", "", ""],
        ["in/b.avi", *[""] * 10, "0", "", "no frame decodes"],
        ["c.avi", "jump", "0.4000", "walk", "0.4000", "run", "0.2000", "run", "0.8000", "jump", "0.9000"]
        + ["28", "28 of 50 decode", ""],
    ]
    assert predictions.shown(tmp_path / "p.csv").splitlines() == [
        "a.avi  run   0.5000",
        "c.avi  jump  0.4000  28 of 50 decode",
        "in/b.avi failed: no frame decodes",
    ]


def test_five_classes_of_many_and_a_reason_that_no_store_knows(tmp_path):
    many = tuple(f"class{k}" for k in range(8))
    fused = scores({"a": list(np.arange(8) / 28), "b": [float("nan")] * 8}, many)
    rows = written(tmp_path / "p.csv", {"fused": fused}, catalog("a.avi", "b.avi"))
    assert rows[1][1:11:2] == ["class7", "class6", "class5", "class4", "class3"] and len(rows[0]) == 14
    assert rows[2][-1] == "scoring failed"


def test_names_are_just_names(tmp_path):
    name = 'a "quoted", name\nof two lines; =1+1.avi'
    path = tmp_path / "p.csv"
    rows = written(path, {"fused": scores({name[:-4]: [0, 0, 1]})}, catalog(name))
    assert rows[1][:2] == [name, "walk"]
    assert predictions.shown(path) == r'a "quoted", name\nof two lines; =1+1.avi  walk  1.0000'


def test_scores_of_other_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the scores and the catalog hold different clips, such as 'b'"):
        predictions.write(
            tmp_path / "p.csv", {"fused": scores({"a": [0, 0, 1]})}, catalog("a.avi", "b.avi"), Store(), Store()
        )
    tables = {"fused": scores({"a": [0, 0, 1]}), "spatial": scores({"b": [0, 0, 1]})}
    with pytest.raises(ValueError, match="the tables hold different clips"):
        predictions.write(tmp_path / "p.csv", tables, catalog("a.avi"), Store(), Store())


def test_a_video_that_the_streams_know_is_noted(tmp_path):
    clips = [replace(clip, content=clip.id * 16) for clip in catalog("a.avi", "b.avi", "c.avi").clips]
    clips.append(replace(clips[0], id="d", path="d.avi", content=UNREADABLE))
    said = dict.fromkeys("abcd", [1.0, 0, 0])
    frames, known = Store(odd={"a": "28 of 50 decode"}), {"a" * 16, "b" * 16, UNREADABLE}
    tables, path = {"fused": scores(said)}, tmp_path / "p.csv"
    predictions.write(path, tables, Catalog(tuple(clips), (), "1", ()), frames, Store(), known)
    notes = {row["path"]: row["note"] for row in csv.DictReader(path.open(newline=""))}
    told = "the streams were trained or chosen on it"
    assert notes == {"a.avi": f"28 of 50 decode; {told}", "b.avi": told, "c.avi": "", "d.avi": ""}


def test_a_terminal_gets_the_first_videos_and_then_those_that_failed(tmp_path):
    said = {f"v{k:02}": [1.0, 0, 0] if k % 3 else NAN for k in range(70)}
    path = tmp_path / "p.csv"
    frames = Store({"v00": "the file\nis empty"})
    predictions.write(path, {"fused": scores(said)}, catalog(*(f"{name}.avi" for name in said)), frames, Store())
    lines = predictions.shown(path).splitlines()
    assert lines[0] == "v01.avi  jump  1.0000" and lines[20] == "... and 26 more"
    assert lines[21:23] == [r"v00.avi failed: the file\nis empty", "v03.avi failed: scoring failed"]
    assert lines[-1] == "... and 4 more failed" and len(lines) == 42


def test_the_first_store_that_knows_gives_the_reason():
    frames, flow = Store({"a": "empty file"}), Store({"a": "there are no frames", "b": "one frame"})
    assert predictions.reasons(frames, flow) == {"a": "empty file", "b": "one frame"}
