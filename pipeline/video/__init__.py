"""Video file -> frames, one at a time, with OpenCV's FFmpeg decoder.

Frames are counted by decoding them, because the count in the header is often one too high and sometimes negative.
Rotation tags are respected.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from pipeline.system.errors import ClipError, MachineFault
from pipeline.system.processes import status_of

_MOST_ASPECT = 64  # resized to a usual short side, narrower frames would need gigabytes, hours later in a training


class VideoError(ClipError):
    """A video gives no usable frames."""


class NotDecoded(VideoError):
    """No frames, or too few, came out of it. FFmpeg says the same if the disk failed, so that must be ruled out."""


class Video:
    """One open video.

    Iterating, which works once, yields (image, pts_seconds): (H, W, 3) uint8 RGB and its presentation time.

    Args:
        path: the file.
        short_side_px: short side to which frames are resized; 0 keeps their size.
        timeout_seconds: limit on the total decoding time; 0 means no limit.

    Raises:
        VideoError: the file is empty or cannot be opened, decoding takes too long, or frames are strips (over 64:1).
        FileNotFoundError: the file does not exist, for example on an unmounted disk; the video is not at fault.
    """

    def __init__(self, path: Path | str, *, short_side_px: int = 0, timeout_seconds: float = 0.0):
        # absolute, so that a name like `-x.avi` or `a:b.avi` is not taken for an option or a protocol
        self.path = Path(path).absolute()
        self.short_side_px = short_side_px
        self.timeout_seconds = timeout_seconds
        if not self.path.is_file():
            raise FileNotFoundError(errno.ENOENT, "the video is no longer there", str(self.path))
        if not self.path.stat().st_size:
            raise VideoError("the file is empty (0 bytes)")
        if not os.access(self.path, os.R_OK):
            raise VideoError("there is no permission to read the file")
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's messages do not name the file; ours do
        # OpenCV would give up after 30 s, and say that the video ends there: a network disk may be away for longer
        patient = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 0, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 0]
        self._capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1, *patient])
        if not self._capture.isOpened():
            raise NotDecoded("it cannot be opened: not a video, or one that OpenCV's FFmpeg does not know")
        self.fps = self._positive(cv2.CAP_PROP_FPS)
        self.promised_frames = int(self._positive(cv2.CAP_PROP_FRAME_COUNT))
        self.codec = self._codec()

    def _positive(self, prop: int) -> float:
        value = self._capture.get(prop)
        return float(value) if 0 < value < 1e9 else 0.0  # no duration: OpenCV gives -9.2e15, or NaN

    def _codec(self) -> str:
        """Four-character code of the codec, such as `h264`."""
        code = int(self._capture.get(cv2.CAP_PROP_FOURCC))
        return "".join(chr(code >> shift & 255) for shift in (0, 8, 16, 24)).strip("\0 ").lower() or "unknown"

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        spent, size, last = 0.0, None, -1.0
        try:
            while True:
                begun = time.monotonic()
                read, image = self._capture.read()
                spent += time.monotonic() - begun  # not the caller's time
                if self.timeout_seconds and spent > self.timeout_seconds:
                    raise VideoError(f"decoding takes longer than timeout_seconds = {self.timeout_seconds:g}")
                if not read:
                    return
                size = size or self._target_size(*image.shape[:2])
                last = self._pts_seconds(last)
                yield cv2.cvtColor(resized(image, size), cv2.COLOR_BGR2RGB), last
        finally:
            self._capture.release()

    def _target_size(self, height: int, width: int) -> tuple[int, int]:
        if max(height, width) > _MOST_ASPECT * min(height, width):
            raise VideoError(
                f"its frames are strips of {height} x {width}: one side is over {_MOST_ASPECT} times the other"
            )
        return target_size(height, width, self.short_side_px)

    def _pts_seconds(self, last: float) -> float:
        """Presentation time of the frame just read; if the container's time does not rise, one frame after `last`."""
        seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if last < 0:
            return max(seconds, 0.0) if np.isfinite(seconds) else 0.0
        return seconds if np.isfinite(seconds) and seconds > last else last + 1 / (self.fps or 25.0)


def target_size(height: int, width: int, short_side_px: int) -> tuple[int, int]:
    """(height, width) with a short side of `short_side_px` and the same aspect ratio; 0 keeps the size.

    Example: 240 x 320 at 256 gives 256 x 341.
    """
    if not short_side_px:
        return height, width
    scale = short_side_px / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, 3) to `size`, which is (height, width)."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=interpolation(image.shape[:2], size))


def interpolation(size: tuple[int, int], to: tuple[int, int]) -> int:
    """How OpenCV resizes from one (height, width) to another: shrinking averages areas, enlarging is bilinear."""
    return cv2.INTER_AREA if to[0] <= size[0] and to[1] <= size[1] else cv2.INTER_LINEAR


def try_decoding(path: Path | str, *, timeout_seconds: float) -> None:
    """Decode a video to its end in a separate process, which may crash or hang without harming this one.

    Raises:
        VideoError: the decoder crashed, or took longer than `timeout_seconds`.
        MachineFault: the process was killed from outside, perhaps for lack of memory; the video is not at fault.
    """
    decode = "from pipeline.video import Video; [None for _ in Video(sys.argv[1])]"
    try:
        code = status_of(decode, str(path), timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise VideoError(f"decoding takes longer than timeout_seconds = {timeout_seconds:g}") from None
    if code == -signal.SIGKILL:
        raise MachineFault(f"the process that decoded {path} was killed: too little memory, or someone ended it")
    if code < 0:
        raise VideoError(f"the decoder crashed (signal {-code})")
