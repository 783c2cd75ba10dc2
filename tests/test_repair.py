"""Damage is found and named, what is repaired is made again, and nothing else is called damaged."""

import errno
import json
import os
import re
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from stores import smooth_flow, write_flow, write_frames

from pipeline import store
from pipeline.__main__ import main
from pipeline.artifacts import damage
from pipeline.scores import Scores
from pipeline.system import locks
from pipeline.system.errors import DamagedFile, MachineFault


def test_damage_is_found(frames, flow, tmp_path):
    assert damage.verify(frames) == [] and damage.verify(flow.parent) == []
    with h5py.File(frames.parent / "shards/shard-all.h5", "r+") as file:
        file["clips/a/jpeg"][100] ^= 255
    assert damage.verify(frames) == ["a: its bytes do not match their checksum; `python -m pipeline repair` this store"]
    (flow.parent / "shards/shard-all.h5").unlink()
    assert "does not exist" in damage.verify(flow)[0]
    Scores(("a",), np.array([[1.0, 0.0]], np.float32), np.array([0]), ("x", "y")).write(tmp_path / "scores.h5")
    assert damage.verify(tmp_path / "scores.h5") == []


OTHER_FILES = {
    "checkpoint.pt": "weights or a training under way, saved by torch",
    "curve.json": "plain text",
    "report.html": "a page for a browser",
    "table.md": "plain text",
}


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize("command", ["inspect", "verify", "repair"])
def test_a_file_of_another_kind_is_named_and_not_called_damaged(tmp_path, capsys, command, name):
    """Least of all is its deletion advised: a checkpoint may be days of work."""
    (tmp_path / name).write_text("{}")
    shown = command == "inspect" and name == "curve.json"
    for path in (tmp_path / name, *([tmp_path] if name == "curve.json" else [])):
        assert main([command, str(path)]) == (0 if shown else 2)
        told = capsys.readouterr().err
        said = f"{name} is no HDF5 file but {OTHER_FILES[name]}; this command reads .h5 files"
        if path.is_dir() and command == "verify":
            said = f"{path} has no checksums: its stage writes curve.json and other files that have none"
        assert shown or said in told
        assert "delete" not in told and "damaged" not in told


def test_scores_and_catalogs_are_checked_as_a_whole_and_not_repaired(tmp_path, capsys):
    path = tmp_path / "scores.h5"
    Scores(("a",), np.array([[1.0, 0.0]], np.float32), np.array([0]), ("x", "y")).write(path)
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: its table is as it was written\n"
    with pytest.raises(
        ValueError, match="is a scores file, no part of which can be made alone: only stores of frames and flow"
    ):
        damage.repair(path)
    with h5py.File(path, "r+") as file:
        file["probabilities"][0, 0] = 0.5
    (fault,) = damage.verify(path)
    assert fault == f"{path} is damaged (its arrays are not those that were written); delete it and run its stage again"
    with h5py.File(path, "r+") as file:
        del file["labels"]
    assert damage.verify(path) == [fault]


def test_views_are_checked_by_verify(tmp_path):
    path, half = tmp_path / "scores.h5", np.full((4, 2), 0.5, np.float32)
    table = Scores(("a", "b"), half[:2], np.array([0, 1]), ("x", "y"), np.zeros((2, 3), np.float32))
    with store.create_scores(path, {}, clips=2, views=4) as writer:
        for row, first in ((0, 0), (0, 2), (1, 0), (1, 2)):
            writer.put(row, first, half[:2], np.zeros((2, 3), np.float32))
        writer.put_table(table.arrays())
    assert damage.verify(path) == []
    with h5py.File(path) as file:
        place = file["views/probabilities"].id.get_chunk_info(1).byte_offset
    with path.open("r+b") as file:
        file.seek(place + 2)
        file.write(b"\x55")
    (fault,) = damage.verify(path)
    assert fault.startswith(f"{path} is damaged (") and fault.endswith("; delete it and run its stage again")


def test_every_table_of_an_artifact_is_checked(tmp_path, capsys):
    (tmp_path / "fusion.json").write_text("{}")
    for name in ("average", "svm"):
        (tmp_path / name).mkdir()
        table = Scores(("a",), np.array([[1.0, 0.0]], np.float32), np.array([0]), ("x", "y"))
        table.write(tmp_path / name / "scores.h5")
    assert main(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: every table is as it was written\n"
    with h5py.File(tmp_path / "svm/scores.h5", "r+") as file:
        file["probabilities"][0, 0] = 0.5
    assert main(["verify", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith(f"{tmp_path}: svm/scores.h5: ")


def test_a_shard_that_is_cut_off_or_gone_is_repaired(frames, flow):
    shard = frames.parent / "shards/shard-all.h5"
    shard.write_bytes(shard.read_bytes()[:-100])
    fault, of_failed = damage.verify(frames)
    assert (
        of_failed.startswith("b: ")
        and f"`python -m pipeline repair {frames.parent}` removes its shard; run the stage again" in fault
    )
    assert damage.repair(shard).removed == ["shard-all"]  # the shard stands for its store
    assert not frames.exists() and not shard.exists()
    (flow.parent / "shards/shard-all.h5").unlink()
    assert damage.repair(flow).removed == ["shard-all"] and not flow.exists()
    with pytest.raises(FileNotFoundError, match="has no index.h5 yet; run its stage, which keeps the shards"):
        damage.repair(flow.parent)


@pytest.fixture
def half_new(tmp_path) -> Path:
    """A store whose index was made of other flow than its shard holds, as after a run that was killed in between."""
    old, new = (
        write_flow(tmp_path / name, np.full((4, 2, 48, 64), motion, np.float32))
        for name, motion in (("old", 3), ("new", 2))
    )
    (new.parent / "shards/shard-all.h5").replace(old.parent / "shards/shard-all.h5")
    return old


def test_an_index_of_other_shards_is_reported(half_new, capsys):
    told = (
        f"clip 'a' of {half_new.parent}: its shard is not the one that the index was made from; run the stage again, or "
        f"first `python -m pipeline repair {half_new.parent}`, if it finds nothing to do"
    )
    with pytest.raises(DamagedFile, match=re.escape(told)):
        store.open_flow(half_new)["a"]
    assert damage.verify(half_new) == [f"a: {told}"]
    shard = half_new.parent / "shards/shard-all.h5"
    assert store.open_flow(shard)["a"].flow(0, 1).mean() == pytest.approx(2, abs=0.1)
    assert main(["repair", str(half_new.parent)]) == 0
    assert capsys.readouterr().out.startswith(f"{half_new.parent}: removed index; run the stage again\n")
    assert not half_new.exists() and shard.exists()  # which may be right, and the work of hours


def test_what_is_damaged_in_the_shards_of_an_index_of_others_goes_too(half_new):
    shard = half_new.parent / "shards/shard-all.h5"
    with h5py.File(shard, "r+") as file:
        file["clips/a/jpeg"][100] ^= 255
    assert damage.repair(half_new) == ("flow", ["shard-all"], ["a"]) and not shard.exists() and not half_new.exists()


def test_a_link_to_an_index_stands_for_it(flow, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere/flow.h5"
    link.symlink_to(flow)
    with store.open_flow(link) as opened:
        assert damage.verify(link) == [] and opened["a"].flow(0, 1).mean() == pytest.approx(3, abs=0.1)
    assert main(["repair", str(link)]) == 0 and "nothing is damaged" in capsys.readouterr().out
    assert link.is_symlink() and flow.exists()
    with h5py.File(flow.parent / "shards/shard-all.h5", "r+") as file:
        file["clips/a/jpeg"][100] ^= 255
    assert damage.repair(link).removed == ["shard-all"]
    assert not flow.exists() and not (flow.parent / "shards/shard-all.h5").exists()


def test_shards_that_are_links_to_other_names_are_read_and_kept(frames, tmp_path):
    """As in a cache whose files are named by their content."""
    shard = frames.parent / "shards/shard-all.h5"
    shard.rename(tmp_path / "0a1b2c")
    shard.symlink_to(tmp_path / "0a1b2c")
    assert len(store.open_frames(shard)["a"]) == 5 and damage.verify(frames) == []
    frames.unlink()
    assert damage.repair(frames.parent).removed == [] and shard.is_symlink()


def test_an_unfinished_store_is_repaired_too(frames):
    """Its stage may have ended because too many clips failed, for a reason that is gone."""
    frames.unlink()
    shard = frames.parent / "shards/shard-all.h5"
    assert damage.repair(frames.parent) == ("frames", [], []) and shard.exists()
    assert damage.repair(shard, failed=True) == ("frames", ["shard-all"], []) and not shard.exists()


def test_damage_in_an_unfinished_store_is_repaired(frames):
    frames.unlink()
    shard = frames.parent / "shards/shard-all.h5"
    whole = shard.read_bytes()
    with h5py.File(shard, "r+") as file:
        file["clips/a/jpeg"][100] ^= 255
    assert damage.repair(frames.parent) == ("frames", ["shard-all"], ["a"]) and not shard.exists()
    shard.write_bytes(whole[:-100])
    assert damage.repair(frames.parent).removed == ["shard-all"] and not shard.exists()


def test_a_shard_that_may_not_be_read_is_not_removed(frames, monkeypatch):
    def refused(path, kind):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "read_records", refused)
    with pytest.raises(PermissionError, match="Permission denied"):
        damage.repair(frames)
    assert frames.exists() and (frames.parent / "shards/shard-all.h5").exists()


TOO_LITTLE_MEMORY = [
    (os, "pread", MemoryError()),
    (cv2, "imdecode", cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate")),
    (h5py, "File", OSError("Unable to synchronously open file (memory allocation failed for metadata cache)")),
]


@pytest.mark.parametrize(("owner", "name", "error"), TOO_LITTLE_MEMORY, ids=["numpy", "OpenCV", "HDF5"])
@pytest.mark.parametrize("command", ["verify", "repair"])
def test_too_little_memory_is_not_damage(frames, monkeypatch, capsys, command, owner, name, error):
    works = getattr(owner, name)

    def fail(*given, **how):
        if given and str(given[0]).endswith("index.h5"):
            return works(*given, **how)
        raise error

    monkeypatch.setattr(owner, name, fail)
    assert main([command, str(frames)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert any(
        words in said
        for words in ("MemoryError, while reading clip 'a'", "Insufficient memory", "delete it, then `python -m pip")
    )
    monkeypatch.undo()
    assert frames.is_file() and damage.verify(frames) == []


@pytest.mark.parametrize("command", [damage.verify, damage.repair])
def test_a_store_whose_shards_are_on_a_disk_that_is_not_mounted_is_not_damaged(frames, command):
    away = frames.parent / "shards"
    away.rename(frames.parent / "elsewhere")
    with pytest.raises(MachineFault, match=rf"shard-all.h5 does not exist .*\(if they are gone .* delete {frames} too"):
        command(frames)
    (frames.parent / "elsewhere").rename(away)
    assert frames.is_file() and damage.verify(frames) == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), OSError(errno.EMFILE, "many")])
@pytest.mark.parametrize("command", [damage.verify, damage.repair])
def test_an_error_of_the_machine_is_not_damage(frames, monkeypatch, command, error):
    """A disk of the network may be back in a minute: what lies there whole must not be removed."""

    def fail(*_):
        raise error

    shard = frames.parent / "shards/shard-all.h5"
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(type(error)):
        command(frames)
    monkeypatch.undo()
    assert shard.is_file() and frames.is_file() and damage.verify(frames) == []


def test_a_shard_of_clips_that_failed_is_looked_at_too(tmp_path):
    """Flow reads its table; that nothing is damaged would be no answer."""
    path = write_frames(tmp_path, {}, failed={"b": "empty"})
    (tmp_path / "shards/shard-all.h5").unlink()
    assert "does not exist" in damage.verify(path)[0]
    assert damage.repair(path).removed == ["shard-all"] and not path.exists()


def test_repair_removes_what_is_damaged_and_the_index(frames, flow, capsys):
    assert damage.repair(frames) == ("frames", [], []) and frames.exists()
    assert damage.repair(frames.parent, failed=True) == ("frames", ["shard-all"], [])
    assert not frames.exists() and not (frames.parent / "shards/shard-all.h5").exists()
    with h5py.File(flow.parent / "shards/shard-all.h5", "r+") as file:
        file["clips/a/jpeg"][100] ^= 255
    capsys.readouterr()
    assert main(["repair", str(flow)]) == 0 and not flow.exists()
    removed, rest = capsys.readouterr().out.splitlines()
    assert removed == f"{flow}: removed shard-all; run the stage again"
    assert rest.startswith(
        "this does not remake trainings and scores made from 'a' after the damage; `python -m pipeline inv"
    )


def test_what_is_being_written_is_not_repaired(flow, capsys):
    with locks.one_writer(flow.parent):
        assert main(["repair", str(flow)]) == 2 and flow.exists()
    assert f"{flow.parent} is being written or read; wait for that to end" in capsys.readouterr().err


def test_verify_tells_by_its_exit_status(frames, capsys):
    with h5py.File(frames.parent / "shards/shard-all.h5", "r+") as file:
        file["clips/a/jpeg"][100] ^= 255
    assert main(["verify", str(frames)]) == 1 and "checksum" in capsys.readouterr().out


def test_several_paths_are_looked_at_one_after_the_other(frames, flow, tmp_path, capsys):
    (tmp_path / "curve.json").write_text("{}")
    paths = [str(frames.parent), str(tmp_path), str(flow.parent)]
    assert main(["verify", *paths[::2]]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == paths[::2]
    with h5py.File(frames.parent / "shards/shard-all.h5", "r+") as file:
        file["clips/a/jpeg"][100] ^= 255
    assert main(["verify", *paths[::2]]) == 1
    assert main(["verify", *paths]) == 2
    told = capsys.readouterr()
    assert "has no checksums" in told.err and told.out.count(": a: its bytes do not") == 2
    assert told.out.count("every clip is as it was written") == 2
    assert main(["inspect", *paths, "--json"]) == 0
    assert [json.loads(line)["format"] for line in capsys.readouterr().out.splitlines()] == [
        "frames",
        "curve.json",
        "flow",
    ]
    assert main(["repair", *paths[::2]]) == 0 and not frames.exists() and flow.exists()


def test_backward_flow_is_verified_too(tmp_path):
    path = write_flow(tmp_path / "x", smooth_flow(2), backward=smooth_flow(2, seed=1))
    assert damage.verify(path) == []
    with h5py.File(path.parent / "shards/shard-all.h5", "r+") as file:
        file["clips/a/backward/jpeg"][200] ^= 255
    assert len(damage.verify(path)) == 1


@pytest.mark.parametrize(("what", "name"), [("flow", "range_px"), ("flow", "backward/range_px"), ("frames", "seconds")])
def test_what_lies_beside_the_images_has_a_checksum_of_its_own(tmp_path, what, name):
    if what == "flow":
        index = write_flow(tmp_path, smooth_flow(4), backward=smooth_flow(4, seed=1), minmax=True)
    else:
        index = write_frames(tmp_path, {"a": np.zeros((5, 48, 64, 3), np.uint8)})
    assert damage.verify(index) == []
    shard = index.parent / "shards/shard-all.h5"
    with h5py.File(shard) as file:
        (clip,) = file["clips"].values()
        place = clip[name].id.get_chunk_info(0).byte_offset
    with shard.open("r+b") as file:
        file.seek(place + 2)
        byte = file.read(1)[0]
        file.seek(place + 2)
        file.write(bytes([byte ^ 64]))
    (fault,) = damage.verify(index)
    assert "read data" in fault and "`python -m pipeline repair" in fault
    assert damage.repair(index).removed == ["shard-all"]
