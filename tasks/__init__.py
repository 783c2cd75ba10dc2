"""The chain, as Luigi tasks; each calls one function of `pipeline`.

`Catalog` lists the clips of a dataset with their labels, groups and parts. `Frames` decodes every clip into HDF5
shards, and `Flow` computes optical flow from them; all splits share both. `TrainStream(stream)` trains the spatial
stream on frames or the temporal one on stacks of flow. `ScoreStream(stream, part)` computes the probabilities and
features of each clip. `Fuse` combines both streams, and `Report` writes `metrics.json` and `report.html`.
`FullPipeline` requires them all:

    luigi --module tasks FullPipeline --dataset ucf101 --split 1

`AllSplits` requires the reports of all splits of a dataset, for one or more seeds, and puts them into one table.
`PaperTable` runs the rows of a table of the paper and puts their figures beside the published ones. `ScoreVideos`
applies the trained streams to other, unlabeled videos.
"""

import os

# The threads of a step spin while they wait for one another. If other programs use the cores too, spinning takes CPU
# time from the late threads, so make them sleep soon. Read when torch is first loaded (docs/scaling.md has the gain).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "40000")

# Luigi forks its workers (--workers 2), and CUDA cannot be used in a child of a process that has asked CUDA for its
# devices. So torch is to ask NVML. Read at each call.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from tasks import command
from tasks.apply import ScoreVideos
from tasks.conclude import FullPipeline, Fuse, Report
from tasks.learn import ExtractFeatures, ScoreStream, TrainStream
from tasks.listing import Catalog
from tasks.prepare import Flow, Frames
from tasks.repeat import AllSplits
from tasks.tables import PaperTable

command.install()

__all__ = [
    "AllSplits",
    "Catalog",
    "ExtractFeatures",
    "Flow",
    "Frames",
    "FullPipeline",
    "Fuse",
    "PaperTable",
    "Report",
    "ScoreStream",
    "ScoreVideos",
    "TrainStream",
]
