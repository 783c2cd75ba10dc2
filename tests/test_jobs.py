"""The line of the Flow stage: any threads and any batches give the same bytes, and a clip's fault stays its own."""

import dataclasses
import faulthandler
import gc
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, moving_texture

from pipeline import store
from pipeline.artifacts import damage
from pipeline.flow import estimate_on_device
from pipeline.preprocess.jobs import flow_pipeline
from pipeline.preprocess.jobs import frames as frames_job
from pipeline.preprocess.jobs.flow import FlowJob, try_clip
from pipeline.preprocess.jobs.helpers import Helpers, run_ahead
from pipeline.specs import FlowSpec, FrameSpec
from pipeline.system.errors import ClipError, DamagedFile, MachineFault
from pipeline.video import jpeg

DIS = FlowSpec(method="dis_fast")
LENGTHS = {"a": 3, "b": 7, "c": 2, "d": 12, "e": 1, "f": 5, "g": 4}
LARGER = ("d", "f")


def speed_px(length):
    """Of the texture of a clip of this length: no two are alike."""
    return 0.5 + length / 4


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """A frames shard of clips of two sizes and many lengths, among them one that failed and one of a single frame."""
    path = tmp_path_factory.mktemp("frames") / "shard-all.h5"
    with store.create_shard(path, "frames", {"digest": "f", "inputs": "i"}) as shard:
        for name, length in LENGTHS.items():
            height = 64 if name in LARGER else 48
            add_clip(shard, name, moving_texture(length, height=height, dx=speed_px(length), seed=length))
        shard.record(store.Record("h", "x", 0, "g", 0, "failed", "the file is empty (0 bytes)", 0))
    return path


def add_clip(shard, name, images, *, height=0, damaged=-1):
    clip = shard.clip(name)
    for t, image in enumerate(images):
        clip.append(b"no image" if t == damaged else jpeg.encode(image, quality=95))
    about = {"label": 0, "class": "x", "group": "g", "source": name, "fps": 25.0, "promised_frames": 0}
    about |= {"height": height or images.shape[1], "width": images.shape[2]}
    crc32 = clip.finish(about, [t / 25 for t in range(len(images))])
    shard.record(store.Record(name, "x", 0, "g", len(images), "ok", "", crc32))


def make(frames, path, *, spec=DIS, threads=1, device="cpu"):
    records = tuple(store.read_records(frames, "frames"))
    path.parent.mkdir(parents=True, exist_ok=True)
    given = {"path": path, "frames": frames, "records": records, "attrs": {"digest": "d"}}
    assert FlowJob(**given, spec=spec, device=device, threads=threads).make() == len(records)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def reasons(path):
    return {record.id: record.reason for record in store.read_records(path, "flow") if record.status == "failed"}


def test_frames_made_again_since_the_run_began_get_no_flow(frames, tmp_path):
    records = tuple(store.read_records(frames, "frames"))
    for other in ({"crc32": 1}, {"frames": 99}):
        given = {"path": tmp_path / "s.h5", "frames": frames, "attrs": {"digest": "d"}}
        known = tuple(record._replace(**other) if record.id == "b" else record for record in records)
        with pytest.raises(
            MachineFault, match="the frames of clip 'b' of .* have been made again since this run began"
        ):
            FlowJob(**given, records=known, spec=DIS, device="cpu").make()
        assert not (tmp_path / "s.h5").exists()


ALWAYS = {"e": "no flow: one frame alone has no flow", "h": "the file is empty (0 bytes)"}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed on Linux alone")
def test_what_was_read_is_closed(frames, tmp_path):
    gc.disable()
    try:
        make(frames, tmp_path / "s.h5")
        still_open = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    finally:
        gc.enable()
    assert not {str(frames), str(tmp_path / "s.h5")} & still_open


@pytest.mark.parametrize(
    "spec", [DIS, FlowSpec(method="dis_fast", backward=True, scaling="minmax")], ids=["", "minmax"]
)
def test_threads_and_batches_change_no_byte(frames, tmp_path, monkeypatch, spec):
    sums = {make(frames, tmp_path / "s.h5", spec=spec)}
    for pixels in (1, 3 * 48 * 64, 5 * 64 * 64):
        monkeypatch.setattr("pipeline.flow.device.HOST_PIXELS", pixels)
        sums |= {make(frames, tmp_path / "s.h5", spec=spec, threads=threads) for threads in (1, 4)}
    assert len(sums) == 1
    assert reasons(tmp_path / "s.h5") == ALWAYS
    found = store.open_flow(tmp_path / "s.h5")
    assert {name: len(clip) for name, clip in found.items()} == {n: k - 1 for n, k in LENGTHS.items() if k > 1}
    for name, clip in found.items():
        moved = np.median(clip.flow(0, len(clip))[:, :, 12:-12, 12:-12], axis=(2, 3))
        assert np.abs(moved - (speed_px(LENGTHS[name]), 0)).max() < 0.5


@pytest.mark.parametrize("code", [cv2.Error.StsNoMem, cv2.Error.GpuApiCallError])
@pytest.mark.parametrize("where", [(flow_pipeline, "estimate_on_device"), (jpeg, "decode"), (jpeg, "encode")])
def test_a_fault_of_the_machine_is_no_clips(frames, tmp_path, monkeypatch, code, where):
    def fail(*arguments, **options):
        error = cv2.error("Failed to allocate 9 bytes")
        error.code = code
        raise error

    monkeypatch.setattr(*where, fail)
    with pytest.raises(MachineFault, match="OpenCV on this machine: Failed to allocate 9 bytes"):
        make(frames, tmp_path / "s.h5")
    assert not list(tmp_path.iterdir())  # nothing that a later try, on a machine in order, would keep


def test_a_method_that_the_worker_lacks_fails_the_shard(frames, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.flow.opencv.why_not", lambda name: "OpenCV has no contrib modules")
    with pytest.raises(ValueError, match="method dis_fast is not available: OpenCV has no contrib modules"):
        make(frames, tmp_path / "s.h5")
    assert not list(tmp_path.iterdir())


def test_too_little_memory_for_a_batch_lets_its_pieces_be_tried_alone(frames, tmp_path, monkeypatch):
    expected = make(frames, tmp_path / "s.h5")
    given_back = []

    def only_alone(images, spec, **options):
        if options["cuts"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return estimate_on_device(images, spec, **options)

    monkeypatch.setattr(flow_pipeline, "estimate_on_device", only_alone)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(1))
    assert make(frames, tmp_path / "s.h5") == expected and given_back


def test_flow_on_a_device_gives_the_same_bytes(frames, tmp_path, monkeypatch):
    """Tensors take the way that CUDA's take: quantized where they are, checked when they arrive."""
    expected = make(frames, tmp_path / "s.h5", threads=3)
    seen = []

    def as_tensor(images, spec, **options):
        seen.append(options["cuts"])
        return torch.from_numpy(estimate_on_device(images, spec, **options))

    monkeypatch.setattr(flow_pipeline, "estimate_on_device", as_tensor)
    assert make(frames, tmp_path / "s.h5", threads=3) == expected
    assert [3, 10] in seen  # a, b and c, end to end
    ranges = FlowSpec(method="dis_fast", scaling="minmax")
    of_tensors = make(frames, tmp_path / "s.h5", spec=ranges)
    monkeypatch.undo()
    assert make(frames, tmp_path / "s.h5", spec=ranges) == of_tensors


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_flow_that_is_not_finite_fails_its_own_clip_alone(frames, tmp_path, monkeypatch, threads, kind):
    guilty = moving_texture(7, dx=speed_px(7), seed=7)[:, :, :, 0]  # of clip b

    def broken(images, spec, *, device, direction, cuts=()):
        flow = estimate_on_device(images, spec, device=device, direction=direction, cuts=cuts)
        starts = np.setdiff1d(np.arange(len(images) - 1), np.array(cuts, int) - 1)
        for pair, start in enumerate(starts):
            if images[start].shape == guilty[4].shape and np.abs(images[start].astype(int) - guilty[4]).mean() < 3:
                flow[pair, 1, 2, 3] = np.nan
        return kind(flow)

    monkeypatch.setattr(flow_pipeline, "estimate_on_device", broken)
    make(frames, tmp_path / "s.h5", threads=threads)
    why = "no flow: flow holds 1 values that are NaN or infinite, the first at (4, 1, 2, 3); no byte holds that"
    assert reasons(tmp_path / "s.h5") == {**ALWAYS, "b": why}
    monkeypatch.undo()
    make(frames, tmp_path / "whole.h5")
    whole, rest = store.open_flow(tmp_path / "whole.h5"), store.open_flow(tmp_path / "s.h5")
    assert set(whole) - set(rest) == {"b"}
    assert all(
        np.array_equal(whole[name].flow(0, len(whole[name])), rest[name].flow(0, len(rest[name]))) for name in rest
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_wrong_with_a_clip_is_its_reason(tmp_path, monkeypatch, threads):
    monkeypatch.setattr("pipeline.flow.device.HOST_PIXELS", 4 * 48 * 64)
    with store.create_shard(tmp_path / "frames.h5", "frames", {"digest": "f", "inputs": "i"}) as shard:
        add_clip(shard, "good", moving_texture(5))
        add_clip(shard, "wide", moving_texture(3, width=80))
    original = jpeg.encode

    def refuses(image, *, quality):
        if image.shape[1] == 80:
            raise ClipError("an image cannot be written as JPEG")
        return original(image, quality=quality)

    monkeypatch.setattr(jpeg, "encode", refuses)
    make(tmp_path / "frames.h5", tmp_path / "s.h5", threads=threads)
    found = reasons(tmp_path / "s.h5")
    assert found == {"wide": "no flow: an image cannot be written as JPEG"}


@pytest.mark.parametrize("threads", [1, 3])
def test_frames_that_do_not_decode_are_damage_whatever_their_checksum(tmp_path, threads):
    """It covers all their bytes, but not where an image begins."""
    for given, why in (
        ({"damaged": 6}, "8 bytes do not decode as JPEG"),
        ({"height": 50}, r"an image is \(48, 64\), its clip is \(50, 64\), height and width"),
    ):
        with store.create_shard(tmp_path / "frames.h5", "frames", {"digest": "f", "inputs": "i"}) as shard:
            add_clip(shard, "bad", moving_texture(9), **given)
            add_clip(shard, "good", moving_texture(5))
        with pytest.raises(DamagedFile, match=f"clip 'bad' of .* is damaged: {why}; `python -m pipeline repair .*"):
            make(tmp_path / "frames.h5", tmp_path / "s.h5", threads=threads)
        found = damage.verify(tmp_path / "frames.h5")  # so `repair` removes what the stage complains of
        assert len(found) == 1 and re.match(f"bad: {why}", found[0]), found


def test_after_its_worker_died_a_clip_that_crashes_is_recorded_and_the_others_are_made(frames, tmp_path, monkeypatch):
    whole = tmp_path / "whole.h5"
    make(frames, whole)
    python = tmp_path / "python"  # the process in which b is tried crashes, that of c is killed from outside
    python.write_text('#!/bin/sh\n[ "$4" = b ] && kill -SEGV $$\n[ "$4" = c ] && kill -KILL $$\nexit 0\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    records = tuple(store.read_records(frames, "frames"))
    given = {"path": tmp_path / "s.h5", "frames": frames, "records": records, "attrs": {"digest": "d"}}
    assert FlowJob(**given, spec=DIS, device="cpu").again().make() == len(records)
    assert reasons(tmp_path / "s.h5") == {**ALWAYS, "b": "no flow: dis_fast crashed (SIGSEGV)"}
    made, before = store.Store(tmp_path / "s.h5", "flow"), store.Store(whole, "flow")
    assert all(made[name].checksum() == before[name].checksum() for name in made)


@pytest.mark.parametrize("backward", [False, True])
def test_a_clip_is_tried_in_the_directions_in_which_its_flow_is_computed(frames, monkeypatch, backward):
    tried = []
    monkeypatch.setattr(
        "pipeline.preprocess.jobs.flow.estimate_on_device", lambda *_, direction, **__: tried.append(direction)
    )
    try_clip(str(frames), "d", json.dumps(dataclasses.replace(DIS, backward=backward).as_dict()))
    assert set(tried) == ({"forward", "backward"} if backward else {"forward"})


def test_a_clip_is_tried_in_bounded_memory(frames, monkeypatch):
    monkeypatch.setattr("pipeline.flow.device.HOST_PIXELS", 3 * 48 * 64)
    seen = []
    monkeypatch.setattr(
        "pipeline.preprocess.jobs.flow.estimate_on_device", lambda images, *_, **__: seen.append(len(images))
    )
    try_clip(str(frames), "d", json.dumps(DIS.as_dict()))
    assert sum(count - 1 for count in seen) == LENGTHS["d"] - 1 and max(seen) <= 4


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("pixels", [1, 3 * 48 * 64, 10**6], ids=["pair by pair", "pieces", "all at once"])
@pytest.mark.parametrize("place", [0, 1000, -1], ids=["no JPEG", "another picture", "the end"])
def test_damage_to_the_frames_fails_the_shard_and_not_the_clip(frames, tmp_path, monkeypatch, threads, pixels, place):
    """A clip that was recorded as failed would stay so after its frames were repaired."""
    monkeypatch.setattr("pipeline.flow.device.HOST_PIXELS", pixels)
    path = tmp_path / "a b/shards/shard-all.h5"
    path.parent.mkdir(parents=True)
    path.write_bytes(frames.read_bytes())
    with h5py.File(path, "r+") as file:
        file["clips/b/jpeg"][place] ^= 16
    message = f"clip 'b' of {tmp_path}/a b is damaged: .* do not (match|decode) .*; `python -m pipeline repair '{tmp_path}/a b'`"
    with pytest.raises(DamagedFile, match=message):
        make(path, tmp_path / "s.h5", threads=threads)
    assert not (tmp_path / "s.h5").exists()


@pytest.mark.parametrize("threads", [1, 4])
def test_no_thread_outlives_its_shard(frames, tmp_path, monkeypatch, threads):
    before = threading.active_count()
    make(frames, tmp_path / "s.h5", threads=threads)
    monkeypatch.setattr("pipeline.flow.device.HOST_PIXELS", 1)

    def full(planes, quality):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flow_pipeline, "_encode", full)
    with pytest.raises(OSError, match="No space left"):
        make(frames, tmp_path / "full.h5", threads=threads)
    assert threading.active_count() == before and not (tmp_path / "full.h5").exists()


def test_a_step_runs_ahead_by_so_many_and_keeps_the_order():
    for ahead in (0, 1, 3):
        begun = []
        for done, item in enumerate(run_ahead(begun.append, iter(range(20)), ahead=ahead)):
            assert item == done and len(begun) == min(done + 1 + ahead, 20)


def test_helpers_work_at_once_and_alone_when_asked():
    with Helpers(1) as alone, Helpers(3) as three:
        main = threading.get_ident()
        assert alone.start(threading.get_ident)() == main and alone.ahead == 0
        assert three.start(threading.get_ident)() != main and three.ahead > 0
        meeting = threading.Barrier(3, timeout=20)  # which two alone would wait for in vain
        assert sorted(wait() for wait in [three.start(meeting.wait) for _ in range(3)]) == [0, 1, 2]
        with pytest.raises(ValueError, match="invalid literal"):
            three.start(int, "x")()
    begun = []
    with pytest.raises(KeyError), Helpers(2) as two:
        for _ in range(50):
            two.start(lambda: (begun.append(1), time.sleep(0.01)))
        raise KeyError
    assert len(begun) < 50  # the rest was dropped


def test_a_stage_in_this_process_needs_neither_dask_nor_luigi(frames, tmp_path):
    """Such as on a machine that has a GPU and little else."""
    code = (
        "import sys\n"
        "for name in ('dask', 'distributed', 'luigi', 'tqdm', 'sklearn', 'matplotlib', 'jinja2', 'torchvision'):\n"
        "    sys.modules[name] = None\n"  # importing it raises ImportError
        "from pathlib import Path; from pipeline import store; from pipeline.preprocess import make_flow\n"
        "from pipeline.specs import ClusterSpec, FlowSpec\n"
        "source, target = map(Path, sys.argv[1:])\n"
        "records = store.read_records(source / 'shards/shard-all.h5', 'frames')\n"
        "attrs = {'digest': 'f', 'inputs': 'i', 'split_name': '1'}\n"
        "store.write_index(source / 'index.h5', 'frames', [(r, 'shard-all') for r in records], {}, attrs)\n"
        "cluster = ClusterSpec(kind='inline', threads=2)\n"
        "make_flow(target, source, spec=FlowSpec(method='tvl1', tvl1_warps=1, tvl1_iterations=2), cluster=cluster,\n"
        "          device='cpu', max_bad_fraction=0.5)\n"
        "print(len(store.open_flow(target)))"
    )
    shards = tmp_path / "frames/shards"
    shards.mkdir(parents=True)
    (shards / "shard-all.h5").write_bytes(frames.read_bytes())
    command = [sys.executable, "-c", code, str(tmp_path / "frames"), str(tmp_path / "flow")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "6\n", done.stderr


@pytest.mark.needs_cuda
def test_cuda_batches_and_threads_change_no_byte(frames, tmp_path):
    sums = {
        make(frames, tmp_path / "s.h5", spec=FlowSpec(batch_pairs=pairs, backward=True), threads=threads, device="cuda")
        for pairs in (0, 1, 5)
        for threads in (0, 1, 4)
    }
    assert len(sums) == 1 and reasons(tmp_path / "s.h5") == ALWAYS


def test_a_decoder_is_watched_where_there_is_no_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    frames_job._log.cache_clear()
    try:
        frames_job._end_if_hanging(FrameSpec())  # refused by faulthandler if it had nowhere to write
        assert frames_job._log().name == os.devnull
    finally:
        faulthandler.cancel_dump_traceback_later()
        frames_job._log.cache_clear()
