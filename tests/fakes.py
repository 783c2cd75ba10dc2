"""A store in memory with the interface of `pipeline.store.Store`, and a catalog of its clips."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline import quantize, store
from pipeline.catalog import Catalog, Clip
from pipeline.video import jpeg

torch.set_num_threads(1)  # tests are small: more threads cost more than they give, the more so on a busy machine


class FakeClip:
    """A clip whose frames (T, H, W, 3) uint8 and flow (T-1, 2, H, W) float32, forward and backward, are arrays.

    With `bound_px` its flow is stored as bytes with that bound, as in a real store; otherwise as it is.
    """

    def __init__(self, kind, frames=None, forward=None, backward=None, *, bound_px=None):
        self.kind, self._frames, self._forward, self._backward = kind, frames, forward, backward
        self.bound_px = bound_px

    def __len__(self):
        return len(self._frames if self.kind == "frames" else self._forward)

    def frames(self, first, last):
        assert self.kind == "frames" and 0 <= first < last <= len(self)
        return self._frames[first:last]

    def flow(self, first, last, *, backward=False):
        assert self.kind == "flow" and 0 <= first < last <= len(self)
        return (self._backward if backward else self._forward)[first:last]

    @property
    def height(self):
        return self._forward.shape[2]

    @property
    def width(self):
        return self._forward.shape[3]

    def stored_flow(self, first, last, *, backward=False, encoded=False):
        flow = self.flow(first, last, backward=backward)
        planes = list(flow.reshape(-1, *flow.shape[2:]))
        if bound_px := self.bound_px or 20.0 * encoded:
            planes = [quantize.to_bytes(plane, bound_px=bound_px) for plane in planes]
            if encoded:
                planes = [np.frombuffer(jpeg.encode(plane, quality=100), np.uint8) for plane in planes]
            return planes, np.full(len(planes), 2 * bound_px / 255), np.full(len(planes), -bound_px)
        return planes, np.ones(len(planes)), np.zeros(len(planes))


class BrokenClip(FakeClip):
    """A clip of which nothing can be read."""

    def frames(self, first, last):
        raise OSError("bad JPEG")

    flow = frames


class FakeStore(Mapping):
    """Clips by id; `failed` and `folder` as in a real store."""

    folder = Path("in/memory")

    def __init__(self, clips, failed=None):
        self.clips, self.failed, self.attrs = clips, failed or {}, {}

    def __getitem__(self, video_id):
        return self.clips[video_id]

    def __iter__(self):
        return iter(self.clips)

    def __len__(self):
        return len(self.clips)


def clip_row(video_id, label, split, classes, group="g"):
    return Clip(video_id, f"{video_id}.avi", label, classes[label], group, split, 1, 1, "0" * 16)


def two_classes(kind, *, per_class=4, val=1, test=2, size=40, frames=9, seed=0, bound_px=None):
    """A catalog of two classes and its store: class 0 dark or moving left, class 1 bright or moving right."""
    rng, classes, rows, clips = np.random.default_rng(seed), ("left", "right"), [], {}
    for label in (0, 1):
        for k in range(per_class + val + test):
            video_id = f"{classes[label]}_{k}"
            split = "train" if k < per_class else "val" if k < per_class + val else "test"
            rows.append(clip_row(video_id, label, split, classes))
            dark = rng.integers(0, 120, (frames, size, size + 8, 3)) + 120 * label
            moving = rng.normal((2 * label - 1) * 2.0, 0.5, (frames - 1, 2, size, size + 8)).astype(np.float32)
            clips[video_id] = FakeClip(kind, dark.astype(np.uint8), moving, -moving, bound_px=bound_px)
    return Catalog(tuple(rows), classes, "1", ()), FakeStore(clips)


def second_set(kind):
    """Clips with the ids of the first set, of three classes of which one is a class of the first by another spelling."""
    catalog, fake = two_classes(kind, seed=1, per_class=6)
    classes = ("LEFT", "down", "up")

    def renamed(clip):
        label = 1 + int(clip.id[-1]) % 2 if clip.label else 0
        return replace(clip, label=label, class_name=classes[label])

    return Catalog(tuple(map(renamed, catalog.clips)), classes, "1", ()), fake


def use_store(monkeypatch, fake):
    """Make the dataset module open this store, whatever the path."""
    monkeypatch.setattr("pipeline.dataset.pictures.store.open_frames", lambda path: fake)
    monkeypatch.setattr("pipeline.dataset.pictures.store.open_flow", lambda path: fake)


def write_frames_store(folder, fake, catalog):
    """Put the frames of a FakeStore into a real store, for processes that cannot see it. Returns its index."""
    about = {"digest": "fake", "spec": "{}", "inputs": "fake"}
    with store.create_shard(folder / "shards" / "only.h5", "frames", about) as shard:
        records = [_write_clip(shard, clip, fake[clip.id]) for clip in catalog.clips]
    splits = {clip.id: clip.part for clip in catalog.clips}
    store.write_index(folder / "index.h5", "frames", [(record, "only") for record in records], splits, about)
    return folder / "index.h5"


def _write_clip(shard, clip, fake):
    writer = shard.clip(clip.id)
    for frame in fake.frames(0, len(fake)):
        writer.append(jpeg.encode(frame, quality=95))
    height, width = fake.frames(0, 1).shape[1:3]
    about = {"label": clip.label, "class": clip.class_name, "group": clip.group, "height": height, "width": width}
    crc32 = writer.finish(about, seconds=[i / 25 for i in range(len(fake))])
    record = store.Record(clip.id, clip.class_name, clip.label, clip.group, len(fake), "ok", "", crc32)
    shard.record(record)
    return record
