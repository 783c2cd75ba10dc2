"""The files on disk, read back with bare h5py; the reader, lazy, picklable and never carried over a fork."""

import contextlib
import errno
import fcntl
import hashlib
import multiprocessing
import os
import pickle
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import h5py
import numpy as np
import pytest
from conftest import moving_texture
from stores import ABOUT, ATTRS, smooth_flow, write_flow, write_frames

from pipeline import store
from pipeline.catalog import Catalog, Clip
from pipeline.system.errors import DamagedFile


def test_a_frames_shard_is_what_the_format_says(tmp_path):
    frames = moving_texture(5)
    path = write_frames(tmp_path, {"v_a!&[1]": frames}, failed={"b": "it is broken"})
    with h5py.File(path) as file:
        assert file.attrs["format"] == "two-stream-frames" and file.attrs["format_version"] == 1
        table = file["table"][()]
        assert table.dtype.names == (
            "id",
            "class",
            "label",
            "group",
            "frames",
            "status",
            "reason",
            "crc32",
            "split",
            "shard",
        )
        assert [row["id"].decode() for row in table] == ["b", "v_a!&[1]"]
        assert [row["status"].decode() for row in table] == ["failed", "ok"]
        assert table["reason"][0].decode() == "it is broken" and table["split"][1].decode() == "train"
        assert list(file["clips"]) == ["v_a!&[1]"]  # a failed clip has a row but no data
        clip = file["clips/v_a!&[1]"]  # the link leads into the shard
        data, offsets = clip["jpeg"][()], clip["offsets"][()]
        assert data.dtype == np.uint8 and offsets.dtype == np.int64 and offsets[0] == 0 and offsets[-1] == len(data)
        assert np.allclose(clip["seconds"][()], np.arange(5) / 25)
        assert dict(clip.attrs)["class"] == "right" and clip.attrs["label"] == 1
        for t in range(5):
            image = cv2.imdecode(data[offsets[t] : offsets[t + 1]], cv2.IMREAD_COLOR)[..., ::-1]
            assert np.abs(image.astype(int) - frames[t]).max() < 12
        inner = zlib.crc32(data.tobytes())
        assert clip.attrs["crc32"] == zlib.crc32(inner.to_bytes(4, "little"))


def test_a_flow_shard_is_x0_y0_x1_y1(tmp_path):
    flow = smooth_flow(3)
    path = write_flow(tmp_path, flow)
    with h5py.File(path) as file:
        clip = file["clips/a"]
        data, offsets = clip["jpeg"][()], clip["offsets"][()]
        assert len(offsets) == 2 * 3 + 1
        for k in range(6):
            plane = cv2.imdecode(data[offsets[k] : offsets[k + 1]], cv2.IMREAD_GRAYSCALE)
            expected = np.rint((flow[k // 2, k % 2].clip(-20, 20) + 20) * 255 / 40)
            assert np.abs(plane - expected).max() <= 2


def test_reading_windows_of_frames(tmp_path):
    frames = moving_texture(7)
    opened = store.open_frames(write_frames(tmp_path, {"a": frames}).parent)
    clip = opened["a"]
    assert (len(clip), clip.height, clip.width, clip.attrs["group"]) == (7, 48, 64, "anna")
    got = clip.frames(2, 5)
    assert got.shape == (3, 48, 64, 3) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - frames[2:5]).max() < 12
    luminance = frames[2:5] @ np.array([0.299, 0.587, 0.114])
    assert clip.gray(2, 5).shape == (3, 48, 64) and np.abs(clip.gray(2, 5) - luminance).max() < 8
    assert np.allclose(clip.seconds, np.arange(7) / 25)
    assert repr(clip) == "StoredClip('a', 7 frames of 48 x 64)" and "1 clips, 0 failed" in repr(opened)


@pytest.mark.parametrize("minmax", [False, True], ids=["bound", "minmax"])
def test_reading_windows_of_flow_in_pixels(tmp_path, minmax):
    forward, backward = smooth_flow(4), smooth_flow(4, seed=1)
    clip = store.open_flow(write_flow(tmp_path, forward, backward=backward, minmax=minmax))["a"]
    span = (forward.max((2, 3)) - forward.min((2, 3))).max() if minmax else 40.0
    for got, true in [(clip.flow(1, 3), forward[1:3]), (clip.flow(0, 4, backward=True), backward)]:
        assert got.shape == true.shape and got.dtype == np.float32
        assert np.abs(got - true).max() < 2.5 * span / 255  # half a step of rounding, two of JPEG
    assert len(clip) == 4 and clip.directions == ["forward", "backward"]


def test_a_shard_alone_can_be_opened(tmp_path):
    write_frames(tmp_path, {"a": moving_texture(3)})
    opened = store.open_frames(tmp_path / "shards/shard-all.h5")
    assert opened["a"].frames(0, 3).shape == (3, 48, 64, 3)
    assert opened.rows["a"]["shard"] == "shard-all"


def test_a_long_clip_is_spooled_and_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.writer._COPY_BYTES", 1000)
    monkeypatch.setattr("pipeline.store.stored_clip._READ_BYTES", 3000)
    frames = moving_texture(9)
    clip = store.open_frames(write_frames(tmp_path, {"a": frames}))["a"]
    assert clip.nbytes > 9000
    assert np.abs(clip.frames(0, 9).astype(int) - frames).max() < 12
    assert os.listdir(tmp_path / "shards") == ["shard-all.h5"]


def test_windows_are_read_without_opening_the_shard_again(tmp_path):
    """With thousands of shards opening one takes as long as decoding; the bytes are the same."""
    opened = store.open_flow(write_flow(tmp_path, smooth_flow(4), backward=-smooth_flow(4)))
    expected = [opened["a"].flow(1, 3, backward=backward) for backward in (False, True)]
    for file in opened._shards.values():
        file.close()
    opened._shards.clear()
    found = [opened["a"].flow(1, 3, backward=backward) for backward in (False, True)]
    assert not opened._shards and np.array_equal(found, expected)
    with h5py.File(tmp_path / "shards/shard-all.h5") as file:
        whole = file["clips/a/backward/jpeg"][()]
    assert np.array_equal(np.concatenate(list(opened["a"].jpegs(direction="backward"))), whole)


def test_a_shard_that_is_replaced_under_an_open_store_is_not_misread(tmp_path):
    write_frames(tmp_path / "other", {"b": moving_texture(2), "a": moving_texture(3, seed=1)})
    opened = store.open_frames(write_frames(tmp_path / "this", {"a": moving_texture(3)}))
    clip, shard = opened["a"], tmp_path / "this/shards/shard-all.h5"
    (tmp_path / "other/shards/shard-all.h5").replace(shard)
    with pytest.raises(DamagedFile, match="shard-all.h5 has changed since clip 'a' was opened; open the store again"):
        clip.frames(0, 1)
    assert np.abs(store.open_frames(shard)["a"].frames(0, 3).astype(int) - moving_texture(3, seed=1)).max() < 12
    shard.unlink()
    opened.close()
    with pytest.raises(FileNotFoundError, match="shard-all.h5 does not exist; .*repair"):
        clip.frames(0, 1)


def test_a_shard_that_a_tool_has_cut_into_chunks_is_read_too(tmp_path):
    path = write_frames(tmp_path, {"a": moving_texture(3)})
    with contextlib.closing(store.open_frames(path)) as opened:
        expected = opened["a"].frames(0, 3)
    with h5py.File(tmp_path / "shards/shard-all.h5", "r+") as file:
        whole = file["clips/a/jpeg"][()]
        del file["clips/a/jpeg"]
        file["clips/a"].create_dataset("jpeg", data=whole, chunks=(1000,), compression="gzip")
    assert np.array_equal(store.open_frames(path)["a"].frames(0, 3), expected)


def test_same_content_gives_same_bytes(tmp_path):
    digests = set()
    for name in ("one", "two"):
        write_frames(tmp_path / name, {"b": moving_texture(4), "a": moving_texture(3, seed=1)}, failed={"c": "x"})
        digests.add(hashlib.sha256((tmp_path / name / "shards/shard-all.h5").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_images_may_come_one_by_one_or_several_at_a_time(tmp_path):
    images, made = [bytes([number]) * (number + 1) for number in range(7)], []
    for name, sizes in (("one by one", [1] * 7), ("several", [3, 1, 2, 1])):
        (tmp_path / name).mkdir()
        with store.create_shard(tmp_path / name / "s.h5", "flow", ATTRS) as shard:
            clip, left = shard.clip("a"), iter(images)
            for size in sizes:
                clip.extend([next(left) for _ in range(size)])
            clip.extend([b"back", b"ward"], direction="backward")
            made.append(clip.finish(ABOUT))
    assert made[0] == made[1] and len({path.read_bytes() for path in tmp_path.glob("*/s.h5")}) == 1
    with h5py.File(tmp_path / "several" / "s.h5") as file:
        assert file["clips/a/jpeg"][()].tobytes() == b"".join(images)
        assert file["clips/a/offsets"][()].tolist() == [0, 1, 3, 6, 10, 15, 21, 28]
        assert file["clips/a/backward/offsets"][()].tolist() == [0, 4, 8]


def test_the_key_changes_with_the_content_only(tmp_path):
    keys = [
        store.open_frames(write_frames(tmp_path / str(i), {"a": moving_texture(4, seed=seed)})).key
        for i, seed in enumerate([0, 0, 1])
    ]
    assert keys[0] == keys[1] != keys[2]


def test_a_store_is_a_mapping_of_the_clips_that_are_ok(tmp_path):
    opened = store.open_frames(
        write_frames(tmp_path, {"a": moving_texture(3), "c": moving_texture(3)}, failed={"b": "empty"})
    )
    assert list(opened) == ["a", "c"] and len(opened) == 2 and "b" not in opened
    assert opened.failed == {"b": "empty"} and opened.parts()["a"] == "train"
    with pytest.raises(KeyError, match="'b' is not in .*: empty"):
        opened["b"]
    with pytest.raises(KeyError, match="'z' is not in .*: no such clip"):
        opened["z"]


def test_a_store_opened_by_a_relative_path_is_read_wherever_the_process_goes(tmp_path, monkeypatch):
    path = write_frames(tmp_path / "of", {"a": moving_texture(3)})
    monkeypatch.chdir(tmp_path)
    opened = store.open_frames(path.relative_to(tmp_path))
    monkeypatch.chdir("/")
    assert opened["a"].frames(0, 3).shape == (3, 48, 64, 3)


def test_pickled_and_forked_readers_open_their_own_files(tmp_path):
    opened = store.open_frames(write_frames(tmp_path, {"a": moving_texture(3)}))
    here = opened["a"].frames(0, 3)
    assert np.array_equal(pickle.loads(pickle.dumps(opened))["a"].frames(0, 3), here)
    handles = dict(opened._shards)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert np.array_equal(pool.apply(_read, (opened,)), here)
    assert opened._shards == handles  # the parent keeps its own


def _read(opened):
    return opened["a"].frames(0, 3)


def test_a_forked_child_drops_the_handles_of_its_parent(tmp_path):
    opened = store.open_frames(write_frames(tmp_path, {"a": moving_texture(3)}))
    opened["a"].frames(0, 1)
    handles = opened._shards
    opened._lock.acquire()  # as if another thread were reading during the fork
    opened._process = -1  # as a child sees it
    with ThreadPoolExecutor(1) as child:
        assert child.submit(lambda: opened["a"].frames(0, 1).shape).result(timeout=60) == (1, 48, 64, 3)
    assert opened._shards is not handles


def test_threads_share_a_store(tmp_path, monkeypatch):
    """More shards than may be open at once, and more clips than are known at once."""
    monkeypatch.setattr("pipeline.store.reader._OPEN_SHARDS", 2)
    monkeypatch.setattr("pipeline.store.reader._KNOWN_CLIPS", 3)
    clips = {name: moving_texture(3, seed=seed) for seed, name in enumerate("abcdef")}
    opened = store.open_frames(write_frames(tmp_path, clips))
    for name in clips:
        opened.rows[name]["shard"] = name
        shutil.copy(tmp_path / "shards/shard-all.h5", tmp_path / f"shards/{name}.h5")

    def largest_difference(name: str) -> int:
        found, seconds = opened[name].frames(0, 3), opened[name].seconds
        assert seconds.tolist() == [0, 1 / 25, 2 / 25]
        return np.abs(found.astype(int) - clips[name]).max()

    with ThreadPoolExecutor(8) as threads:
        assert max(threads.map(largest_difference, list(clips) * 50)) < 12
    assert len(opened._shards) == 2 and len(opened._clips) == 3


def test_what_is_kept_of_long_clips_is_bounded_by_their_images(tmp_path, monkeypatch):
    opened = store.open_frames(write_frames(tmp_path, {name: moving_texture(3) for name in "abc"}))
    for most, kept in ((9, "abc"), (8, "bc"), (2, "c")):
        monkeypatch.setattr("pipeline.store.reader._KNOWN_IMAGES", most)
        opened.close()
        for name in "aabc":
            assert len(opened[name]) == 3
        assert "".join(opened._clips) == kept and opened._images == 3 * len(kept)


def test_open_shards_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.reader._OPEN_SHARDS", 1)
    monkeypatch.setattr("pipeline.store.reader._KNOWN_CLIPS", 1)
    path = write_frames(tmp_path, {"a": moving_texture(3), "b": moving_texture(3)})
    opened = store.open_frames(path)
    opened.rows["b"]["shard"] = "other"
    (tmp_path / "shards/other.h5").write_bytes((tmp_path / "shards/shard-all.h5").read_bytes())
    for video_id in "abab":
        opened[video_id].frames(0, 1)
        assert len(opened._shards) == 1 and len(opened._clips) == 1


def test_wrong_use_is_refused(tmp_path):
    frames = store.open_frames(write_frames(tmp_path / "frames", {"a": moving_texture(3)}))["a"]
    flow = store.open_flow(write_flow(tmp_path / "flow", smooth_flow(2)))["a"]
    with pytest.raises(ValueError, match=r"is a frames store; it has no .flow\(\)"):
        frames.flow(0, 1)
    with pytest.raises(ValueError, match=r"is a flow store; it has no .frames\(\)"):
        flow.frames(0, 1)
    with pytest.raises(ValueError, match=r"is a flow store; it has no .frames\(\)"):
        flow.gray(0, 1)
    with pytest.raises(ValueError, match=r"holds no backward flow; run the Flow stage with \[flow\] backward = true"):
        flow.flow(0, 1, backward=True)
    for first, last in [(-1, 1), (0, 0), (2, 4), (3, 4)]:
        with pytest.raises(IndexError, match=r"of clip 'a': needs 0 <= first < last <= 3"):
            frames.frames(first, last)


def test_what_a_store_holds_is_known_without_opening_a_shard(tmp_path):
    opened = store.open_frames(write_frames(tmp_path, {"a": moving_texture(3)}))
    (tmp_path / "shards/shard-all.h5").unlink()
    assert "a" in opened and "b" not in opened and list(opened) == ["a"]


def test_a_shard_is_current_only_with_the_same_digest_and_inputs(tmp_path):
    write_frames(tmp_path, {"a": moving_texture(3)})
    path = tmp_path / "shards/shard-all.h5"
    same = {"digest": ATTRS["digest"], "inputs": ATTRS["inputs"]}
    assert store.shard_is_current(path, "frames", **same)
    assert not store.shard_is_current(path, "flow", **same)
    assert not store.shard_is_current(path, "frames", **{**same, "inputs": "other"})
    assert not store.shard_is_current(path, "frames", **{**same, "digest": "other"})
    assert not store.shard_is_current(tmp_path / "absent.h5", "frames", **same)
    path.write_bytes(path.read_bytes()[:100])
    assert not store.shard_is_current(path, "frames", **same)


def test_arrays_and_catalogs_come_back_as_they_were(tmp_path):
    arrays = {"p": np.random.default_rng(0).random((3, 4)).astype(np.float32), "names": ["a", "ü☃", ""]}
    store.write_arrays(tmp_path / "x.h5", "scores", arrays, {"n": 3, "text": "t"})
    got, attrs = store.read_arrays(tmp_path / "x.h5", "scores")
    assert np.array_equal(got["p"], arrays["p"]) and got["names"] == arrays["names"]
    content = attrs.pop("content")
    assert attrs == {"format": "two-stream-scores", "format_version": 1, "n": 3, "text": "t"}
    others = {"same": arrays, "value": {**arrays, "p": arrays["p"] + 1}, "names": {**arrays, "names": ["aü☃", "", ""]}}
    for other, changed in others.items():
        store.write_arrays(tmp_path / "y.h5", "scores", changed, {})
        assert (store.read_arrays(tmp_path / "y.h5", "scores")[1]["content"] == content) == (other == "same")

    clips = (
        Clip("a", "x/a.avi", 0, "x", "g1", "train", 10, 123456789012345678, "0" * 16),
        Clip("b", "y/b ü.avi", 1, "y", "g2", "test", 20, 5, "f" * 16),
    )
    catalog = Catalog(clips=clips, classes=("x", "y"), split_name="1", absent=("z/z.avi",))
    store.write_catalog(tmp_path / "catalog.h5", catalog, inputs="abc")
    assert store.read_catalog(tmp_path / "catalog.h5") == catalog
    assert store.read_attrs(tmp_path / "catalog.h5")["key"] == catalog.key


def test_views_reach_the_file_once_a_clip_is_whole(tmp_path):
    """HDF5 would read, check and write all of a clip for each part of it, since its chunk has a checksum."""
    with store.create_scores(tmp_path / "s.h5", {}, clips=1, views=6) as writer:
        for first in (0, 2, 4):
            assert first == 0 or writer._file["views/features"].id.get_num_chunks() == 0
            writer.put(0, first, np.ones((2, 2), np.float32), np.ones((2, 5), np.float32))
        assert writer._file["views/features"].id.get_num_chunks() == 1
        writer.put_table({"video_ids": ["a"]})
    assert (store.Views(tmp_path / "s.h5")["a"].features == 1).all()


def test_views_are_written_clip_by_clip_and_read_one_at_a_time(tmp_path):
    rng = np.random.default_rng(0)
    said, seen = rng.random((3, 4, 2), np.float32), rng.random((3, 4, 5), np.float32)
    with store.create_scores(tmp_path / "s.h5", {}, clips=3, views=4) as writer:
        for place in (2, 0):
            for first in (0, 2):
                writer.put(place, first, said[place, first : first + 2], seen[place, first : first + 2])
        writer.put_table({"video_ids": ["a", "b", "c"]})
        assert not (tmp_path / "s.h5").exists()
    views = store.Views(tmp_path / "s.h5")
    assert list(views) == ["a", "b", "c"] and len(views) == 3
    for row, video_id in ((0, "a"), (2, "c")):
        np.testing.assert_array_equal(views[video_id].probabilities, said[row])
        np.testing.assert_array_equal(views[video_id].features, seen[row])
    assert np.isnan(views["b"].probabilities).all() and views["b"].features.shape == (4, 5)
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["views/probabilities"].chunks == (1, 4, 2) and file["views/features"].dtype == np.float32
    assert store.read_arrays(tmp_path / "s.h5", "scores")[0] == {"video_ids": ["a", "b", "c"]}


def test_images_are_asked_for_by_numbers_that_are_there(tmp_path):
    path = write_frames(tmp_path / "frames", {"a": moving_texture(5)})
    clip, flow = store.open_frames(path)["a"], store.open_flow(write_flow(tmp_path / "flow", smooth_flow(3)))["a"]
    assert clip.images(2, 2).shape == (0, 48, 64, 3) and clip.images(1, 1, gray=True).shape == (0, 48, 64)
    assert len(list(clip.jpegs())) == len(list(clip.jpegs(0, 5))) == 5
    for first, last in [(-3, -1), (-2, 2), (0, 6), (3, 2)]:
        with pytest.raises(IndexError, match=f"images {first} to {last} of clip 'a': needs 0 <= first <= last <= 5"):
            clip.images(first, last)
    with pytest.raises(ValueError, match="direction is 'backward'; .*index.h5 has forward"):
        list(clip.jpegs(direction="backward"))
    with pytest.raises(ValueError, match="direction is 'back'; .*index.h5 has forward"):
        list(flow.jpegs(direction="back"))
    with pytest.raises(ValueError, match=r"is a flow store; it has no \.seconds"):
        _ = flow.seconds


def test_a_quota_reported_when_the_file_is_written_out_is_named(tmp_path, monkeypatch):
    def fsync(descriptor):  # as NFS: only the descriptor that was written to hears of it
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError) as raised:
        store.write_arrays(tmp_path / "a.h5", "scores", {"x": np.zeros(3)}, {})
    assert raised.value.errno == errno.EDQUOT and not any(tmp_path.iterdir())


def test_a_window_is_whole_though_a_read_was_short(tmp_path, monkeypatch):
    """Where a page cannot be read, Linux first gives the bytes before it, and no error."""
    opened = store.open_frames(write_frames(tmp_path, {"a": moving_texture(9)}))
    expected, pread = opened["a"].frames(0, 9), os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, at: pread(file, min(count, 4096), at))
    assert opened["a"].nbytes > 4096 and np.array_equal(opened["a"].frames(0, 9), expected)
