"""Frames are what was written, counted by decoding; whatever is wrong with a file is said in words."""

import os
import signal
import stat
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from conftest import ROOT, moving_texture, write_video

from pipeline.system.errors import MachineFault
from pipeline.video import Video, VideoError, jpeg, target_size, try_decoding


def test_frames_come_back_in_order_as_rgb(tmp_path):
    frames = np.zeros((6, 32, 40, 3), np.uint8)
    for t in range(6):
        frames[t] = (200, 30 * t, 10)  # red, rising green, little blue
    got = list(Video(write_video(tmp_path / "a.avi", frames, fps=10)))
    assert len(got) == 6
    for t, (image, seconds) in enumerate(got):
        assert image.shape == (32, 40, 3) and image.dtype == np.uint8
        assert np.abs(image.reshape(-1, 3).mean(0) - (200, 30 * t, 10)).max() < 6
        assert seconds == pytest.approx(t / 10, abs=1e-6)


def test_the_header_is_read_but_not_believed(tmp_path):
    path = write_video(tmp_path / "a.avi", moving_texture(9), fps=12.5)
    video = Video(path)
    assert (video.fps, video.promised_frames) == (12.5, 9)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert 0 < len(list(Video(path))) < 9


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.avi").write_bytes(b"1")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # whoever runs this may be allowed everything
    with pytest.raises(VideoError, match="there is no permission to read the file"):
        Video(tmp_path / "a.avi")


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((240, 320), 256, (256, 341)),
        ((144, 180), 0, (144, 180)),
        ((320, 240), 120, (160, 120)),
        ((1, 900), 1, (1, 900)),
    ],
)
def test_short_side(size, short, expected):
    assert target_size(*size, short) == expected


def test_frames_are_resized(tmp_path):
    path = write_video(tmp_path / "a.avi", moving_texture(3, height=48, width=64))
    assert {image.shape for image, _ in Video(path, short_side_px=24)} == {(24, 32, 3)}
    assert {image.shape for image, _ in Video(path, short_side_px=96)} == {(96, 128, 3)}


def test_strange_names_are_just_names(tmp_path, monkeypatch):
    for name in ["-dash.avi", "a:b.avi", "100%03d.avi", "ünï ☃ [x] & ;#!'\".avi"]:
        assert len(list(Video(write_video(tmp_path / name, moving_texture(3))))) == 3
    monkeypatch.chdir(tmp_path)
    assert len(list(Video("-dash.avi"))) == 3


@pytest.mark.parametrize(
    ("content", "message"), [(b"", r"the file is empty \(0 bytes\)"), (b"no video at all" * 99, "it cannot be opened")]
)
def test_files_that_are_no_videos(tmp_path, content, message):
    path = tmp_path / "x.avi"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=message):
        Video(path)


def test_opencv_prints_nothing_of_a_file_that_it_cannot_open(tmp_path):
    """Its warnings do not name the file, and come from native code."""
    (tmp_path / "a.avi").write_bytes(b"no video")
    code = "import sys; from pipeline.video import Video; Video(sys.argv[1])"
    env = {name: value for name, value in os.environ.items() if name != "OPENCV_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.avi"], capture_output=True, text=True, env=env, cwd=ROOT
    )
    assert done.stderr.startswith("Traceback") and "NotDecoded: it cannot be opened" in done.stderr, done.stderr


def test_a_file_that_is_gone_is_no_fault_of_the_video(tmp_path):
    """Its disk may not be mounted: recorded as failed the clip would stay so."""
    with pytest.raises(FileNotFoundError, match="the video is no longer there: .*absent.avi"):
        Video(tmp_path / "absent.avi")


def test_frames_that_are_strips_are_refused_before_they_need_gigabytes(tmp_path):
    strip = moving_texture(2, height=10, width=642)
    with pytest.raises(VideoError, match="its frames are strips of 10 x 642: one side is over 64 times the other"):
        list(Video(write_video(tmp_path / "a.avi", strip)))
    ((image, _), *_) = Video(write_video(tmp_path / "b.avi", strip[:, :, :640]), short_side_px=5)
    assert image.shape == (5, 320, 3)


def test_time_limit(tmp_path):
    path = write_video(tmp_path / "a.avi", moving_texture(5))
    with pytest.raises(VideoError, match="decoding takes longer than timeout_seconds = 1e-09"):
        list(Video(path, timeout_seconds=1e-9))
    with pytest.raises(VideoError, match="decoding takes longer than timeout_seconds = 0.01"):
        try_decoding(path, timeout_seconds=0.01)
    try_decoding(path, timeout_seconds=60)


def test_the_time_limit_is_for_decoding_alone(tmp_path):
    """On a busy machine whoever uses the frames may take long; that is no fault of the video."""
    path, frames = write_video(tmp_path / "a.avi", moving_texture(5)), 0
    for _ in Video(path, timeout_seconds=2.0):
        frames += 1
        time.sleep(0.6)
    assert frames == 5


@pytest.mark.parametrize(
    ("by", "error", "message"),
    [
        (signal.SIGSEGV, VideoError, r"the decoder crashed \(signal 11\)"),
        (signal.SIGKILL, MachineFault, r"the process that decoded .*a.avi was killed: too little memory, or someone"),
    ],
)
def test_a_crash_of_the_decoder_stays_in_its_process(tmp_path, monkeypatch, by, error, message):
    killer = tmp_path / "python"
    killer.write_text(f"#!/bin/sh\nkill -{by.value} $$\n")
    killer.chmod(killer.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr("sys.executable", str(killer))
    with pytest.raises(error, match=message):
        try_decoding(tmp_path / "a.avi", timeout_seconds=60)


def test_rotation_is_honored(shared):
    """The sample is stored upside down with a tag of 180 degrees: it must differ from the frame as stored."""
    path = shared / "data/odd_clips/rotated_180.mp4"
    capture = cv2.VideoCapture(str(path))
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    stored = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
    image, _ = next(iter(Video(path)))
    assert np.array_equal(image, stored[::-1, ::-1])


def test_codec_is_named(shared):
    assert Video(shared / "data/odd_clips/av1.mkv").codec == "av01"


def test_jpeg_round_trip_and_its_errors():
    image = moving_texture(1)[0]
    assert (
        np.abs(
            jpeg.decode(np.frombuffer(jpeg.encode(image, quality=95), np.uint8), gray=False).astype(int) - image
        ).max()
        < 12
    )
    plane = image[..., 0]
    assert (
        np.abs(
            jpeg.decode(np.frombuffer(jpeg.encode(plane, quality=95), np.uint8), gray=True).astype(int) - plane
        ).max()
        < 12
    )
    turned = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # by 90 degrees
    data = jpeg.encode(image[:40], quality=95)
    data = np.frombuffer(data[:2] + turned + data[2:], np.uint8)
    assert jpeg.decode(data, gray=True).shape == jpeg.decode(data, gray=False).shape[:2] == image[:40].shape[:2]
    with pytest.raises(ValueError, match="3 bytes do not decode as JPEG"):
        jpeg.decode(np.zeros(3, np.uint8), gray=True)
    with pytest.raises(ValueError, match=r"an image of shape \(1, 70000\) cannot be written as JPEG"):
        jpeg.encode(np.zeros((1, 70000), np.uint8), quality=95)


def test_opencv_does_not_give_up_on_a_slow_disk(tmp_path, monkeypatch):
    capture, given = cv2.VideoCapture, []
    monkeypatch.setattr(
        cv2, "VideoCapture", lambda path, how, options: given.append(options) or capture(path, how, options)
    )
    assert len(list(Video(write_video(tmp_path / "a.avi", moving_texture(5))))) == 5
    options = dict(zip(given[0][::2], given[0][1::2], strict=True))
    assert options[cv2.CAP_PROP_OPEN_TIMEOUT_MSEC] == options[cv2.CAP_PROP_READ_TIMEOUT_MSEC] == 0  # no limit
