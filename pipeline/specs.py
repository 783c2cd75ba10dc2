"""The settings of every stage, each a frozen record: everybody imports them from here.

What they have in common is in `spec.py`.
"""

from pipeline.data_specs import (
    FLOW_METHODS,
    RAFT_WEIGHTS,
    ClusterSpec,
    DatasetSpec,
    DemoSpec,
    FlowSpec,
    FrameSpec,
    RunSpec,
)
from pipeline.stream_specs import FUSIONS, STREAMS, FusionSpec, ScoreSpec, StackSpec, StreamSpec

__all__ = [
    "FLOW_METHODS",
    "FUSIONS",
    "RAFT_WEIGHTS",
    "STREAMS",
    "ClusterSpec",
    "DatasetSpec",
    "DemoSpec",
    "FlowSpec",
    "FrameSpec",
    "FusionSpec",
    "RunSpec",
    "ScoreSpec",
    "StackSpec",
    "StreamSpec",
]
