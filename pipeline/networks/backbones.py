"""Bodies of the streams' networks: all layers but the last, for any number of input channels.

CNN-M-2048 is the paper's; `small` is for the demo; any torchvision classification model can serve as a body, by name.
"""

from __future__ import annotations

import contextlib
import warnings

import torch
import torchvision
from torch import nn
from torch.nn.functional import avg_pool2d

from pipeline.specs import StreamSpec
from pipeline.specs.base import unknown_name
from pipeline.system.errors import UserError

AUXILIARY = ("aux1", "aux2", "AuxLogits")
_POOLED = 2**31 - 1  # values that CUDA's avg_pool2d counts in 32 bits: 1,882 views of cnn_m_2048


def cnn_m_2048(spec: StreamSpec) -> tuple[nn.Module, int, str]:
    """CNN-M-2048 without its last layer, for square inputs of `crop_px`.

    Source: Chatfield et al. 2014, table 2 (conv2 padded by 1, pooling rounds up, as in their Caffe model), and Simonyan
    and Zisserman 2014, figure 1: the temporal network drops the second normalization. Only the initialization differs:
    with He et al.'s, eight layers train without pre-training a shallower network.
    """
    side = _cnn_m_side(spec.crop_px)
    if side < 1:
        raise UserError(f"[{spec.stream}] crop_px is {spec.crop_px}; cnn_m_2048 needs at least 41")
    second_norm = [_krizhevsky_norm()] if spec.stream == "spatial" else []
    body = nn.Sequential(
        nn.Conv2d(spec.channels, 96, 7, stride=2),
        nn.ReLU(inplace=True),
        _krizhevsky_norm(),
        _pool(),
        nn.Conv2d(96, 256, 5, stride=2, padding=1),
        nn.ReLU(inplace=True),
        *second_norm,
        _pool(),
        nn.Conv2d(256, 512, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(512, 512, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(512, 512, 3, padding=1),
        nn.ReLU(inplace=True),
        _pool(),
        nn.Flatten(),
        nn.Linear(512 * side * side, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(spec.dropout),
        nn.Linear(4096, 2048),
        nn.ReLU(inplace=True),
        nn.Dropout(spec.dropout),
    )
    return _he_start(body), 2048, "head"


def without_second_norm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a spatial CNN-M-2048 under the temporal one's names; a temporal one's are unchanged.

    The temporal network lacks the second normalization, so its layers from conv3 on are numbered one lower.
    """
    if "body.8.weight" not in state or "body.7.weight" in state:
        return state
    found = {}
    for name, value in state.items():
        body, place, kind = name.split(".", 2)
        found[f"{body}.{int(place) - (int(place) >= 8)}.{kind}" if place.isdecimal() else name] = value
    return found


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


class LocalResponseNorm(nn.LocalResponseNorm):
    """torch's layer for an odd `size`, computed by 2D instead of 3D pooling, with the same bits on a CPU.

    On CUDA, torch's `avg_pool3d` has no deterministic backward pass. Channels-last inputs are pooled without a copy.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, C, ...) -> the same shape: each value / (k + alpha * mean of squares over `size` channels) ** beta."""
        return _Normalized.apply(inputs, self.size, self.alpha, self.beta, self.k)


class _Normalized(torch.autograd.Function):
    """y = x s^-beta with s = k + alpha mean(x^2); automatic differentiation would move nearly twice as many bytes.

    dL/dx = r - 2 alpha beta x mean(r x / s) with r = dL/dy s^-beta; the mean over neighboring channels is its own
    transpose. Half precision is computed in float32, also under autocast.
    """

    @staticmethod
    def forward(ctx, inputs: torch.Tensor, size: int, alpha: float, beta: float, k: float) -> torch.Tensor:
        with _without_autocast(inputs):
            wide = _wide(inputs)
            scale = _mean_over_channels(wide * wide, size).mul_(alpha).add_(k)
            ctx.save_for_backward(inputs, scale)
            ctx.constants = size, alpha, beta
            return (wide / scale.pow(beta)).to(inputs.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        inputs, scale = ctx.saved_tensors
        size, alpha, beta = ctx.constants
        with _without_autocast(inputs):
            wide, passed = _wide(inputs), _wide(gradient) / scale.pow(beta)
            shared = _mean_over_channels((passed * wide).div_(scale), size)
            found = passed.addcmul_(shared, wide, value=-2 * alpha * beta)
        return found.to(inputs.dtype), None, None, None, None


def _without_autocast(inputs: torch.Tensor) -> contextlib.AbstractContextManager:
    kind = inputs.device.type
    available = torch.amp.is_autocast_available(kind)  # it is not for meta tensors
    return torch.autocast(kind, enabled=False) if available else contextlib.nullcontext()


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _mean_over_channels(values: torch.Tensor, size: int) -> torch.Tensor:
    """Mean of (N, C, ...) over `size` channels around each, with zeros beyond the ends."""
    if values.numel() > _POOLED and len(values) > 1:
        return torch.cat([_mean_over_channels(half, size) for half in values.chunk(2)])
    rows = values.movedim(1, -1)
    flat = rows.flatten(1, -2).unsqueeze(1)  # (N, 1, H W, C)
    means = avg_pool2d(flat, (1, size), stride=1, padding=(0, size // 2)).squeeze(1)
    return means.unflatten(1, rows.shape[1:-1]).movedim(-1, 1)


def _krizhevsky_norm() -> LocalResponseNorm:
    # Krizhevsky et al. 2012, section 3.3: k + 1e-4 * sum over n = 5; torch divides its alpha by n
    return LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)


def _cnn_m_side(crop_px: int) -> int:
    """Side of the last feature map, below 1 if the crop is too small. 224 -> 109 -> 54 -> 26 -> 13 -> 6."""
    side = (crop_px - 7) // 2 + 1  # conv1
    side = -(-(side - 3) // 2) + 1  # pool1
    side = (side + 2 - 5) // 2 + 1  # conv2
    side = -(-(side - 3) // 2) + 1  # pool2
    return -(-(side - 3) // 2) + 1  # pool5


def small(spec: StreamSpec) -> tuple[nn.Module, int, str]:
    """Four convolutions for small images on a CPU: about 1 ms per input and 100,000 weights."""
    layers: list[nn.Module] = []
    for before, after, size in ((spec.channels, 16, 5), (16, 32, 3), (32, 64, 3), (64, 128, 3)):
        convolution = nn.Conv2d(before, after, size, stride=2, padding=size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(spec.dropout))
    return _he_start(body), 128, "head"


def _he_start(body: nn.Sequential) -> nn.Sequential:
    for module in body:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return body


OWN = {"cnn_m_2048": cnn_m_2048, "small": small}  # networks that are not torchvision's


def torchvision_body(spec: StreamSpec) -> tuple[nn.Module, int, str]:
    """A torchvision model without its last layer: (body that gives (N, D) features, D, name of that layer).

    If the classifier has no dropout (ResNet, DenseNet, Swin ...), a dropout layer replaces the last layer and so acts
    on the head's input, as in Temporal Segment Networks (Wang et al. 2016). The weights keep their names.

    SqueezeNet ends in a convolution, a ReLU and a spatial mean, without normalization. The ReLU is left out, because
    with few classes it soon sets every logit to 0 and learning stops. What remains is a linear layer on the mean, as in
    the other networks. The mean, whose values reach the hundreds, is normalized to mean 0 and variance 1 over its
    channels; otherwise a learning rate that suits the body makes the new head diverge.
    """
    model = _torchvision_model(spec)
    _drop_auxiliary(model)
    dropouts = _classifier_dropouts(model)
    for dropout in dropouts:
        dropout.p = spec.dropout
    if hasattr(model, "transform_input"):
        model.transform_input = spec.stream == "spatial"  # converts ImageNet's normalization to the model's own
    if spec.stream == "temporal":
        _widen_first_convolution(model, spec)
    name = _last_layer(model)
    if isinstance(model, torchvision.models.SqueezeNet):
        model.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(512, elementwise_affine=False), model.classifier[0]
        )
        return model, 512, name
    width = model.get_submodule(name).in_features
    model.set_submodule(name, nn.Identity() if dropouts else nn.Dropout(spec.dropout))
    return model, width, name


def _torchvision_model(spec: StreamSpec) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if spec.network not in names:
        raise UserError(unknown_name(f"[{spec.stream}] network {spec.network!r}", spec.network, (*OWN, *names)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet and inception announce a changed default
        return torchvision.models.get_model(spec.network, weights=None)


def _drop_auxiliary(model: nn.Module) -> None:
    """Remove GoogLeNet's and Inception's auxiliary classifiers, which only help training from scratch on ImageNet."""
    for name in AUXILIARY:
        if hasattr(model, name):
            setattr(model, name, None)
            model.aux_logits = False


def _classifier_dropouts(model: nn.Module) -> list[nn.Dropout]:
    """The dropout layers of the classifier, not those inside transformer blocks."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and name.split(".")[0] in ("classifier", "dropout")
    ]


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d | None]:
    """Name and module of the model's first convolution; ("", None) if there is none."""
    return next(((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), ("", None))


def _widen_first_convolution(model: nn.Module, spec: StreamSpec) -> None:
    name, old = first_convolution(model)
    if old is None or old.in_channels != 3:
        raise UserError(
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
    model.set_submodule(name, wide)


def _last_layer(model: nn.Module) -> str:
    """Name of the layer that produces the logits: the last linear one, or SqueezeNet's last convolution."""
    kind = nn.Conv2d if isinstance(model, torchvision.models.SqueezeNet) else nn.Linear
    return [name for name, module in model.named_modules() if isinstance(module, kind)][-1]


# --- what a body cannot do --------------------------------------------------------------------------------------------


def refuse_crop(body: nn.Module, spec: StreamSpec) -> None:
    """Check a body on the meta device with one input, using no memory.

    Raises:
        UserError: the body cannot take the stream's crops.
    """
    inputs = torch.empty(1, spec.channels, spec.crop_px, spec.crop_px, device="meta")
    try:
        with torch.no_grad():
            body.eval()(inputs)
    except (AssertionError, RuntimeError) as error:  # vision transformers assert
        raise UserError(f"[{spec.stream}] crop_px is {spec.crop_px}; {spec.network} cannot take it: {error}") from error


def refuse_unrepeatable(body: nn.Module, spec: StreamSpec) -> None:
    """Check that every layer has a deterministic backward pass on CUDA.

    Raises:
        UserError: a layer has none.

    Source: documentation of torch.use_deterministic_algorithms. In torch, AdaptiveAvgPool2d to 1 x 1 is a plain mean.
    """
    for name, layer in body.named_modules():
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size not in (1, (1, 1)):
            raise UserError(
                f"[{spec.stream}] deterministic is true, but {spec.network} has a layer ({name}: AdaptiveAvgPool2d to "
                f"{layer.output_size}) that torch cannot train on CUDA with the same bits each time; allowed: false, "
                "another network, or the CPU"
            )
