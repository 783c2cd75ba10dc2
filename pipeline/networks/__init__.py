"""The streams' networks: a body turns inputs into features, and a linear head turns features into logits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline.networks import imagenet
from pipeline.networks.backbones import (
    OWN,
    refuse_crop,
    refuse_unrepeatable,
    torchvision_body,
)
from pipeline.networks.starting import of_body, read_weights, refuse_absent, start_from
from pipeline.specs import StreamSpec
from pipeline.specs.base import check_device
from pipeline.system.errors import UserError
from pipeline.system.gpus import cuda_count
from pipeline.system.progress import say


def resolve_device(device: str) -> torch.device:
    """The device meant by "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1".

    Raises:
        UserError: any other text, or a CUDA device that this machine does not have.
    """
    check_device("device", device)
    if device == "auto":
        return torch.device("cuda" if cuda_count() else "cpu")
    found = torch.device(device)
    if found.type == "cuda" and (found.index or 0) >= (count := cuda_count()):
        raise UserError(f"device is {device!r}, but torch sees {count} CUDA devices here; use auto or cpu")
    return found


class Network(nn.Module):
    """One stream's network: `body` gives the penultimate features, `head` is the last, linear layer.

    With `train_body=False` only the head learns: the body keeps its weights and its batch-norm statistics, while its
    dropout stays active in training (the paper's "last layer" rows differ by dropout). `replaces` is the name, in
    published weights, of the layer that the head replaces.

    `other_head` is the last layer for another dataset that shares the body (paper, section 5, multi-task learning).
    The first `num_classes` outputs of `head` are this set's classes; any others are classes added from another set.

    With `partial_bn`, every batch normalization layer but the first keeps its weights and statistics. `consensus` says
    how a clip's snippet logits are combined. Both: Wang et al., Temporal Segment Networks, 2016, section 3.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Linear,
        *,
        train_body: bool = True,
        replaces: str = "head",
        partial_bn: bool = False,
        consensus: str = "average",
        num_classes: int,
        other_head: nn.Linear | None = None,
    ):
        super().__init__()
        self.body, self.head, self.train_body, self.replaces = body, head, train_body, replaces
        self.num_classes, self.other_head = num_classes, other_head
        self.partial_bn, self.consensus = partial_bn, consensus
        self.body.requires_grad_(train_body)
        for norm in self.kept_norms():
            norm.requires_grad_(False)

    def kept_norms(self) -> list[nn.Module]:
        """The batch normalization layers that `partial_bn` freezes: all but the first."""
        norms = [module for module in self.body.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        return norms[1:] if self.partial_bn else []

    def train(self, mode: bool = True) -> Network:
        """Set training mode; `kept_norms` and a frozen body (except its dropout) stay in evaluation mode."""
        super().train(mode)
        if not self.train_body:
            for module in self.body.modules():
                module.training = mode and isinstance(module, nn.Dropout)
        for norm in self.kept_norms():
            norm.eval()
        return self

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) float32 normalized inputs -> (N, D) penultimate features."""
        return self.body(inputs)

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) features -> (N, num_classes): softmax over this set's own classes.

        This equals the softmax over all outputs of `head`, renormalized over these classes.
        """
        return self.head(features)[:, : self.num_classes].softmax(1)

    def forward(self, inputs: torch.Tensor, *, both: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(N, C, H, W) or (N, S, C, H, W) float32 normalized inputs -> (N, K) logits, the consensus of S snippets.

        With `both`, inputs of two datasets alternate: even indices go to `head`, odd ones to `other_head`. The result
        is the logits of both sets, (N / 2, K) and (N / 2, K of the other set).
        """
        features = self.features(inputs.flatten(0, -4)).unflatten(0, inputs.shape[:-3])
        if not both:
            return self._logits(self.head, features)
        return self._logits(self.head, features[::2]), self._logits(self.other_head, features[1::2])

    def _logits(self, head: nn.Linear, features: torch.Tensor) -> torch.Tensor:
        """(N, D) features, or (N, S, D) of S snippets -> (N, K) logits."""
        logits = head(features.flatten(0, -2)).unflatten(0, features.shape[:-1])
        if features.ndim == 2:
            return logits
        return logits.mean(1) if self.consensus == "average" else logits.amax(1)


def build(spec: StreamSpec, num_classes: int, other_classes: int = 0, *, start: str | Path | None = None) -> Network:
    """The network of a stream, with its starting weights.

    Args:
        spec: the stream; reads network, start, dropout, train_layers, partial_bn, consensus, with_how, crop, channels.
        num_classes: K.
        other_classes: number of another set's classes, which get their own head or are added, as `spec.with_how` says.
        start: weights file that the body starts from instead of `spec.start`.

    Returns:
        A network on the CPU with new heads; random numbers are drawn from torch's global generator.

    Raises:
        ValueError: unknown network or start, or weights that do not belong to the network.
        FileNotFoundError: there is no such weights file, or ImageNet's are damaged or cannot be downloaded.
    """
    network, start = build_untrained(spec, num_classes, other_classes), start or spec.start
    if spec.partial_bn and not network.kept_norms():
        say(f"{spec.network} has no second batch normalization: [{spec.stream}] partial_bn has no effect")
    if start != "scratch":
        start_from(network, spec, start)
    return network


def check(spec: StreamSpec) -> None:
    """Reject stream settings that `build` would reject, without downloading, or allocating memory (but for RegNet).

    Raises:
        FileNotFoundError: the weights file of `start` does not exist.
        ValueError: unknown network, one without ImageNet weights, a crop or channels that it cannot take, or a file
            with another network's weights.
    """
    network = _on_meta(spec)  # first: it refuses a network that does not exist
    if spec.start == "imagenet":
        imagenet.refuse(spec)
    if spec.start_file:
        refuse_absent(spec.start_file, spec)
    refuse_crop(network.body, spec)
    if spec.start_file:
        of_body(network, read_weights(spec.start, mmap=True), spec, spec.start)


def fetch_weights(spec: StreamSpec) -> None:
    """Download the ImageNet weights if the stream starts from them, and check that they are the network's.

    Raises:
        UserError: they are not, such as those of vit_h_14, which are for larger crops.
        FileNotFoundError: they cannot be downloaded, or are damaged.
    """
    if state := imagenet.fetch(spec):
        of_body(_on_meta(spec), state, spec, "imagenet")


def check_deterministic(spec: StreamSpec) -> None:
    """Reject a network that cannot be trained on CUDA with `deterministic`.

    Raises:
        UserError: a layer being trained has no deterministic backward pass on CUDA.
    """
    if spec.deterministic and spec.train_layers == "all":
        refuse_unrepeatable(_on_meta(spec).body, spec)


def _on_meta(spec: StreamSpec) -> Network:
    try:
        with torch.device("meta"):
            return build_untrained(spec, 2, 2)
    except NotImplementedError:  # RegNet computes its widths with tensors
        return build_untrained(spec, 2, 2).to("meta")


def build_untrained(spec: StreamSpec, num_classes: int, other_classes: int = 0) -> Network:
    """The network of a stream with random weights, into which starting weights or a checkpoint can be loaded.

    Raises:
        ValueError: fewer than two classes, an unknown network, a crop too small for CNN-M-2048, or no layer that could
            take the stream's channels.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; a network needs at least 2 classes")
    make = OWN.get(spec.network, torchvision_body)
    body, width, replaces = make(spec)
    added = other_classes if spec.with_how == "classes" else 0
    head = _new_head(width, num_classes + added)
    return Network(
        body,
        head,
        train_body=spec.train_layers == "all",
        replaces=replaces,
        partial_bn=spec.partial_bn,
        consensus=spec.consensus,
        num_classes=num_classes,
        other_head=_new_head(width, other_classes) if spec.with_how == "heads" else None,
    )


def _new_head(width: int, num_classes: int) -> nn.Linear:
    """A last layer that starts with nearly equal probabilities: small Gaussian weights, zero bias."""
    head = nn.Linear(width, num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head
