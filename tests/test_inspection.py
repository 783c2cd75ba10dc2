"""Looking inside: what is shown is what is there, damage is found, and mistakes are answered in words."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, moving_texture
from stores import write_frames

from pipeline import store
from pipeline.__main__ import _answered, main
from pipeline.artifacts import garbage, inspection, pictures
from pipeline.artifacts.status import STAGE_FILES, status
from pipeline.catalog import Catalog, Clip
from pipeline.scores import Scores
from pipeline.system import locks


def test_a_store_is_summed_up_and_one_clip_shown(frames):
    found = inspection.describe(frames.parent)
    assert found["format"] == "frames" and found["attrs"]["digest"] == "d" * 12
    assert {name: found["summary"][name] for name in ("clips", "failed", "frames", "shards")} == {
        "clips": 1,
        "failed": 1,
        "frames": 5,
        "shards": 1,
    }
    assert [(row["id"], row["status"], row["reason"]) for row in found["rows"]] == [
        ("a", "ok", ""),
        ("b", "failed", "empty"),
    ]
    assert (found["clip"]["id"], found["clip"]["length"], found["clip"]["last_seconds"]) == ("a", 5, 0.16)
    assert json.loads(json.dumps(found)) == found


def test_flow_is_reported_in_pixels(flow):
    clip = inspection.describe(flow, clip="a")["clip"]
    assert clip["mean_x_px"] == pytest.approx(3, abs=0.1) and clip["mean_speed_px"] == pytest.approx(
        3 * 2**0.5, abs=0.1
    )


def test_catalogs_and_scores(tmp_path):
    clips = (
        Clip("a", "x/a.avi", 0, "x", "g", "train", 1, 2, "0" * 16),
        Clip("b", "y/b.avi", 1, "y", "h", "test", 1, 2, "0" * 16),
    )
    store.write_catalog(tmp_path / "catalog.h5", Catalog(clips=clips, classes=("x", "y"), split_name="1", absent=()))
    found = inspection.describe(tmp_path)
    assert found["summary"]["parts"] == {"train": 1, "test": 1} and found["rows"][1]["id"] == "b"

    rows = np.array([[0.25, 0.75], [0.5, 0.5], [np.nan, np.nan]], np.float32)
    Scores(("a", "b", "c"), rows, np.array([1, 1, 0]), ("x", "y")).write(tmp_path / "scores.h5", inputs="i")
    found = inspection.describe(tmp_path / "scores.h5")
    assert found["summary"]["top1"] == pytest.approx(1 / 3) and found["summary"]["failed"] == ["c"]
    assert found["rows"][0] == {"id": "a", "class": "y", "said": "y", "probability": 0.75}
    assert found["rows"][2]["said"] == "failed"


def test_pictures(frames, flow, tmp_path):
    pictures.picture(frames, tmp_path / "frames.png", images=3)
    assert cv2.imread(str(tmp_path / "frames.png")).shape == (48, 3 * 64, 3)
    pictures.picture(flow, tmp_path / "flow.png")
    assert cv2.imread(str(tmp_path / "flow.png")).shape == (48, 4 * 64, 3)
    for name in ("frames", "frames.foo"):
        with pytest.raises(ValueError, match=f"the picture's path is '.*/{name}'; give a path that ends in .png"):
            pictures.picture(frames, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="the folder '.*/absent' for the picture does not exist"):
        pictures.picture(frames, tmp_path / "absent" / "frames.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OSError, match="no picture can be written to .*/taken.png"):
        pictures.picture(frames, tmp_path / "taken.png")
    with pytest.raises(ValueError, match="holds no clip of which a picture could be made"):
        pictures.picture(write_frames(tmp_path / "none", {}, failed={"b": "empty"}), tmp_path / "x.png")
    store.write_arrays(tmp_path / "x.h5", "scores", {}, {})
    with pytest.raises(ValueError, match="is a scores file; pictures are made of frames and flow stores"):
        pictures.picture(tmp_path / "x.h5", tmp_path / "x.png")


@pytest.mark.parametrize(("x", "y", "color"), [(4, 0, (255, 0, 0)), (-4, 0, (0, 255, 255)), (0, 0, (0, 0, 0))])
def test_hue_is_direction(x, y, color):
    flow = np.stack([np.full((2, 2), x, np.float32), np.full((2, 2), y, np.float32)])
    assert np.abs(pictures.flow_colors(flow, full_px=4.0)[0, 0].astype(int) - color).max() <= 3


def test_status_lists_artifacts_in_the_order_of_the_chain(frames, flow, tmp_path):
    flow.unlink()
    rows = status(tmp_path)
    assert [(row["dataset"], row["stage"], row["label"], row["digest"], row["state"]) for row in rows] == [
        ("demo", "frames", "native", "0123456789ab", "done"),
        ("demo", "flow", "dis", "0123456789ab", "unfinished"),
    ]
    sizes = sum(file.stat().st_size for file in frames.parent.rglob("*.h5"))
    assert rows[0]["bytes"] == sizes


def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    assert status(tmp_path / "none") == []

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)  # root may read anything
    with pytest.raises(PermissionError, match=str(tmp_path)):
        status(tmp_path)


@pytest.mark.parametrize(
    ("stage", "last", "also"),
    [
        ("train_stream", "curve.json", "checkpoint.pt"),
        ("fuse", "fusion.json", "average/scores.h5"),
        ("score_videos", "scores.h5", "predictions.csv"),
    ],
)
def test_what_lacks_the_other_half_of_a_result_is_not_done(tmp_path, stage, last, also):
    folder = tmp_path / f"demo/{stage}/x-0123456789ab"
    folder.mkdir(parents=True)
    (folder / last).write_text("{}")
    assert [row["state"] for row in status(tmp_path)] == ["unfinished"]
    (folder / also).parent.mkdir(exist_ok=True)
    (folder / also).write_bytes(b"")
    assert [row["state"] for row in status(tmp_path)] == ["done"]


def test_invalidate_removes_a_stage(frames, flow, tmp_path):
    with pytest.raises(ValueError, match="stage 'flwo' does not exist; did you mean 'flow'. allowed: all_splits, cat"):
        garbage.invalidate(tmp_path, "flwo")
    with pytest.raises(ValueError, match="dataset 'dmo' in .* does not exist; did you mean 'demo'. allowed: demo"):
        garbage.invalidate(tmp_path, "flow", dataset="dmo")
    assert garbage.invalidate(tmp_path, "fuse", dataset="demo") == []
    other = flow.parent.with_name("tvl1-fedcba987654")
    shutil.copytree(flow.parent, other)
    with pytest.raises(ValueError, match="digest 'ffff' of stage flow does not exist"):
        garbage.invalidate(tmp_path, "flow", digest="ffff")
    shutil.copytree(flow.parent, flow.parent.with_name("tvl1-fedc00000000"))
    with pytest.raises(ValueError, match="2 digests of stage flow begin with 'fedc': fedc00000000, fedcba987654"):
        garbage.invalidate(tmp_path, "flow", digest="fedc")
    assert garbage.invalidate(tmp_path, "flow", digest="fedcb") == [other] and not other.exists()
    assert garbage.invalidate(tmp_path, "flow", digest="fedc") == [flow.parent.with_name("tvl1-fedc00000000")]
    with (
        locks.one_writer(flow.parent),
        pytest.raises(ValueError, match=f"{flow.parent} is being written or read; wait for"),
    ):
        garbage.invalidate(tmp_path, "flow")
    assert garbage.invalidate(tmp_path, "flow") == [flow.parent]
    assert not flow.parent.exists() and frames.exists()


def test_the_folder_of_artifacts_is_the_configured_one(frames, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    monkeypatch.delenv("LUIGI_CONFIG_PATH", raising=False)
    for text, shown in [
        ("", "nothing has been made in data/artifacts;"),
        (f"[run]\nartifacts = {tmp_path}\n", "0123456789ab"),
        (f"[run]\nartifacts = ~/{tmp_path.name}\n", "0123456789ab"),
        (f"[run]\nartifacts = ${{HOME}}/{tmp_path.name}\n", "0123456789ab"),
    ]:
        Path("luigi.cfg").write_text(text)
        assert main(["status"]) == 0 and shown in capsys.readouterr().out
    Path("luigi.cfg").write_text("[run]\nartifacts = elsewhere\n")
    Path("mine.cfg").write_text(f"[run]\nartifacts = {tmp_path}\n")
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "mine.cfg")
    assert main(["status"]) == 0 and "0123456789ab" in capsys.readouterr().out
    assert main(["status", "--artifacts", "here"]) == 0 and "nothing has been made in here;" in capsys.readouterr().out
    Path("luigi.cfg").write_text("[run]\nartifacts = ~nobody/x\n")  # Luigi's command takes it as it is
    monkeypatch.delenv("LUIGI_CONFIG_PATH")
    assert main(["status"]) == 0 and "nothing has been made in ~nobody/x;" in capsys.readouterr().out


def test_settings_that_may_not_be_read_are_not_those_of_luigi_cfg(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "mine.cfg")
    Path("mine.cfg").write_text("[run]\nartifacts = elsewhere\n")
    read = Path.read_text

    def refuse(path, *given, **named):
        if path.name == "mine.cfg":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert main(["status"]) == 2 and capsys.readouterr().err == "error: [Errno 13] Permission denied: 'mine.cfg'\n"


def test_nothing_is_looked_for_or_removed_if_the_named_settings_are_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "klien.cfg")
    kept = write_frames(tmp_path / "data/artifacts/set/frames/native-0123456789ab", {"a": moving_texture(2)})
    for command in ("status", "gc --yes", "invalidate frames --all", "doctor"):
        assert main(command.split()) == 2
        assert "LUIGI_CONFIG_PATH is 'klien.cfg', and there is no such file" in capsys.readouterr().err
    assert kept.exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[run\n", "luigi.cfg cannot be read: File contains no section headers"),
        (b"[flow]\n[flow]\n", "luigi.cfg cannot be read: .*line +2.*section 'flow' already exists"),
        ("# Größe".encode("latin-1"), "luigi.cfg is not UTF-8: "),
    ],
)
def test_nothing_is_looked_for_or_removed_by_settings_that_cannot_be_read(tmp_path, monkeypatch, capsys, text, told):
    """They may name another folder than the one that would be taken without them."""
    monkeypatch.chdir(tmp_path)
    kept = write_frames(tmp_path / "data/artifacts/set/frames/native-0123456789ab", {"a": moving_texture(2)})
    Path("luigi.cfg").write_bytes(text)
    for command in ("status", "gc --yes", "invalidate frames --all", "doctor", "plan --quick"):
        assert main(command.split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.match(f"error: {told}", line)
    assert kept.exists() and main(["status", "--artifacts", "data/artifacts"]) == 0


def test_text_is_shown_as_it_is_in_any_script(tmp_path, capsys):
    clips = (Clip("a", "größe/a.avi", 0, "größe", "g", "train", 1, 2, "0" * 16),)
    store.write_catalog(tmp_path / "catalog.h5", Catalog(clips=clips, classes=("größe",), split_name="1", absent=()))
    main(["inspect", str(tmp_path / "catalog.h5")])
    assert '["größe"]' in capsys.readouterr().out


def test_a_data_set_named_on_the_command_line_is_found_by_the_name_given_there(frames, tmp_path):
    one, two = (
        write_frames(tmp_path / name / "frames/native-0123456789ab", {"a": moving_texture(2)}).parent
        for name in ("folder-cats-012345", "folder-dogs-543210")
    )
    with pytest.raises(ValueError, match="dataset 'folder' in .* does not exist.*: demo, folder-cats-012345, folder-d"):
        garbage.invalidate(tmp_path, "frames", dataset="folder")
    assert garbage.invalidate(tmp_path, "frames", dataset="folder-cats") == [one] and not one.exists()
    shutil.rmtree(one.parents[1])
    assert garbage.invalidate(tmp_path, "frames", dataset="folder") == [two] and frames.exists()


def test_invalidate_removes_of_several_datasets_what_was_named(frames, flow, tmp_path, capsys):
    other = write_frames(tmp_path / "other/frames/native-0123456789ab", {"a": moving_texture(2)})
    options = ["invalidate", "frames", "--artifacts", str(tmp_path)]
    with pytest.raises(ValueError, match="2 datasets have artifacts of stage frames: demo, other; give --dataset NAME"):
        garbage.invalidate(tmp_path, "frames")
    assert main(options) == 2 and "or --all for all of them" in capsys.readouterr().err
    assert garbage.invalidate(tmp_path, "frames", dataset="other") == [other.parent]
    assert frames.exists() and not other.exists()
    other = write_frames(tmp_path / "other/frames/native-0123456789ab", {"a": moving_texture(2)})
    assert main([*options, "--all"]) == 0 and not frames.exists() and not other.exists() and flow.exists()


def test_every_stage_has_files_and_all_files_have_a_stage():
    import tasks

    stages = [tasks.Catalog, tasks.Frames, tasks.Flow, tasks.TrainStream, tasks.ScoreStream, tasks.Fuse, tasks.Report]
    stages += [tasks.ScoreVideos, tasks.AllSplits, tasks.PaperTable]
    assert sorted(task.stage for task in stages) == sorted(STAGE_FILES)


# --- the command


def test_inspect_prints_a_table_and_a_clip(frames, tmp_path, capsys):
    assert main(["inspect", str(frames), "--picture", str(tmp_path / "a.png")]) == 0
    shown = capsys.readouterr().out
    assert "id  class  label" in shown and "clip a" in shown and "empty" in shown
    assert f"wrote {tmp_path}/a.png: 5 of 5 frames of clip a" in shown
    assert main(["inspect", str(frames), "--json", "--picture", str(tmp_path / "a.png")]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["clips"] == 1


def test_long_tables_are_cut_unless_asked(tmp_path, capsys):
    path = write_frames(tmp_path / "x", {f"clip{i:02}": moving_texture(2) for i in range(25)})
    main(["inspect", str(path)])
    assert "... and 5 more (--all)" in capsys.readouterr().out
    main(["inspect", str(path), "--all"])
    assert "clip24" in capsys.readouterr().out


def test_a_table_keeps_its_columns_whatever_the_names_are(tmp_path, capsys):
    odd = {"two\nlines": "it is broken in more ways than would fit into a column", "x" * 60: "empty", "y": "\x1b[2J"}
    main(["inspect", str(write_frames(tmp_path, {"a": moving_texture(2)}, failed=odd))])
    table = [line for line in capsys.readouterr().out.splitlines() if "shard-all" in line or line.startswith("id ")]
    assert len({re.search("class|right|down", line).start() for line in table}) == 1
    assert len({re.search(" shard", line).start() for line in table}) == 1
    assert "two\\nlines" in table[2] and table[2].endswith(odd["two\nlines"])
    assert ["\\x1b[2J" in line for line in table] == [False, False, False, False, True]


def test_a_clip_is_shown_alone(tmp_path, capsys):
    path = write_frames(tmp_path / "x", {f"clip{i:02}": moving_texture(2) for i in range(25)})
    assert main(["inspect", str(path), "--clip", "clip07"]) == 0
    shown = capsys.readouterr().out
    assert set(re.findall(r"clip\d\d", shown)) == {"clip07"} and "digest" not in shown and "jpeg_bytes" in shown
    Scores(("a", "b"), np.eye(2, dtype=np.float32), np.array([0, 1]), ("x", "y")).write(tmp_path / "scores.h5")
    assert main(["inspect", str(tmp_path / "scores.h5"), "--clip", "b"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["id  class  said  probability", "b   y      y     1.0"]


def test_status_verify_invalidate_and_summary(frames, flow, tmp_path, capsys):
    assert main(["status", "--artifacts", str(tmp_path)]) == 0
    assert "demo     flow    dis     0123456789ab  done" in capsys.readouterr().out
    assert main(["status", "--artifacts", str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main(["verify", str(flow)]) == 0 and "every clip is as it was written" in capsys.readouterr().out
    assert main(["invalidate", "flow", "--artifacts", str(tmp_path)]) == 0 and "removed" in capsys.readouterr().out
    assert (
        main(["invalidate", "flow", "--artifacts", str(tmp_path)]) == 0
        and "nothing to remove" in capsys.readouterr().out
    )
    assert main(["status", "--artifacts", str(tmp_path / "none")]) == 0
    assert "nothing has been made" in capsys.readouterr().out

    row = {"top1": 0.5, "mean_class": 0.25, "top1_interval": [0.15, 0.85]}
    numbers = {
        "dataset": "demo",
        "split": "1",
        "num_test": 4,
        "spatial": row,
        "temporal": row,
        "fused": {"average": row},
        "fusion": {},
        "absent": [],
        "intervals": {"note": ""},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(numbers))
    assert main(["summary", str(tmp_path)]) == 0
    assert "fused, average     50.0%   15.0% to 85.0%       25.0%" in capsys.readouterr().out
    for name in ("table.md", "summary.md"):
        (tmp_path / name).write_text(f"| of {name} |\n", encoding="utf-8")
        assert main(["summary", str(tmp_path)]) == 0 and capsys.readouterr().out == f"| of {name} |\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "absent.h5"], "error: absent.h5 does not exist"),
        (["inspect", "{empty}"], "holds none of catalog.h5, index.h5, curve.json"),
        (["inspect", "{frames}", "--clip", "zz"], "error: 'zz' is not in"),
        (["inspect", "{scores}", "--clip", "zz"], "error: clip 'zz' is not in"),
        (["inspect", "{frames}", "{frames}", "--picture", "x.png"], "--picture is of one clip, but 2 paths are given"),
        (["summary", "{other}"], "metrics.json is not that of a report of this version; run `luigi --module tasks Rep"),
        (["summary", "{empty}"], "metrics.json does not exist; `luigi --module tasks FullPipeline` makes it"),
    ],
)
def test_mistakes_are_answered_in_words(frames, tmp_path, capsys, arguments, message):
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other/metrics.json").write_text('{"accuracy": 0.9}')
    Scores(("a",), np.array([[1.0, 0.0]], np.float32), np.array([0]), ("x", "y")).write(tmp_path / "scores.h5")
    places = {name: tmp_path / name for name in ("empty", "other", "scores.h5")}
    places = {"frames": frames, "scores": places.pop("scores.h5"), **places}
    assert main([argument.format(**places) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


def test_names_that_the_terminal_cannot_show_are_shown_otherwise(frames, tmp_path):
    shown = tmp_path / "größe"
    shutil.copytree(frames.parent, shown)
    command = [sys.executable, "-m", "pipeline", "inspect", str(shown)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0 and "gr\\xf6\\xdfe/index.h5: frames" in done.stdout and not done.stderr


@pytest.mark.parametrize("bug", [KeyError("id"), ValueError("not enough values to unpack")])
def test_a_bug_keeps_its_traceback(frames, monkeypatch, bug):
    def fails(*_, **__):
        raise bug

    monkeypatch.setattr(inspection, "describe", fails)
    with pytest.raises(type(bug)):
        main(["inspect", str(frames)])


def test_a_reader_that_has_seen_enough_ends_the_command(capsys):
    """Such as `head`: paths that are still to come are not looked at."""

    def closed():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError, match="Broken pipe"):
        _answered(closed)
    assert not capsys.readouterr().err


def test_the_curve_of_a_training_is_shown_by_its_ends(tmp_path, capsys):
    losses = [1 / step for step in range(1, 81)]
    (tmp_path / "curve.json").write_text(json.dumps({"loss": losses, "validation": [{"step": 80, "top1": 0.5}]}))
    assert main(["inspect", str(tmp_path / "curve.json")]) == 0
    shown = capsys.readouterr().out
    assert f"[1.0, 0.5, {1 / 3}, ..., {1 / 78}, {1 / 79}, 0.0125] (80 in all)" in shown
    assert '[{"step": 80, "top1": 0.5}]' in shown
    assert main(["inspect", "--json", str(tmp_path / "curve.json")]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["loss"] == losses
