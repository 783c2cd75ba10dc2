"""Motion in pixels <-> bytes, and the flip rule.

Two scalings. *Bound* maps [-b, b] to [0, 255], the same for every field, so bytes can be compared between fields.
*Min-max* (the paper's) stretches each field to 0..255 by its own minimum and maximum, which are kept beside it.

Zero motion lies at 127.5 under a fixed bound, between two bytes: it becomes 128, and byte 128 becomes +b/255 pixels
(0.039 for b = 20), not 0. Mean subtraction removes that offset. Both mappings return a value to within half a step:
b/255 pixels under a bound, (max - min)/510 under min-max.
"""

from __future__ import annotations

import numpy as np


def to_bytes(flow: np.ndarray, *, bound_px: float = 20.0) -> np.ndarray:
    """Quantise by a fixed bound: round((clip(v, -b, b) + b) * 255 / (2b)).

    Args:
        flow: any shape, floating, pixels. Values beyond the bound are clipped to it.
        bound_px: b, above 0.

    Returns:
        The same shape, uint8; -b becomes 0, zero becomes 128, +b becomes 255.

    Raises:
        ValueError: flow that is not floating or holds NaN or infinity, or a bound that is not above 0.
    """
    _check_flow(flow)
    _check_bound(bound_px)
    scaled = flow * np.float32(127.5 / bound_px)
    np.clip(scaled, -127.5, 127.5, out=scaled)
    scaled += np.float32(127.5)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def to_pixels(q: np.ndarray, *, bound_px: float = 20.0) -> np.ndarray:
    """Inverse of `to_bytes` to half a step: q * 2b / 255 - b.

    Args:
        q: any shape, uint8.
        bound_px: the b it was quantised with.

    Returns:
        The same shape, float32, pixels. No byte means exactly 0: 127 and 128 are -b/255 and +b/255.

    Raises:
        ValueError: q that is not uint8, or a bound that is not above 0.
    """
    _check_bytes(q)
    _check_bound(bound_px)
    pixels = (np.arange(256) - 127.5) * (bound_px / 127.5)
    return pixels.astype(np.float32)[q]


def minmax_to_bytes(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stretch each displacement field to 0..255 by its own minimum and maximum, x and y separately.

    Args:
        flow: (..., 2, H, W) floating, pixels.

    Returns:
        (..., 2, H, W) uint8, and the range (..., 2, 2) float32 in pixels: [channel][minimum, maximum]. A field that
        is the same everywhere becomes 0 and is restored exactly.

    Raises:
        ValueError: flow of another shape, not floating, or with NaN or infinity.
    """
    _check_flow(flow)
    if flow.ndim < 3 or flow.shape[-3] != 2:
        raise ValueError(f"flow has shape {flow.shape}; it must be (..., 2, H, W)")
    low, high = (limit(axis=(-2, -1)).astype(np.float32) for limit in (flow.min, flow.max))
    span = high.astype(np.float64) - low
    scale = np.divide(255.0, span, out=np.zeros_like(span), where=span > 0)
    scale = np.minimum(scale, np.finfo(np.float32).max).astype(np.float32)
    scaled = (flow - low[..., None, None]) * scale[..., None, None]
    np.rint(scaled, out=scaled).clip(0, 255, out=scaled)
    return scaled.astype(np.uint8), np.stack([low, high], axis=-1)


def minmax_to_pixels(q: np.ndarray, range_px: np.ndarray) -> np.ndarray:
    """Inverse of `minmax_to_bytes` to half a step: minimum + q * (maximum - minimum) / 255.

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
    """Mirror flow left to right: the picture is mirrored, and x changes its sign.

    Args:
        flow: (..., 2L, H, W), channels x y x y ...: one field (L = 1) or a stack. Floating means pixels, uint8 means
            bytes under a fixed bound, where -x is 255 - q. Min-max bytes must be restored to pixels before.

    Returns:
        A new array of the same shape and dtype; flipping it again gives the flow back.

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


def _check_flow(flow: np.ndarray) -> None:
    if not np.issubdtype(flow.dtype, np.floating):
        raise ValueError(f"flow is {flow.dtype}; it must be floating, in pixels")
    finite = np.isfinite(flow)
    if not finite.all():
        where = tuple(int(k) for k in np.argwhere(~finite)[0])
        bad = int((~finite).sum())
        raise ValueError(f"flow holds {bad} values that are NaN or infinite, the first at {where}; no byte means that")


def _check_bytes(q: np.ndarray) -> None:
    if q.dtype != np.uint8:
        raise ValueError(f"q is {q.dtype}; it must be uint8")


def _check_bound(bound_px: float) -> None:
    if not 0 < bound_px < np.inf:
        raise ValueError(f"bound_px is {bound_px}; it must be above 0 and finite")
