"""Stores of one shard on disk, and motion to put there."""

import cv2
import numpy as np

from pipeline import store
from pipeline.quantize import minmax_to_bytes, to_bytes
from pipeline.store import Record
from pipeline.video import jpeg

ATTRS = {"digest": "d" * 12, "spec": "{}", "inputs": "i" * 12}
ABOUT = {"label": 1, "class": "right", "group": "anna", "source": "right/a.avi", "fps": 25.0, "height": 48, "width": 64}


def write_frames(folder, clips: dict[str, np.ndarray], *, failed: dict[str, str] | None = None):
    """A frames store of one shard with these clips."""
    (folder / "shards").mkdir(parents=True)
    with store.create_shard(folder / "shards/shard-all.h5", "frames", ATTRS) as shard:
        for video_id, frames in clips.items():
            clip = shard.clip(video_id)
            for frame in frames:
                clip.append(jpeg.encode(frame, quality=95))
            crc32 = clip.finish({**ABOUT, "promised_frames": len(frames)}, [t / 25 for t in range(len(frames))])
            shard.record(Record(video_id, "right", 1, "anna", len(frames), "ok", "", crc32))
        for video_id, reason in (failed or {}).items():
            shard.record(Record(video_id, "down", 0, "ben", 0, "failed", reason, 0))
    return index(folder, "frames")


def write_flow(folder, forward: np.ndarray, *, backward: np.ndarray | None = None, minmax: bool = False):
    """A flow store of one clip, "a"."""
    (folder / "shards").mkdir(parents=True)
    with store.create_shard(folder / "shards/shard-all.h5", "flow", ATTRS) as shard:
        clip = shard.clip("a")
        for direction, flow in {"forward": forward, "backward": backward}.items():
            if flow is None:
                continue
            q, ranges = minmax_to_bytes(flow) if minmax else (to_bytes(flow), None)
            if ranges is not None:
                clip.append_range(ranges, direction=direction)
            for plane in q.reshape(-1, *q.shape[2:]):
                clip.append(jpeg.encode(plane, quality=100), direction=direction)
        crc32 = clip.finish({**ABOUT, "method": "test", "scaling": "minmax" if minmax else "bound", "bound_px": 20.0})
        shard.record(Record("a", "right", 1, "anna", len(forward) + 1, "ok", "", crc32))
    return index(folder, "flow")


def index(folder, kind):
    found = [(r, "shard-all") for r in store.read_records(folder / "shards/shard-all.h5", kind)]
    store.write_index(folder / "index.h5", kind, found, {r.id: "train" for r, _ in found}, {**ATTRS, "split_name": "1"})
    return folder / "index.h5"


def smooth_flow(fields: int, *, seed: int = 0) -> np.ndarray:
    """(N, 2, 48, 64) float32 smooth random motion of a few pixels."""
    noise = np.random.default_rng(seed).normal(size=(fields * 2, 48, 64)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(plane, (0, 0), 6) * 40 for plane in noise]).reshape(fields, 2, 48, 64)
