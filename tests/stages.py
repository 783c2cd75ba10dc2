"""Frames and flow of real videos, each in a call, and the bytes of what was made."""

import hashlib

from pipeline import store
from pipeline.catalog import read_dataset
from pipeline.preprocess import make_flow, make_frames
from pipeline.specs import ClusterSpec, DatasetSpec, FlowSpec, FrameSpec

INLINE, LOCAL = ClusterSpec(kind="inline"), ClusterSpec(kind="local", workers=2)
FRAMES = FrameSpec(short_side_px=0, shard_clips=2)
FLOW = FlowSpec(method="dis_medium")
GROUPS = r"/(?P<group>[a-z]+)_"


def frames_of(videos, folder, *, spec=FRAMES, cluster=INLINE):
    catalog = read_dataset(DatasetSpec(videos=str(videos), group_pattern=GROUPS), "dan")
    make_frames(folder, catalog, videos=videos, spec=spec, cluster=cluster)
    return store.open_frames(folder)


def flow_of(frames, folder, *, spec=FLOW, cluster=INLINE):
    make_flow(folder, frames.path, spec=spec, cluster=cluster, device="cpu", max_bad_fraction=0.5)
    return store.open_flow(folder)


def sums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "shards").glob("*.h5")}
