"""Videos to stores: every clip has an outcome, nothing is done twice, and the bytes depend on nothing but the input."""

import functools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from conftest import moving_texture, write_video
from stages import FLOW, FRAMES, GROUPS, INLINE, LOCAL, flow_of, frames_of, sums

from pipeline import preprocess
from pipeline.catalog import Catalog, read_dataset
from pipeline.flow import estimate
from pipeline.preprocess import make_flow, make_frames, remaining
from pipeline.preprocess.jobs import frames as frames_job
from pipeline.specs import ClusterSpec, DatasetSpec, FlowSpec
from pipeline.system.errors import MachineFault, StageFailed


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "shards").glob("*.h5")}


# --- frames and flow


def test_no_store_is_made_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="the catalog has no clips to make a store from"):
        make_frames(tmp_path, Catalog((), (), "1", ()), videos=tmp_path, spec=FRAMES, cluster=INLINE)


def test_frames_and_flow_hold_what_the_videos_show(tiny_dataset, tmp_path):
    frames = frames_of(tiny_dataset, tmp_path / "frames")
    flow = flow_of(frames, tmp_path / "flow")
    assert sorted(flow) == sorted(frames) and len(frames) == 8
    clip = frames["right__anna_right"]
    assert np.abs(clip.frames(0, 12).astype(int) - moving_texture(12, dx=2.0, seed=0)).max() < 40
    assert (clip.attrs["class"], clip.attrs["group"], clip.attrs["source"]) == ("right", "anna", "right/anna_right.avi")
    assert len(flow["right__anna_right"]) == 11
    for name, motion in [("right__anna_right", (2, 0)), ("down__ben_down", (0, 2))]:
        inside = flow[name].flow(0, 5)[:, :, 12:-12, 12:-12]
        assert np.abs(np.median(inside, axis=(0, 2, 3)) - motion).max() < 0.25
    assert {row["split"] for row in frames.rows.values()} == {"train", "val", "test"}


def test_opencv_keeps_the_threads_of_whoever_calls(tiny_dataset, tmp_path):
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(5)
        flow_of(frames_of(tiny_dataset, tmp_path / "frames"), tmp_path / "flow")
        assert cv2.getNumThreads() == 5
    finally:
        cv2.setNumThreads(before)


def test_flow_in_pieces_equals_flow_at_once(tiny_dataset, tmp_path, monkeypatch):
    frames = frames_of(tiny_dataset, tmp_path / "frames")
    whole = flow_of(frames, tmp_path / "whole")
    monkeypatch.setattr("pipeline.flow.device.HOST_PIXELS", 3 * 48 * 64)  # three pairs a batch
    pieces = flow_of(frames, tmp_path / "pieces")
    assert whole.key == pieces.key and sums(tmp_path / "whole") == sums(tmp_path / "pieces")
    clip = frames["down__cleo_down"]
    expected = estimate(clip.frames(0, len(clip)), FLOW, device="cpu")
    assert np.abs(whole["down__cleo_down"].flow(0, len(expected)) - expected).max() < 1.5


def test_backward_flow_and_min_max_scaling(tiny_dataset, tmp_path):
    frames = frames_of(tiny_dataset, tmp_path / "frames")
    flow = flow_of(frames, tmp_path / "flow", spec=FlowSpec(method="dis_medium", backward=True, scaling="minmax"))
    clip = flow["right__anna_right"]
    forward, backward = clip.flow(0, 5), clip.flow(0, 5, backward=True)
    assert abs(np.median(forward[:, 0]) - 2) < 0.25 and abs(np.median(backward[:, 0]) + 2) < 0.25
    with h5py.File(flow.path) as file:
        assert file["clips/right__anna_right/range_px"].shape == (11, 2, 2)
        assert file["clips/right__anna_right/backward/range_px"].shape == (11, 2, 2)


def test_motion_that_is_cut_off_is_said(tiny_dataset, tmp_path, monkeypatch, capsys):
    """Everything moves by 2 px along one axis: half of all components are beyond a bound of 1 px."""
    frames = frames_of(tiny_dataset, tmp_path / "frames")
    flow_of(frames, tmp_path / "wide")
    assert "cut off" not in capsys.readouterr().err
    flow_of(frames, tmp_path / "narrow", spec=FlowSpec(method="dis_medium", bound_px=1))
    said = capsys.readouterr().err
    share = float(re.search(r"flow: ([\d.]+)% of the motion is cut off at \[flow\] bound_px = 1 ", said)[1])
    assert share == pytest.approx(50, abs=10)

    def fail(made):
        raise MachineFault("on purpose")

    monkeypatch.setattr(preprocess.motion, "sample", fail)
    flow_of(frames, tmp_path / "unread", spec=FlowSpec(method="dis_medium", bound_px=2))
    assert "how much motion lies at [flow] bound_px is unknown: on purpose" in capsys.readouterr().err
    flow_of(frames, tmp_path / "stretched", spec=FlowSpec(method="dis_medium", bound_px=1, scaling="minmax"))
    assert "cut off" not in capsys.readouterr().err


def test_bytes_do_not_depend_on_the_workers(tiny_dataset, tmp_path):
    inline = frames_of(tiny_dataset, tmp_path / "a")
    local = frames_of(tiny_dataset, tmp_path / "b", cluster=LOCAL)
    assert sums(tmp_path / "a") == sums(tmp_path / "b") and inline.key == local.key
    flow_of(inline, tmp_path / "c")
    flow_of(local, tmp_path / "d", cluster=LOCAL)
    assert sums(tmp_path / "c") == sums(tmp_path / "d")


def test_a_gpu_makes_two_shards_of_our_own_methods_at_a_time():
    at_once = preprocess._shards_at_once
    assert [at_once(method, ("cuda:0", "cuda:1")) for method in ("tvl1", "brox")] == [2, 2]
    assert [at_once(method, ("cuda:0",)) for method in ("raft_small", "opencv_cuda_tvl1", "nvidia_of")] == [1, 1, 1]
    assert at_once("tvl1", ()) == 1


@pytest.mark.parametrize(
    ("where", "threads"), [({"kind": "jobqueue"}, 4), ({"kind": "address", "address": "tcp://x:1"}, 8)]
)
def test_two_shards_at_a_time_share_the_threads_of_a_worker(tiny_dataset, tmp_path, monkeypatch, where, threads):
    frames_of(tiny_dataset, tmp_path / "frames")
    found = []
    monkeypatch.setattr(preprocess, "_make_store", lambda folder, jobs, workers, **_: found.extend(jobs))
    monkeypatch.setattr(preprocess, "_warn_of_a_bound", lambda folder, spec: None)
    cluster = ClusterSpec(**where, threads=8)
    make_flow(tmp_path / "flow", tmp_path / "frames", spec=FlowSpec(method="tvl1"), cluster=cluster)
    assert found and {job.threads for job in found} == {threads}  # with an address, all are given to each shard


@pytest.mark.parametrize("cluster", [INLINE, LOCAL], ids=["inline", "local"])
def test_bytes_do_not_depend_on_how_many_shards_a_worker_makes_at_a_time(tiny_dataset, tmp_path, monkeypatch, cluster):
    frames = frames_of(tiny_dataset, tmp_path / "frames")
    flow_of(frames, tmp_path / "one")
    monkeypatch.setattr(preprocess, "_shards_at_once", lambda method, devices: 3)
    flow_of(frames, tmp_path / "three", cluster=cluster)
    assert sums(tmp_path / "one") == sums(tmp_path / "three") and len(sums(tmp_path / "one")) > 3


@pytest.mark.needs_cuda
@pytest.mark.parametrize("cluster", [INLINE, LOCAL], ids=["inline", "local"])
def test_bytes_on_cuda_do_not_depend_on_it_either(tiny_dataset, tmp_path, monkeypatch, cluster):
    if cluster is LOCAL:
        pytest.importorskip("distributed", reason="benchmarks/gpu.sh does not need it")
    frames_of(tiny_dataset, tmp_path / "frames")
    for name, count in {"one": 1, "two": 2}.items():
        monkeypatch.setattr(preprocess, "_shards_at_once", lambda method, devices, count=count: count)
        spec = FlowSpec(method="tvl1")
        make_flow(tmp_path / name, tmp_path / "frames", spec=spec, cluster=cluster, device="cuda")
    assert sums(tmp_path / "one") == sums(tmp_path / "two")


class Deadly:
    """A job that kills its worker, or one that may be beside it."""

    kind, units, cost = "flow", 1, 0

    def __init__(self, number, log, tries=1):
        self.number, self.path, self.log, self.tries = number, Path(f"shard {number}"), log, tries

    def again(self):
        return Deadly(self.number, self.log, self.tries + 1)

    def make(self):
        with self.log.open("a") as log:
            log.write(f"{self.number} {self.tries}\n")
        time.sleep(0.3)
        if self.number == 3:
            os._exit(1)
        return 1


def test_of_two_shards_at_a_time_the_one_that_kills_their_worker_is_named(tmp_path):
    jobs = [Deadly(number, tmp_path / "log") for number in range(6)]
    with pytest.raises(StageFailed, match="flow: shard shard 3 could not be made: WorkerDied"):
        preprocess._run_jobs(jobs, functools.partial(preprocess.Workers, ClusterSpec(workers=1), at_once=2))
    tried = (tmp_path / "log").read_text().split("\n")
    assert "3 2" in tried  # once more, by itself


def test_only_what_is_missing_or_changed_is_made_again(tiny_dataset, tmp_path):
    videos = shutil.copytree(tiny_dataset, tmp_path / "videos")
    frames = frames_of(videos, tmp_path / "frames")
    flow_of(frames, tmp_path / "flow")
    before, flow_before, key = times(tmp_path / "frames"), times(tmp_path / "flow"), frames.key

    frames = frames_of(videos, tmp_path / "frames")
    assert times(tmp_path / "frames") == before and frames.key == key

    write_video(videos / "right/ben_right.avi", moving_texture(14, dx=3.0, seed=9))
    frames = frames_of(videos, tmp_path / "frames")
    home = frames.rows["right__ben_right"]["shard"] + ".h5"
    changed = {name for name, t in times(tmp_path / "frames").items() if before[name] != t}
    assert changed == {home} and frames.key != key
    flow_of(frames, tmp_path / "flow")
    assert {name for name, t in times(tmp_path / "flow").items() if flow_before[name] != t} == {home}


def test_shards_that_no_longer_belong_are_removed(tiny_dataset, tmp_path):
    videos = shutil.copytree(tiny_dataset, tmp_path / "videos")
    before = frames_of(videos, tmp_path / "frames")
    for person in ("anna", "ben", "cleo"):
        write_video(videos / f"down/{person}x_down.avi", moving_texture(12, dy=2.0, seed=77))
    after = frames_of(videos, tmp_path / "frames")
    assert len(after) == len(before) + 3
    assert {p.stem for p in (tmp_path / "frames/shards").glob("*.h5")} == {row["shard"] for row in after.rows.values()}


def test_an_interrupted_stage_has_no_index_and_goes_on(tiny_dataset, tmp_path, monkeypatch):
    made = []
    original = frames_job._frames_clip

    def interrupted(shard, job, clip):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(clip.id)
        return original(shard, job, clip)

    monkeypatch.setattr(frames_job, "_frames_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        frames_of(tiny_dataset, tmp_path / "frames")
    assert not (tmp_path / "frames/index.h5").exists()
    kept = times(tmp_path / "frames")
    assert kept and not [name for name in os.listdir(tmp_path / "frames/shards") if "tmp" in name]
    monkeypatch.setattr(frames_job, "_frames_clip", original)
    assert len(frames_of(tiny_dataset, tmp_path / "frames")) == 8
    assert kept.items() <= times(tmp_path / "frames").items()


def test_memory_does_not_grow_with_the_length_of_a_clip(tmp_path):
    """600 frames of 640 x 480 are 553 MB decoded, and 2.9 GB as float32 flow."""
    frame = moving_texture(1, height=480, width=640)[0]
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (640, 480))
    for t in range(600):
        writer.write(np.roll(frame, t, 1))
    writer.release()
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests')\n"
        "from pipeline.specs import *; from pipeline.catalog import Clip; from pipeline import store\n"
        "from pipeline.preprocess.jobs.frames import *; from pipeline.preprocess.jobs.flow import *\n"
        "root = Path(sys.argv[1]); clip = Clip('a', 'a.avi', 0, 'x', 'g', 'train', 1, 0, '0' * 16)\n"
        "spec, attrs = FrameSpec(short_side_px=0), {'digest': 'd'}\n"
        "FramesJob(path=root / 'f.h5', videos=root, clips=(clip,), spec=spec, attrs=attrs).make()\n"
        "records = tuple(store.read_records(root / 'f.h5', 'frames'))\n"
        "made = {'path': root / 'w.h5', 'frames': root / 'f.h5', 'spec': FlowSpec(method='dis_ultrafast')}\n"
        "FlowJob(**made, records=records, device='cpu', attrs=attrs).make()\n"
        "assert records[0].frames == 600\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500 * 1024  # KiB


# --- what is left of a store


def jobs_of(frames, folder):
    catalog = read_dataset(DatasetSpec(videos=str(frames), group_pattern=GROUPS), "dan")
    how = {"videos": frames, "spec": FRAMES, "cluster": INLINE, "attrs": preprocess.store_attrs(FRAMES)}
    return preprocess.frames_jobs(folder, catalog, **how), catalog


def test_all_of_a_store_is_left_until_it_is_made(tiny_dataset, tmp_path):
    jobs, catalog = jobs_of(tiny_dataset, tmp_path / "frames")
    flow = {"spec": FLOW, "device": "cpu", "attrs": preprocess.store_attrs(FLOW, FRAMES.digest())}
    everything = (len(jobs), len(jobs), 8, 1.0)
    assert remaining.frames_left(jobs) == everything
    assert remaining.flow_left(tmp_path / "flow", jobs, **flow) == everything
    frames = frames_of(tiny_dataset, tmp_path / "frames")
    assert remaining.frames_left(jobs) == (0, len(jobs), 0, 0.0)
    flow_of(frames, tmp_path / "flow")
    assert remaining.flow_left(tmp_path / "flow", jobs, **flow) == (0, len(jobs), 0, 0.0)

    (tmp_path / "flow/shards" / jobs[0].path.name).unlink()
    jobs[1].path.unlink()  # flow of frames that will come again may be anything
    lost = [sum(clip.bytes for clip in job.clips) for job in jobs]
    clips = [len(job.clips) for job in jobs]
    left = remaining.frames_left(jobs)
    assert left[:3] == (1, len(jobs), clips[1]) and left.share == pytest.approx(lost[1] / sum(lost))
    left = remaining.flow_left(tmp_path / "flow", jobs, **flow)
    assert left[:3] == (2, len(jobs), sum(clips[:2])) and left.share == pytest.approx(sum(lost[:2]) / sum(lost))
