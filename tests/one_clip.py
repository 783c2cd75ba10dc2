"""Temporal streams on a flow store of one clip, for tests of what is handed over as JPEG (`flow_index` of conftest)."""

import torch

from pipeline.catalog import Clip
from pipeline.dataset import TrainingSet
from pipeline.specs import StackSpec, StreamSpec
from pipeline.training.parallel import ItemSampler, World

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def spec(**given) -> StreamSpec:
    stack = StackSpec(**{"length": 3, **given.pop("stack", {})})
    values = {"network": "small", "resize_px": 0, "crop_px": 32, "batch": 6, "steps": 9, "flow_unit_px": 2.0, **given}
    return StreamSpec(stream="temporal", stack=stack, **values)


def items_of(settings, index) -> TrainingSet:
    return TrainingSet(settings, index, [Clip("a", "a.avi", 1, "right", "anna", "train", 1, 1, "0" * 16)])


def numbers_of(items) -> ItemSampler:
    return ItemSampler(items.spec, World(), 0)


class Refusing:
    """torchvision's decoder, were it to know no such JPEG."""

    def __call__(self, data, device):
        raise RuntimeError("Error while decoding JPEG images: nvjpeg failed")
