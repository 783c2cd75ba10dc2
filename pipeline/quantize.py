"""Motion in pixels <-> bytes, and the flip rule.

There are two scalings. *Bound* maps [-b, b] to [0, 255] for every field, so bytes are comparable between fields.
*Min-max* (the paper's) stretches each field to 0..255 by its own minimum and maximum, which are stored with it.

Under a fixed bound, zero motion lies at 127.5, between two bytes: it becomes 128, and byte 128 becomes +b/255 pixels
(0.078 for b = 20), not 0. Mean subtraction removes that offset. Both mappings restore a value to within half a step:
b/255 pixels under a bound, (max - min)/510 under min-max.

Flow may also be a torch tensor on any device; it gives the same bytes as a numpy array. Every step is one IEEE 754
operation with its own rounding and kernel, in the same order, so no compiler can fuse a product and a sum into one
rounding. So never compile these functions as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.specs import FlowSpec
from pipeline.system.errors import ClipError

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = float(np.finfo(np.float32).max)


def to_bytes(flow: np.ndarray | Tensor, *, bound_px: float = 20.0, check: bool = True) -> np.ndarray | Tensor:
    """Quantize by a fixed bound: round((clip(v, -b, b) + b) * 255 / (2b)).

    Args:
        flow: any shape, floating, pixels, a numpy array or a tensor. Values beyond the bound are clipped to it.
        bound_px: b, above 0 and finite.
        check: reject NaN and infinity, which means waiting for the device. Without it, the bytes of such values are
            meaningless, and the caller must use `all_finite`.

    Returns:
        The same shape, uint8, on the device of the flow; -b becomes 0, zero becomes 128, +b becomes 255.

    Raises:
        ValueError: flow that is no array or not floating, or a bound out of range.
        ClipError: flow holds NaN or infinity, and `check` is true.
    """
    _check_flow(flow, finite=check)
    _check_bound(bound_px)
    if not isinstance(flow, np.ndarray):
        scaled = _wide(flow) * float(np.float32(127.5 / bound_px))
        return scaled.clamp_(-127.5, 127.5).add_(127.5).round_().byte()
    scaled = np.asarray(_wide(flow) * np.float32(127.5 / bound_px))  # numpy makes a number of an array without axes
    np.clip(scaled, -127.5, 127.5, out=scaled)
    scaled += np.float32(127.5)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def by_spec(flow: np.ndarray | Tensor, spec: FlowSpec, *, check: bool = True) -> tuple:
    """Quantize as a store's settings ask: (bytes,) under a fixed bound, (bytes, range) under min-max.

    Arguments and errors are those of `to_bytes` and `minmax_to_bytes`.
    """
    if spec.scaling == "minmax":
        return minmax_to_bytes(flow, check=check)
    return (to_bytes(flow, bound_px=spec.bound_px, check=check),)


def factors(planes: int, *, bound_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset, (planes,) float64, with which bytes of `to_bytes` become pixels: q * scale + offset."""
    return np.full(planes, 2 * bound_px / 255), np.full(planes, -bound_px)


def minmax_factors(range_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `factors`, for bytes of `minmax_to_bytes`: one float64 per plane, of ranges (..., 2, 2)."""
    low, high = range_px.astype(np.float64).reshape(-1, 2).T
    return (high - low) / 255, low


def to_pixels(q: np.ndarray, *, bound_px: float = 20.0) -> np.ndarray:
    """Inverse of `to_bytes` to within half a step: q * 2b / 255 - b.

    Args:
        q: any shape, uint8.
        bound_px: the b it was quantized with.

    Returns:
        The same shape, float32, pixels. No byte means exactly 0: 127 and 128 are -b/255 and +b/255.

    Raises:
        ValueError: q that is not uint8, or a bound out of range.
    """
    _check_bytes(q)
    _check_bound(bound_px)
    pixels = (np.arange(256) - 127.5) * (bound_px / 127.5)
    return pixels.astype(np.float32)[q]


def minmax_to_bytes(
    flow: np.ndarray | Tensor, *, check: bool = True
) -> tuple[np.ndarray, np.ndarray] | tuple[Tensor, Tensor]:
    """Stretch each displacement field to 0..255 by its own minimum and maximum, x and y separately.

    Args:
        flow: (..., 2, H, W) floating, pixels, a numpy array or a tensor.
        check: as for `to_bytes`.

    Returns:
        (..., 2, H, W) uint8, and the range (..., 2, 2) float32 in pixels: [channel][minimum, maximum], both on the
        device of the flow. A constant field becomes 0 and is restored exactly.

    Raises:
        ValueError: flow of another shape, or not floating.
        ClipError: flow holds NaN or infinity, and `check` is true.
    """
    _check_flow(flow, finite=check)
    if flow.ndim < 3 or flow.shape[-3] != 2:
        raise ValueError(f"flow has shape {tuple(flow.shape)}; it must be (..., 2, H, W)")
    if not isinstance(flow, np.ndarray):
        return _minmax_of_tensor(_wide(flow))
    flow = _wide(flow)
    low, high = (limit(axis=(-2, -1)).astype(np.float32) for limit in (flow.min, flow.max))
    span = high.astype(np.float64) - low
    scale = np.divide(255.0, span, out=np.zeros_like(span), where=span > 0)
    scale = np.minimum(scale, _LARGEST).astype(np.float32)
    scaled = (flow - low[..., None, None]) * scale[..., None, None]
    np.rint(scaled, out=scaled).clip(0, 255, out=scaled)
    return scaled.astype(np.uint8), np.stack([low, high], axis=-1)


def _minmax_of_tensor(flow: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (limit(dim=(-2, -1)).float() for limit in (flow.amin, flow.amax))
    span = high.double() - low.double()
    # torch computes number / tensor as number * reciprocal, which rounds twice
    scale = (span.new_full((), 255.0) / span).clamp_(max=_LARGEST).masked_fill_(span <= 0, 0.0).float()
    scaled = (flow - low[..., None, None]) * scale[..., None, None]
    ranges = low.new_empty((*low.shape, 2))
    ranges[..., 0], ranges[..., 1] = low, high
    return scaled.round_().clamp_(0, 255).byte(), ranges


def minmax_to_pixels(q: np.ndarray, range_px: np.ndarray) -> np.ndarray:
    """Inverse of `minmax_to_bytes` to within half a step: minimum + q * (maximum - minimum) / 255.

    Args:
        q: (..., 2, H, W) uint8.
        range_px: (..., 2, 2) float32, pixels: [channel][minimum, maximum] of each field.

    Returns:
        (..., 2, H, W) float32, pixels.

    Raises:
        ValueError: q that is not uint8, or ranges that do not belong to its fields.
    """
    _check_bytes(q)
    if range_px.shape != (*q.shape[:-2], 2):
        raise ValueError(f"range_px has shape {range_px.shape}; fields of shape {q.shape} need {(*q.shape[:-2], 2)}")
    low, high = (range_px[..., k, None, None].astype(np.float32) for k in (0, 1))
    return low + q * ((high - low) / np.float32(255))


def flip(flow: np.ndarray) -> np.ndarray:
    """Mirror flow left to right: the picture is mirrored and x is negated.

    Args:
        flow: (..., 2L, H, W), channels x y x y ...: one field (L = 1) or a stack. Floating means pixels, uint8 means
            bytes under a fixed bound, where -x is 255 - q. Min-max bytes must be restored to pixels first.

    Returns:
        A new array of the same shape and dtype; flipping it again restores the flow.

    Raises:
        ValueError: an odd number of channels, or a type that is neither floating nor uint8.
    """
    if flow.ndim < 3 or flow.shape[-3] % 2:
        raise ValueError(f"flow has shape {flow.shape}; it must be (..., 2L, H, W), x and y in turn")
    if flow.dtype != np.uint8 and not np.issubdtype(flow.dtype, np.floating):
        raise ValueError(f"flow is {flow.dtype}; it must be floating (pixels) or uint8 (bytes under a fixed bound)")
    mirrored = flow[..., ::-1].copy()
    x = mirrored[..., 0::2, :, :]
    if flow.dtype == np.uint8:
        np.subtract(255, x, out=x)
    else:
        np.negative(x, out=x)
    return mirrored


def all_finite(flow: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Whether flow holds neither NaN nor infinity: one bool on the flow's device, without waiting for it."""
    return np.isfinite(flow).all() if isinstance(flow, np.ndarray) else flow.isfinite().all()


def _wide(flow: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Convert half precision to float32; torch, and numpy before version 2, would compute in half precision."""
    if isinstance(flow, np.ndarray):
        return flow.astype(np.float32) if flow.itemsize < 4 else flow
    return flow.float() if flow.element_size() < 4 else flow


def _check_flow(flow: np.ndarray | Tensor, *, finite: bool) -> None:
    array = isinstance(flow, np.ndarray)
    if not array and not hasattr(flow, "is_floating_point"):
        raise ValueError(f"flow is a {type(flow).__name__}; it must be a numpy array or a tensor, in pixels")
    if not (np.issubdtype(flow.dtype, np.floating) if array else flow.is_floating_point()):
        raise ValueError(f"flow is {str(flow.dtype).removeprefix('torch.')}; it must be floating, in pixels")
    if not finite or all_finite(flow):
        return
    bad = ~np.isfinite(flow) if array else (~flow.isfinite()).cpu().numpy()
    where = tuple(int(k) for k in np.argwhere(bad)[0])
    count = int(bad.sum())
    raise ClipError(f"flow holds {count} values that are NaN or infinite, the first at {where}; no byte holds that")


def _check_bytes(q: np.ndarray) -> None:
    if q.dtype != np.uint8:
        raise ValueError(f"q is {q.dtype}; it must be uint8")


def _check_bound(bound_px: float) -> None:
    if not 0 < bound_px < np.inf:
        raise ValueError(f"bound_px is {bound_px}; it must be above 0 and finite")
