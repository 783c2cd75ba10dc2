"""torchvision's ImageNet weights: whether a network has any, whether they are here, and their download."""

from __future__ import annotations

import numpy as np
import torch
import torchvision

from pipeline.networks.backbones import OWN
from pipeline.specs import StreamSpec
from pipeline.system import downloads
from pipeline.system.errors import UserError
from pipeline.system.progress import say
from pipeline.system.tensors import read_tensors
from pipeline.transforms import IMAGENET_MEAN, IMAGENET_STD


def refuse(spec: StreamSpec) -> None:
    """Reject ImageNet weights that do not exist for the network, or that expect other inputs.

    Raises:
        UserError: the network is one of `backbones.OWN`, or its weights were trained with a mean and standard
            deviation other than those that frames are normalized with here.
    """
    if spec.network in OWN:
        raise UserError(
            f"[{spec.stream}] start is imagenet, but {spec.network} has no ImageNet weights; "
            "allowed: scratch, or the path of a weights file"
        )
    wants = _weights(spec).transforms()
    if not (np.allclose(wants.mean, IMAGENET_MEAN) and np.allclose(wants.std, IMAGENET_STD)):
        raise UserError(
            f"[{spec.stream}] start is imagenet, but the weights of {spec.network} want frames of another mean and "
            f"deviation ({wants.mean}, {wants.std}) than all others; choose another network, such as efficientnet_v2_m"
        )


def to_download(spec: StreamSpec) -> str:
    """Name of the ImageNet weights file that the stream starts from, if not on this machine yet; otherwise "".

    Raises:
        UserError: as for `refuse`.
    """
    if not _wanted(spec):
        return ""
    refuse(spec)
    return downloads.missing(_weights(spec).url)


def fetch(spec: StreamSpec) -> dict[str, torch.Tensor]:
    """Download the ImageNet weights if the stream starts from them, and read them; {} if it does not.

    Raises:
        UserError, FileNotFoundError: as for `read`.
    """
    if name := to_download(spec):
        say(f"{spec.stream}: fetching {name}")
    return read(spec) if _wanted(spec) else {}


def read(spec: StreamSpec) -> dict[str, torch.Tensor]:
    """The ImageNet weights, name -> tensor; downloaded into torch hub's folder if they are not there.

    Raises:
        UserError: as for `refuse`.
        FileNotFoundError: they cannot be downloaded, or are damaged; the message says which file to put where.
    """
    refuse(spec)
    try:
        path = downloads.fetched(_weights(spec).url)
        downloads.check_content(path)
        return read_tensors(path)
    except (OSError, RuntimeError, ValueError) as error:  # no network, or a damaged file
        raise FileNotFoundError(
            f"[{spec.stream}] start is imagenet, but {_weights(spec).url} cannot be downloaded or read ({error}); put "
            f"that file into {downloads.folder()}, or give the path of a weights file as start"
        ) from None


def name_of(spec: StreamSpec) -> str:
    """Name of the ImageNet weights the stream starts from, such as ResNet50_Weights.IMAGENET1K_V2; "" if none."""
    return str(_weights(spec)) if _wanted(spec) else ""


def _wanted(spec: StreamSpec) -> bool:
    return spec.start == "imagenet" and not spec.starts_from_other


def _weights(spec: StreamSpec) -> torchvision.models.WeightsEnum:
    return torchvision.models.get_model_weights(spec.network).DEFAULT
