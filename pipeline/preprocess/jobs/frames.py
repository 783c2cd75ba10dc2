"""One frames shard: every clip is decoded, resized and encoded, one image at a time."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2

from pipeline import store
from pipeline.catalog import NO_VIDEO, UNKNOWN, UNREADABLE, Clip
from pipeline.preprocess.jobs import BAD_CLIP, ShardJob, machine_faults
from pipeline.preprocess.jobs.earlier import Earlier, copy_into
from pipeline.specs import FrameSpec
from pipeline.system.console import one_line
from pipeline.system.digests import file_hash
from pipeline.system.errors import MachineFault, Misread
from pipeline.video import NotDecoded, Video, VideoError, jpeg, try_decoding

_FRAMES_WATCHED = 256  # frames after which the time in which a decoder must not hang begins again


@dataclass(frozen=True, kw_only=True)
class FramesJob(ShardJob):
    """One frames shard, to be made from videos."""

    kind: ClassVar[str] = "frames"
    videos: Path
    clips: tuple[Clip, ...]
    spec: FrameSpec
    watch: bool = False  # the process may be ended when a decoder hangs

    @property
    def units(self) -> int:
        """Number of clips, for the progress bar."""
        return len(self.clips)

    @property
    def cost(self) -> int:
        """Estimate of the work, for the order of jobs: the bytes of video."""
        return sum(clip.bytes for clip in self.clips)

    def make(self) -> int:
        """Make the shard; returns its number of clips."""
        cv2.setNumThreads(1)
        with (
            Earlier(self.earlier, self.kind, self.attrs["digest"]) as earlier,
            store.create_shard(self.path, self.kind, self.attrs) as shard,
        ):
            for clip in self.clips:
                shard.record(_from_earlier(shard, earlier, clip) or _frames_clip(shard, self, clip))
        return self.units


def _from_earlier(shard: store.ShardWriter, earlier: Earlier, clip: Clip) -> store.Record | None:
    """Copy a clip whose video was decoded before, with its present label and group; None if it was not decoded."""
    found = earlier.clip(clip.id, clip.content)
    if found is None:
        return None
    stored, row = found.stored, found.row
    about = _attrs(clip, stored.attrs["fps"], (stored.height, stored.width), stored.attrs["promised_frames"])
    crc32 = copy_into(shard.clip(clip.id), stored).finish(about, found.seconds)
    return _record(clip, row["frames"], "ok", row["reason"], crc32)


def _attrs(clip: Clip, fps: float, shape: tuple[int, int], promised_frames: int) -> dict[str, Any]:
    about = {"label": clip.label, "class": clip.class_name, "group": clip.group, "source": clip.path, "fps": fps}
    size = {"height": shape[0], "width": shape[1], "promised_frames": promised_frames}
    return {**about, **size, "made_from": clip.content}


def _frames_clip(shard: store.ShardWriter, job: FramesJob, clip: Clip) -> store.Record:
    """Decode one clip into the shard; a fault of the video is recorded as the reason of its failure."""
    spec, path = job.spec, job.videos / clip.path
    writer, seconds, shape = shard.clip(clip.id), [], (0, 0)
    watched = job.watch and not job.careful
    still_alive = functools.partial(_end_if_hanging, spec) if watched else lambda: None
    still_alive()
    try:
        _refuse_changed(path, clip)
        if job.careful:
            try_decoding(path, timeout_seconds=spec.timeout_seconds)
        video = Video(path, short_side_px=spec.short_side_px, timeout_seconds=spec.timeout_seconds)
        with machine_faults():
            for image, pts_seconds in video:
                writer.append(jpeg.encode(image, quality=spec.jpeg_quality))
                seconds.append(pts_seconds)
                shape = image.shape
                if len(seconds) % _FRAMES_WATCHED == 0:
                    still_alive()
        _refuse_changed(path, clip)
        if len(seconds) < spec.min_frames:
            raise NotDecoded(_too_few(len(seconds), video))
        if not video.promised_frames or _oddity(len(seconds), video):
            _refuse_misread(path, clip, len(seconds), still_alive)
    except BAD_CLIP as error:
        if isinstance(error, NotDecoded):
            _refuse_misread(path, clip, len(seconds), still_alive)
        return _record(clip, 0, "failed", one_line(str(error)), 0)
    finally:
        if watched:
            faulthandler.cancel_dump_traceback_later()
    crc32 = writer.finish(_attrs(clip, video.fps, shape[:2], video.promised_frames), seconds)
    return _record(clip, len(seconds), "ok", _oddity(len(seconds), video), crc32)


def _record(clip: Clip, frames: int, status: str, reason: str, crc32: int) -> store.Record:
    return store.Record(clip.id, clip.class_name, clip.label, clip.group, frames, status, reason, crc32)


def _refuse_changed(path: Path, clip: Clip) -> None:
    """Refuse a video that is no longer what the catalog knows: its images would be kept as those of the former one.

    Raises:
        VideoError: it has changed, and has no label: a folder into which videos are still being written is scored
            without them, and the next run finds them changed.
        MachineFault: it has changed, and its dataset would lack it without anyone wanting that.
    """
    if clip.content == UNREADABLE or not path.is_file():  # whoever opens it says why
        return
    about = path.stat()
    if (about.st_size, about.st_mtime_ns) != (clip.bytes, clip.mtime_ns) and file_hash(path) != clip.content:
        what = "has changed since the catalog was read; run the same command again to read it"
        if clip.label == UNKNOWN:
            raise VideoError(f"the file {what}")
        raise MachineFault(f"{path} {what}")


def _refuse_misread(path: Path, clip: Clip, frames: int, still_alive: Callable[[], None]) -> None:
    """Refuse a video that its disk did not give whole: FFmpeg takes a failed read for the end of the file.

    Raises:
        OSError: the file cannot be read to its end.
        Misread: decoded once more, it gives another number of frames than the `frames` of the first time.
    """
    if clip.content in NO_VIDEO:
        return
    still_alive()
    try:
        file_hash(path)
    except OSError as error:
        error.add_note(f"while reading {path}")
        raise
    again = 0
    with contextlib.suppress(VideoError):
        for again, _ in enumerate(Video(path), start=1):
            if again % _FRAMES_WATCHED == 0:
                still_alive()
    if again != frames:
        raise Misread(
            f"{path} gave {frames} frames, and {again} when it was read again, so its disk or network fails at times"
        )


def _end_if_hanging(spec: FrameSpec) -> None:
    """End this process in a while, unless called again: a decoder that hangs in native code cannot be interrupted."""
    faulthandler.dump_traceback_later(spec.timeout_seconds * 1.5 + 5, exit=True, file=_log())


@functools.cache
def _log() -> Any:
    """Standard error; where the command was started without one, nothing."""
    return sys.stderr if sys.stderr is not None else Path(os.devnull).open("w")


def _too_few(frames: int, video: Video) -> str:
    if not frames:
        return f"it opens, but no frame decodes (codec {video.codec}); converting it to H.264 helps"
    return f"only {frames} frame{'s' if frames > 1 else ''} can be decoded"


def _oddity(frames: int, video: Video) -> str:
    """Remark on missing frames. If only one is missing there is none: most containers promise one frame too many."""
    missing = video.promised_frames - frames
    return f"{frames} of {video.promised_frames} promised frames decode" if missing > 1 else ""
