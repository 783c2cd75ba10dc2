"""torchvision's classification models as bodies of a stream: without their last layer, for any number of channels."""

from __future__ import annotations

import warnings

import torchvision
from torch import nn

from pipeline.spec import unknown_name
from pipeline.specs import StreamSpec

OWN = ("cnn_m_2048", "small")  # networks that `networks.py` defines itself
AUXILIARY = ("aux1", "aux2", "AuxLogits")


def torchvision_body(spec: StreamSpec) -> tuple[nn.Module, int, str]:
    """A torchvision model without its last layer: (body that gives (N, D) features, D, name of that layer).

    SqueezeNet ends in convolution, ReLU, mean over space, and has no normalisation anywhere. Its ReLU is left out (with
    few classes it soon silences every logit, and nothing learns any more), which leaves a linear layer on the mean,
    like every other head; and that mean, whose values reach hundreds, is brought to mean 0 and variance 1 over its
    channels: without that a step that suits the body makes the new head diverge.
    """
    model = _torchvision_model(spec)
    _drop_auxiliary(model)
    for dropout in classifier_dropouts(model):
        dropout.p = spec.dropout
    if hasattr(model, "transform_input"):
        model.transform_input = spec.stream == "spatial"  # from ImageNet's normalisation to these models' own
    if spec.stream == "temporal":
        _widen_first_convolution(model, spec)
    name = _last_layer(model)
    if isinstance(model, torchvision.models.SqueezeNet):
        model.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(512, elementwise_affine=False), model.classifier[0]
        )
        return model, 512, name
    width = model.get_submodule(name).in_features
    _replace(model, name, nn.Identity())
    return model, width, name


def _torchvision_model(spec: StreamSpec) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if spec.network not in names:
        raise ValueError(unknown_name(f"[{spec.stream}] network {spec.network!r}", spec.network, (*OWN, *names)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce another default
        return torchvision.models.get_model(spec.network, weights=None)


def _drop_auxiliary(model: nn.Module) -> None:
    """GoogLeNet's and Inception's side classifiers: they serve training from scratch on ImageNet only."""
    for name in AUXILIARY:
        if hasattr(model, name):
            setattr(model, name, None)
            model.aux_logits = False


def classifier_dropouts(model: nn.Module) -> list[nn.Dropout]:
    """The dropout layers of the classifier, not those inside transformer blocks."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and name.split(".")[0] in ("classifier", "dropout")
    ]


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d | None]:
    """Name and module of the first convolution in the model, ("", None) if there is none."""
    return next(((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), ("", None))


def _widen_first_convolution(model: nn.Module, spec: StreamSpec) -> None:
    name, old = first_convolution(model)
    if old is None or old.in_channels != 3:
        raise ValueError(
            f"network {spec.network!r} has no first convolution of 3 channels that could take "
            f"{spec.channels}; choose another network for the temporal stream"
        )
    wide = nn.Conv2d(
        spec.channels,
        old.out_channels,
        old.kernel_size,
        stride=old.stride,
        padding=old.padding,
        bias=old.bias is not None,
    )
    _replace(model, name, wide)


def _last_layer(model: nn.Module) -> str:
    """Name of the layer that makes the logits: the last linear one, or SqueezeNet's last convolution."""
    kind = nn.Conv2d if isinstance(model, torchvision.models.SqueezeNet) else nn.Linear
    return [name for name, module in model.named_modules() if isinstance(module, kind)][-1]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
