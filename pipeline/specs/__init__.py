"""The settings of every stage, each a frozen dataclass. Other modules import them from here.

`base.py` holds what they share, `data.py` the settings of the stages up to the flow, `cluster.py` those of where these
run, `streams.py` those of the stacks and the streams, `scores.py` those of scoring and fusion.
"""

from pipeline.specs.cluster import ClusterSpec
from pipeline.specs.data import FLOW_METHODS, RAFT_WEIGHTS, DatasetSpec, DemoSpec, FlowSpec, FrameSpec, RunSpec
from pipeline.specs.scores import FUSIONS, FusionSpec, ScoreSpec
from pipeline.specs.streams import STREAMS, StackSpec, StreamSpec

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
