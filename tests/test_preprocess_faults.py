"""Frames and flow when something goes wrong: what is a clip's fault, what is the machine's, and what is said."""

import errno
import faulthandler
import itertools
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import cv2
import pytest
from conftest import moving_texture, write_video
from stages import FLOW, FRAMES, GROUPS, INLINE, LOCAL, flow_of, frames_of

from pipeline import preprocess, store
from pipeline.artifacts import garbage
from pipeline.catalog import read_dataset
from pipeline.preprocess import make_flow, make_frames
from pipeline.preprocess.jobs import frames as frames_job
from pipeline.specs import DatasetSpec, FlowSpec, FrameSpec
from pipeline.system.errors import MachineFault, StageFailed, WorkerDied


def frames_shard_of(catalog, videos, folder):
    given = {"path": folder / "s.h5", "attrs": {"digest": "d"}, "spec": FRAMES}
    return frames_job.FramesJob(**given, videos=videos, clips=catalog.clips)


def test_bad_clips_are_recorded_and_the_run_goes_on(tiny_dataset, tmp_path, capsys):
    videos = shutil.copytree(tiny_dataset, tmp_path / "videos")
    (videos / "right/ben_right.avi").write_bytes(b"")
    write_video(videos / "down/ben_down.avi", moving_texture(1))
    frames = frames_of(
        videos, tmp_path / "frames", spec=FrameSpec(short_side_px=0, shard_clips=2, max_bad_fraction=0.5)
    )
    assert frames.failed == {
        "right__ben_right": "the file is empty (0 bytes)",
        "down__ben_down": "only 1 frame can be decoded",
    }
    assert "frames: right__ben_right failed: the file is empty" in capsys.readouterr().err
    flow = flow_of(frames, tmp_path / "flow")
    assert flow.failed == frames.failed and len(flow) == 6
    # what was allowed for the frames is not known here
    with pytest.raises(StageFailed, match=r"max_bad_fraction = 0.05 \(in Python: the argument of make_flow\) allows: "):
        make_flow(tmp_path / "again", frames.path, spec=FlowSpec(method="dis_ultrafast"), cluster=INLINE, device="cpu")


def test_clips_that_are_shorter_than_they_say_are_reported(tiny_dataset, tmp_path, monkeypatch, capsys):
    videos = shutil.copytree(tiny_dataset, tmp_path / "videos")
    oddity = frames_job._oddity
    monkeypatch.setattr(frames_job, "_oddity", lambda n, video: oddity(n, SimpleNamespace(promised_frames=20)))
    frames_of(videos, tmp_path / "frames")
    said = capsys.readouterr().err
    assert (
        "frames: 8 of 8 clips are used but incomplete, such as " in said and " of 20 promised frames decode; " in said
    )


def test_too_many_bad_clips_fail_the_stage_by_name(tiny_dataset, tmp_path):
    videos = shutil.copytree(tiny_dataset, tmp_path / "videos")
    (videos / "right/ben_right.avi").write_bytes(b"")
    with pytest.raises(
        StageFailed,
        match=r"frames: 1 of 8 clips failed, more than \[frames\] max_bad_fraction = 0.05 allows: right__ben_right"
        r".*`python -m pipeline repair .*frames --failed` retries them",
    ):
        frames_of(videos, tmp_path / "frames")
    assert not (tmp_path / "frames/index.h5").exists()


def test_a_single_frame_has_no_flow(tiny_dataset, tmp_path):
    videos = shutil.copytree(tiny_dataset, tmp_path / "videos")
    write_video(videos / "down/ben_down.avi", moving_texture(1))
    frames = frames_of(videos, tmp_path / "frames", spec=FrameSpec(short_side_px=0, min_frames=1))
    assert flow_of(frames, tmp_path / "flow").failed == {"down__ben_down": "no flow: one frame alone has no flow"}


def test_a_time_limit_is_a_reason(tiny_dataset, tmp_path):
    spec = FrameSpec(short_side_px=0, timeout_seconds=0.01, max_bad_fraction=1.0, min_frames=2)
    catalog = read_dataset(DatasetSpec(videos=str(tiny_dataset), group_pattern=GROUPS), "dan")
    replace(frames_shard_of(catalog, tiny_dataset, tmp_path), clips=catalog.clips[:1], spec=spec, careful=True).make()
    (record,) = store.read_records(tmp_path / "s.h5", "frames")
    assert (record.status, record.reason) == ("failed", "decoding takes longer than timeout_seconds = 0.01")


def test_without_attributes_the_settings_tell_what_is_up_to_date(tiny_dataset, tmp_path):
    catalog = read_dataset(DatasetSpec(videos=str(tiny_dataset), group_pattern=GROUPS), "dan")
    folders, heights, keys = (tmp_path / "frames", tmp_path / "flow"), [], []
    for side in (0, 32, 32):
        make_frames(folders[0], catalog, videos=tiny_dataset, spec=FrameSpec(short_side_px=side), cluster=INLINE)
        make_flow(folders[1], folders[0], spec=FLOW, cluster=INLINE, device="cpu")
        with store.open_frames(folders[0]) as frames, store.open_flow(folders[1]) as flow:
            heights.append((frames["right__anna_right"].height, flow["right__anna_right"].height))
            keys.append((frames.attrs["digest"], flow.attrs["digest"], flow.key))
    assert heights == [(48, 48), (32, 32), (32, 32)]
    assert keys[0] != keys[1] == keys[2] and keys[0][1] != keys[1][1]


def test_a_store_that_a_program_makes_is_not_removed_under_it(tiny_dataset, tmp_path, monkeypatch):
    catalog = read_dataset(DatasetSpec(videos=str(tiny_dataset), group_pattern=GROUPS), "dan")
    folder, tried = tmp_path / "demo/frames/native-0123456789ab", []

    def removed(job):
        with pytest.raises(ValueError, match=f"{folder} is being written or read; wait for that to end"):
            garbage.invalidate(tmp_path, "frames")
        tried.append(job)
        return make(job)

    make = frames_job.FramesJob.make
    monkeypatch.setattr(frames_job.FramesJob, "make", removed)
    make_frames(folder, catalog, videos=tiny_dataset, spec=FRAMES, cluster=INLINE)
    assert tried and garbage.invalidate(tmp_path, "frames") == [folder]


def test_a_timer_of_the_caller_goes_on_where_no_decoder_is_watched(tiny_dataset, tmp_path, monkeypatch):
    catalog = read_dataset(DatasetSpec(videos=str(tiny_dataset), group_pattern=GROUPS), "dan")
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: pytest.fail("it was canceled"))
    job = frames_shard_of(catalog, tiny_dataset, tmp_path)
    assert job.make() == len(store.read_records(tmp_path / "s.h5", "frames")) == 8


def test_a_video_that_is_replaced_while_frames_are_made_is_no_frame_of_the_former(tiny_dataset, tmp_path):
    videos = shutil.copytree(tiny_dataset, tmp_path / "videos")
    catalog = read_dataset(DatasetSpec(videos=str(videos), group_pattern=GROUPS), "dan")
    about = {"videos": videos, "spec": FRAMES, "cluster": INLINE}
    one, other = videos / "right/anna_right.avi", videos / "down/ben_down.avi"
    former = one.read_bytes()
    one.write_bytes(other.read_bytes())
    with pytest.raises(
        StageFailed, match=r"MachineFault: .*anna_right.avi has changed since the catalog was read; run"
    ):
        make_frames(tmp_path / "frames", catalog, **about)
    one.write_bytes(former)  # now it has only another time stamp
    make_frames(tmp_path / "frames", catalog, **about)
    assert not store.open_frames(tmp_path / "frames").failed


def test_an_unlabeled_video_that_is_still_being_written_fails_alone_until_it_is_whole(tiny_dataset, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in sorted(tiny_dataset.rglob("*.avi"))[:2]:
        shutil.copy(path, videos)
    written, other = sorted(videos.iterdir())
    whole = written.read_bytes()
    about = {"videos": videos, "spec": replace(FRAMES, max_bad_fraction=0.5), "cluster": INLINE}

    def made():
        return read_dataset(DatasetSpec(layout="unlabelled", videos=str(videos)), "1")

    written.write_bytes(whole[: len(whole) // 2])
    catalog = made()
    written.write_bytes(whole)
    make_frames(tmp_path / "frames", catalog, **about)
    found = store.open_frames(tmp_path / "frames")
    reason = "the file has changed since the catalog was read; run the same command again to read it"
    assert found.failed == {written.name: reason} and len(found[other.name])
    make_frames(tmp_path / "frames", made(), **about)
    assert not store.open_frames(tmp_path / "frames").failed


def test_too_little_memory_is_no_fault_of_a_video(tiny_dataset, tmp_path, monkeypatch):
    catalog = read_dataset(DatasetSpec(videos=str(tiny_dataset), group_pattern=GROUPS), "dan")
    job = replace(frames_shard_of(catalog, tiny_dataset, tmp_path), spec=FrameSpec())

    def fail(*arguments, **options):
        error = cv2.error("Failed to allocate 9 bytes")
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(frames_job.jpeg, "encode", fail)
    with pytest.raises(MachineFault, match="OpenCV on this machine: Failed to allocate 9 bytes"):
        job.make()
    assert not list(tmp_path.iterdir())


def test_a_shard_whose_worker_died_is_tried_with_care(tiny_dataset, tmp_path, monkeypatch):
    """The first try ends in WorkerDied; the second one is careful, and its result stands."""
    tried = []

    class Dying(preprocess.Workers):
        def run(self, function, jobs):
            for job in jobs:
                tried.append((job.path.stem, job.careful))
                yield job, function(job) if job.careful else WorkerDied("its worker process died twice")

    monkeypatch.setattr(preprocess, "Workers", Dying)
    assert len(frames_of(tiny_dataset, tmp_path / "frames")) == 8
    shards = {name for name, _ in tried}
    assert all((name, True) in tried and (name, False) in tried for name in shards)


def test_a_shard_that_cannot_be_made_fails_the_stage_and_says_what_to_do(tiny_dataset, tmp_path, monkeypatch):
    def full(job):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frames_job.FramesJob, "make", full)
    with pytest.raises(
        StageFailed,
        match="shard .*shard-.* could not be made: OSError: .*No space left on device.*run the same command again",
    ):
        frames_of(tiny_dataset, tmp_path / "frames")


def test_videos_that_are_away_fail_the_stage_and_no_clip(tiny_dataset, tmp_path):
    """A disk that was not mounted: with it the same command goes on."""
    videos = shutil.copytree(tiny_dataset, tmp_path / "videos")
    away = (videos / "right").rename(tmp_path / "away")
    catalog = read_dataset(DatasetSpec(videos=str(tiny_dataset), group_pattern=GROUPS), "dan")
    given = {
        "videos": videos,
        "spec": FrameSpec(short_side_px=0, shard_clips=2, max_bad_fraction=1.0),
        "cluster": INLINE,
    }
    with pytest.raises(StageFailed, match="could not be made: FileNotFoundError: .*the video is no longer there"):
        make_frames(tmp_path / "frames", catalog, **given)
    away.rename(videos / "right")
    make_frames(tmp_path / "frames", catalog, **given)
    assert store.open_frames(tmp_path / "frames").failed == {}


def test_a_fault_of_the_program_is_no_fault_of_the_clip(tiny_dataset, tmp_path, monkeypatch):
    def with_a_bug(image, quality):
        raise ValueError("zip() argument 2 is shorter than argument 1")

    monkeypatch.setattr(frames_job.jpeg, "encode", with_a_bug)
    with pytest.raises(StageFailed, match="could not be made: ValueError: zip"):
        frames_of(tiny_dataset, tmp_path / "frames")


def test_a_video_of_which_no_frame_decodes_says_so(tmp_path):
    path = write_video(tmp_path / "videos/x/a.avi", moving_texture(5))
    content = bytearray(path.read_bytes())
    for found in re.finditer(b"00dc", content[: content.index(b"idx1")]):  # each frame, and the length of its JPEG
        size = int.from_bytes(content[found.end() : found.end() + 4], "little")
        content[found.end() + 4 : found.end() + 4 + size] = bytes(size)
    path.write_bytes(content)
    catalog = read_dataset(DatasetSpec(videos=str(tmp_path / "videos")), "1")
    spec = FrameSpec(short_side_px=0, max_bad_fraction=1.0)
    make_frames(tmp_path / "frames", catalog, videos=tmp_path / "videos", spec=spec, cluster=INLINE)
    reason = "it opens, but no frame decodes (codec mjpg); converting it to H.264 helps"
    assert list(store.open_frames(tmp_path / "frames").failed.values()) == [reason]


def test_odd_clips_all_have_an_outcome(shared, tmp_path):
    """Files that break things: every one is in the table, as ok or with its reason."""
    shutil.copytree(shared / "data/odd_clips", tmp_path / "videos/odd")
    spec = DatasetSpec(videos=str(tmp_path / "videos"), test_fraction=0.3)
    catalog = read_dataset(spec, "1")
    options = {
        "spec": FrameSpec(short_side_px=0, max_bad_fraction=0.5),
        "cluster": LOCAL,
    }
    make_frames(tmp_path / "frames", catalog, videos=tmp_path / "videos", **options)
    frames = store.open_frames(tmp_path / "frames")
    assert len(frames.rows) == 13
    av1 = frames.rows["odd__av1"]  # OpenCV decodes it since 5.1
    assert (av1["frames"], av1["status"]) in {(125, "ok"), (0, "failed")}
    assert {i.removeprefix("odd__") for i in frames.failed} - {"av1"} == {"empty"}
    assert frames.failed["odd__empty"] == "the file is empty (0 bytes)"
    expected = {"truncated": 28, "cinepak_partial": 68, "one_pixel": 5, "-leading-dash-": 5, "h265_10bits": 30}
    assert {name: frames.rows[f"odd__{name}"]["frames"] for name in expected} == expected
    assert frames.odd["odd__truncated"] == "28 of 50 promised frames decode"
    assert "odd__truncated" not in frames.failed and "odd__empty" not in frames.odd
    flow = flow_of(frames, tmp_path / "flow", spec=FlowSpec(method="dis_ultrafast"), cluster=LOCAL)
    assert set(flow.rows) == set(frames.rows)
    assert all(len(flow[i]) == frames.rows[i]["frames"] - 1 for i in flow)


@pytest.fixture
def cut(monkeypatch):
    """How many frames each decoding of one video gives, in turn, None for all; it promises no length, as some do."""
    counts = []

    class Cut(frames_job.Video):
        def __iter__(self):
            if self.path.name != "ben_right.avi":
                return super().__iter__()
            self.promised_frames = 0
            return itertools.islice(super().__iter__(), counts.pop(0) if counts else None)

    monkeypatch.setattr(frames_job, "Video", Cut)
    return counts


@pytest.mark.parametrize("count", [0, 3])
def test_a_read_that_fails_is_not_taken_for_the_end_of_a_video(tiny_dataset, tmp_path, cut, count):
    cut[:] = [count, None]
    made = frames_of(tiny_dataset, tmp_path / "frames")  # a second try has it right
    assert not made.failed and made.rows["right__ben_right"]["frames"] > 3
    cut[:] = [count, None] * 2
    with pytest.raises(
        StageFailed, match=rf"ben_right.avi gave {count} frames, and \d+ when it was read again, so its"
    ):
        frames_of(tiny_dataset, tmp_path / "again")


def test_a_disk_that_fails_for_a_moment_costs_a_second_try(tiny_dataset, tmp_path, monkeypatch, cut):
    errors = [OSError(errno.EIO, "Input/output error")]
    file_hash = frames_job.file_hash
    monkeypatch.setattr(frames_job, "file_hash", lambda path: _raise(errors.pop()) if errors else file_hash(path))
    assert not frames_of(tiny_dataset, tmp_path / "frames").failed and not errors
    errors = [OSError(errno.EIO, "Input/output error")] * 2
    with pytest.raises(StageFailed, match="Input/output error, while reading .*ben_right.avi.*run the same command ag"):
        frames_of(tiny_dataset, tmp_path / "again")


def _raise(error):
    raise error
