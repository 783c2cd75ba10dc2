"""The weights that a training starts from: torchvision's, those of a file, or those of another training.

Weights published for RGB are inflated to the 2L channels of the temporal stream: each gets the mean over RGB.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.networks import imagenet
from pipeline.networks.backbones import AUXILIARY, first_convolution, without_second_norm
from pipeline.specs import StreamSpec
from pipeline.system.errors import UserError
from pipeline.system.progress import say
from pipeline.system.tensors import read_tensors

if TYPE_CHECKING:
    from pipeline.networks import Network

CHECKPOINT_FORMAT = "two-stream-checkpoint"

# names in files that torchvision still publishes, and those of its layers today; its own loading does the same
_FORMER_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),  # DenseNet
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),  # vision transformers
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)


def refuse_absent(start: str | Path, spec: StreamSpec) -> None:
    """Refuse a file of weights that does not exist.

    Raises:
        FileNotFoundError: there is none.
    """
    if not Path(start).is_file():
        raise FileNotFoundError(
            f"[{spec.stream}] start is {str(start)!r}, which is no file; allowed: scratch, imagenet, or a weights file"
        )


def start_from(network: Network, spec: StreamSpec, start: str | Path) -> None:
    """Load the body's weights: torchvision's by their published names, or those from one of our checkpoints."""
    if start != "imagenet":
        refuse_absent(start, spec)
    read = imagenet.read(spec) if start == "imagenet" else read_weights(start)
    state = of_body(network, read, spec, start)
    name = _first_layer(network)
    if name in state and state[name].shape != read.get(name, read.get(name.removeprefix("body."))).shape:
        say(
            f"{spec.network}: first layer {name.removeprefix('body.')} inflated from 3 to {spec.channels} channels "
            "by the mean over RGB"
        )
    whole = network.state_dict()  # with new heads, and the versions of layers, for which MNASNet asks
    whole.update(state)
    network.load_state_dict(whole)


def of_body(
    network: Network, state: dict[str, torch.Tensor], spec: StreamSpec, start: str | Path
) -> dict[str, torch.Tensor]:
    """The weights in a file, renamed to match the network's body.

    A first layer made for RGB is inflated to the stream's channels: each gets the mean over RGB of its weights.

    Raises:
        UserError: they are another network's weights.

    Source: Wang et al., Temporal Segment Networks, 2016, section 3.1 (cross-modality pre-training).
    """
    if not any(name.startswith("body.") for name in state):
        dropped = (f"{network.replaces}.", *(f"{name}." for name in AUXILIARY))
        state = {f"body.{name}": value for name, value in state.items() if not name.startswith(dropped)}
    state = {name: value for name, value in state.items() if not name.startswith(("head.", "other_head."))}
    wanted = {f"body.{name}": value for name, value in network.body.state_dict().items()}
    state = _by_present_names(state, wanted)
    if spec.network == "cnn_m_2048" and spec.stream == "temporal":
        state = without_second_norm(state)
    name = _first_layer(network)
    weight = state.get(name)
    if weight is not None and weight.ndim == 4 and weight.shape[1] == 3 != spec.channels:
        state[name] = weight.mean(1, keepdim=True).repeat(1, spec.channels, 1, 1)
    _refuse_mismatch(wanted, state, spec, start)
    return state


def _by_present_names(state: dict[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """The tensors of an older file by the names of today's layers.

    Files from before torch 0.4 lack batch normalization's counters of batches, which nothing reads: they become 0.
    """
    found = {}
    for name, value in state.items():
        for former, present in _FORMER_NAMES:
            name = former.sub(present, name)
        found[name] = value
    counters = {name for name in wanted if name.endswith(".num_batches_tracked")} - found.keys()
    return found | dict.fromkeys(counters, torch.zeros((), dtype=torch.int64))


def _first_layer(network: Network) -> str:
    return f"body.{first_convolution(network.body)[0]}.weight"


def read_weights(path: str | Path, *, mmap: bool = False) -> dict[str, torch.Tensor]:
    """The tensors in a weights file, by name: a plain state dict, or the state in one of our checkpoints.

    With `mmap`, tensors are read on use.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged (`DamagedFile`), or has other content (code in a file is never executed).
    """
    found = read_tensors(path, mmap=mmap)
    if isinstance(found, dict) and found.get("format") == CHECKPOINT_FORMAT:
        found = found.get("state")
    if not isinstance(found, dict) or not found or not all(_is_weight(*item) for item in found.items()):
        raise UserError(f"{path} holds no state dict (names to tensors)")
    return found


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


def _refuse_mismatch(wanted: dict, given: dict, spec: StreamSpec, start: str | Path) -> None:
    """Reject weights whose names or shapes differ from the network's, before any are loaded."""
    differ = [name for name, value in wanted.items() if name not in given or given[name].shape != value.shape]
    unknown = [name for name in given if name not in wanted]
    if not differ and not unknown:
        return
    name = (differ + unknown)[0]
    here, there = (str(tuple(which[name].shape)) if name in which else "absent" for which in (wanted, given))
    raise UserError(
        f"[{spec.stream}] start: the weights in {str(start)!r} do not belong to network {spec.network!r} with "
        f"{spec.channels} input channels: {len(differ)} tensors are absent or misshapen, {len(unknown)} are unknown; "
        f"the first is {name}: {here} in the network, {there} in the file"
    )
