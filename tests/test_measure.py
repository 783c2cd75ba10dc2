"""Trials: what is counted is what is there, what is broken is passed over, and nothing is written."""

import itertools

import numpy as np
import pytest
from chains import snapshot
from conftest import moving_texture, write_video
from stages import flow_of, frames_of

from pipeline import catalog, demo, store
from pipeline.estimates import measure
from pipeline.estimates.measure import cached, pair, timed, unwritten_demo, videos
from pipeline.specs import DatasetSpec, DemoSpec, FlowSpec, FrameSpec
from pipeline.video import jpeg

NATIVE = FrameSpec(short_side_px=0)
GROUPS = r"/(?P<group>[a-z]+)_"


def clips_in(folder):
    return catalog.outline(DatasetSpec(videos=str(folder), group_pattern=GROUPS), "dan").clips


def test_a_call_is_timed_by_any_clock():
    ticks = itertools.count(5, 3)
    assert timed(max, 1, 2, clock=lambda: next(ticks)) == (3, 2)


def test_videos_are_measured_and_counted(tiny_dataset):
    before = snapshot(tiny_dataset)
    found = videos(tiny_dataset, clips_in(tiny_dataset), NATIVE)
    assert snapshot(tiny_dataset) == before
    assert found.bytes == sum(clip.bytes for clip in clips_in(tiny_dataset))
    assert found.cached.clips == 8 and found.cached.frames == pytest.approx(2 * (12 + 13 + 14 + 15), rel=0.02)
    assert len(found.cached.samples) == 3 and found.frame_seconds > 0 and found.byte_seconds > 0
    first = jpeg.decode(np.frombuffer(found.cached.samples[0][0], np.uint8), gray=False)
    assert first.shape == (48, 64, 3)
    images = [len(image) for images in found.cached.samples for image in images]
    assert found.frame_bytes == pytest.approx(np.mean(images))


def test_frames_have_the_size_and_quality_of_the_settings(tiny_dataset):
    clips = clips_in(tiny_dataset)
    fine, coarse = (videos(tiny_dataset, clips, FrameSpec(short_side_px=24, jpeg_quality=q)) for q in (95, 20))
    assert jpeg.decode(np.frombuffer(fine.cached.samples[0][0], np.uint8), gray=False).shape == (24, 32, 3)
    assert coarse.frame_bytes < 0.8 * fine.frame_bytes  # of which the headers are most


def test_no_more_frames_than_allowed_are_decoded(tiny_dataset, monkeypatch):
    monkeypatch.setattr(measure, "FRAMES", 4)
    found = videos(tiny_dataset, clips_in(tiny_dataset), NATIVE)
    assert [len(images) for images in found.cached.samples] == [4, 4, 4]
    assert found.cached.frames == pytest.approx(2 * (12 + 13 + 14 + 15), rel=0.02)  # by the headers


def test_a_broken_video_is_passed_over(tmp_path):
    for name in "abcd":
        write_video(tmp_path / "x" / f"{name}_x.avi", moving_texture(10))
    whole = videos(tmp_path, clips_in_one_class(tmp_path), NATIVE)
    for name in "bc":
        path = tmp_path / "x" / f"{name}_x.avi"
        path.write_bytes(b"\0" * path.stat().st_size)
    found = videos(tmp_path, clips_in_one_class(tmp_path), NATIVE)
    assert len(found.cached.samples) == 2 and found.cached.frames == pytest.approx(whole.cached.frames)


def clips_in_one_class(folder):
    spec = DatasetSpec(videos=str(folder), group_pattern=GROUPS)
    return catalog.outline(spec, "1").clips


def test_where_no_video_decodes_it_says_why(tmp_path):
    (tmp_path / "x").mkdir()
    for name in "ab":
        (tmp_path / "x" / f"{name}_x.avi").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"no video could be decoded: x/[ab]_x.avi: it cannot be opened"):
        videos(tmp_path, clips_in_one_class(tmp_path), NATIVE)


def test_a_video_without_a_frame_is_no_video(tiny_dataset, monkeypatch):
    monkeypatch.setattr(measure.Video, "__iter__", lambda self: iter(()))
    with pytest.raises(ValueError, match="no video could be decoded: .*: no frame decodes"):
        videos(tiny_dataset, clips_in(tiny_dataset), NATIVE)


def test_headers_that_tell_nothing_are_no_guess(tiny_dataset, monkeypatch):
    monkeypatch.setattr(measure, "FRAMES", 4)
    monkeypatch.setattr(measure.Video, "_positive", lambda self, prop: 0.0)
    with pytest.raises(ValueError, match="the headers of the videos do not say how many frames they have"):
        videos(tiny_dataset, clips_in(tiny_dataset), NATIVE)


def test_the_demo_is_measured_before_it_is_written(tmp_path):
    spec = DemoSpec(groups=3, clips=1, frames=10)
    dataset = DatasetSpec(
        layout="ucf101", videos=str(tmp_path / "d/videos"), lists=str(tmp_path / "d/ucfTrainTestlist")
    )
    work, found = unwritten_demo(spec, demo.outline(spec, dataset, "1"), NATIVE)
    assert not list(tmp_path.iterdir())
    demo.write_demo(tmp_path / "d", spec)
    written = videos(tmp_path / "d/videos", catalog.outline(dataset, "1").clips, NATIVE)
    assert work.disk_bytes == found.bytes == pytest.approx(written.bytes, rel=0.1)
    assert found.cached.clips == 18 and found.cached.frames == 180
    assert found.frame_bytes == pytest.approx(written.frame_bytes, rel=0.1)


# --- stores and flow


def test_a_store_is_counted_exactly(tiny_dataset, tmp_path):
    frames = frames_of(tiny_dataset, tmp_path / "frames")
    found = cached(frames.path)
    assert (found.clips, found.frames) == (8, 2 * (12 + 13 + 14 + 15)) and len(found.samples) == 3
    assert found.samples[0][0] in [bytes(next(clip.jpegs())) for clip in frames.values()]


def test_a_store_without_clips_is_refused(tmp_path):
    about = {"digest": "d", "spec": "{}", "inputs": "i"}
    store.write_index(tmp_path / "index.h5", "frames", [], {}, about)
    with pytest.raises(ValueError, match="no clip has frames"):
        cached(tmp_path / "index.h5")


@pytest.mark.parametrize("settings", [{}, {"scaling": "minmax"}, {"backward": True}])
def test_the_planes_of_a_pair_are_as_large_as_in_a_store(tiny_dataset, tmp_path, settings):
    spec = FlowSpec(method="dis_medium", **settings)
    frames = frames_of(tiny_dataset, tmp_path / "frames")
    stored = flow_of(frames, tmp_path / "flow", spec=spec)
    true = sum(clip.nbytes for clip in stored.values()) / sum(len(clip) for clip in stored.values())
    cost = pair(cached(frames.path).samples, spec, device="cpu")
    assert cost.bytes == pytest.approx(true, rel=0.1) and cost.flow_seconds > 0 and cost.code_seconds > 0


def test_both_directions_take_twice_the_time(tiny_dataset, monkeypatch):
    samples = videos(tiny_dataset, clips_in(tiny_dataset), NATIVE).cached.samples
    monkeypatch.setattr(measure, "_worked", lambda function, *given, **named: (1.0, function(*given, **named)))
    costs = [pair(samples, FlowSpec(method="dis_fast", backward=back), device="cpu") for back in (False, True)]
    assert costs[1].flow_seconds == 2 * costs[0].flow_seconds == 2  # by this clock a second a call, of one pair


def test_single_frames_have_no_motion():
    images = [(jpeg.encode(moving_texture(1)[0], quality=90),)]
    with pytest.raises(ValueError, match="no video that was tried has two frames"):
        pair(images, FlowSpec(method="dis_fast"), device="cpu")
