"""Flow fields -> the temporal stream's input: windows, trajectories, both directions, mean subtraction (paper, 3.1).

A clip of T frames has F = T - 1 forward fields, field t from frame t to t + 1, and, if requested, F backward ones,
field t from frame t + 1 to t. A *window* is the L fields s ... s + L - 1 that make up an input; s is its start:

    num_windows(F, spec)      how many starts there are (`windows.py`)
    window(F, spec, s)        which fields to read: one contiguous range per direction (`windows.py`)
    make_stack(fw, bw, ...)   the fields read -> (2L, H, W)
"""

from __future__ import annotations

import numpy as np

from pipeline.flow.compiling import has_numba
from pipeline.specs import StackSpec
from pipeline.stacks.windows import Window, check_count, num_windows, spaced, window

__all__ = [
    "Window",
    "bidirectional_stack",
    "check_count",
    "flow_stack",
    "make_stack",
    "num_windows",
    "spaced",
    "subtract_mean",
    "trajectory_stack",
    "window",
]


def flow_stack(flow: np.ndarray, start: int, length: int) -> np.ndarray:
    """Displacement fields start ... start + length - 1 one after another, at the same points.

    Args:
        flow: (N, 2, H, W) floating, pixels.
        start: first field, 0 <= start <= N - length.
        length: L, at least 1.

    Returns:
        (2L, H, W) float32, pixels, channels x1 y1 x2 y2 ... xL yL. A copy.

    Raises:
        ValueError: flow of another shape, or a window that does not lie inside it.

    Source: paper, equation 1.
    """
    _check_window(flow, start, length)
    return _same_points(flow[start : start + length].copy())


def trajectory_stack(flow: np.ndarray, start: int, length: int) -> np.ndarray:
    """Displacement vectors sampled along the path of each point.

    The path is p_1 = (u, v), p_k = p_{k-1} + d_{start+k-2}(p_{k-1}); channels 2k-1 and 2k hold d_{start+k-1}(p_k).
    Between pixels, d is interpolated bilinearly; outside the image it has the value of the nearest border point, and
    the path continues from where it is, so a point may come back.

    Args:
        flow: (N, 2, H, W) floating, pixels.
        start: first field, 0 <= start <= N - length.
        length: L, at least 1.

    Returns:
        (2L, H, W) float32, pixels, channels x1 y1 x2 y2 ... xL yL.

    Raises:
        ValueError: flow of another shape, or a window that does not lie inside it.

    Source: paper, equation 2. Interpolation and borders are ours; the paper specifies neither.
    """
    _check_window(flow, start, length)
    return _along_path(flow[start : start + length])


def bidirectional_stack(
    forward: np.ndarray, backward: np.ndarray, frame: int, length: int, *, kind: str = "stack"
) -> np.ndarray:
    """L/2 forward fields from `frame` to frame + L/2, then L/2 backward fields from `frame` back to frame - L/2.

    Both halves start at the frame and lead away from it, as a trajectory needs. Example: frame 5, length 4 takes
    forward fields 5, 6 (5 -> 6, 6 -> 7), then backward fields 4, 3 (5 -> 4, 4 -> 3).

    Args:
        forward, backward: (N, 2, H, W) floating, pixels; backward[t] is the motion from frame t + 1 to frame t.
        frame: tau in the paper, length / 2 <= frame <= N - length / 2.
        length: L, even, at least 2.
        kind: how each half is stacked, "stack" or "trajectory".

    Returns:
        (2L, H, W) float32, pixels, channels x1 y1 ... of the forward half, then of the backward half.

    Raises:
        ValueError: shapes that differ, an odd length, an unknown kind, or a window that does not lie inside.

    Source: paper, section 3.1, which does not give the order of the backward fields.
    """
    _check_flow("forward", forward)
    _check_flow("backward", backward)
    if backward.shape != forward.shape:
        raise ValueError(f"backward has shape {backward.shape}; it must be that of forward, {forward.shape}")
    half, count = length // 2, len(forward)
    if length < 2 or length % 2:
        raise ValueError(f"length is {length}; a bidirectional stack needs an even number, at least 2")
    if not half <= frame <= count - half:
        allowed = f"{half} to {count - half}" if count >= length else f"none; use a length of at most {count}"
        raise ValueError(f"frame is {frame}; with {count} fields and length {length} allowed: {allowed}")
    arrange = _arrangement(kind)
    behind = backward[frame - half : frame][::-1]
    return np.concatenate([arrange(forward[frame : frame + half]), arrange(behind)])


def subtract_mean(stack: np.ndarray) -> np.ndarray:
    """Subtract its mean vector from each displacement field, a cheap stand-in for camera motion compensation.

    Args:
        stack: (..., H, W) floating, pixels; each channel is one component of one field.

    Returns:
        The same shape, float32; every channel has mean zero. For trajectories, the mean is that of the vectors sampled
        along the paths; the paths themselves follow the flow before subtraction.

    Source: paper, section 3.1.
    """
    mean = stack.mean(axis=(-2, -1), keepdims=True, dtype=np.float64)
    return np.subtract(stack, mean, dtype=np.float32, casting="same_kind")


def make_stack(forward: np.ndarray, backward: np.ndarray | None, spec: StackSpec, where: Window) -> np.ndarray:
    """The network input of one window, from the fields it asks for.

    Args:
        forward: (j - i, 2, H, W) floating, pixels: forward fields [i, j) = where.forward.
        backward: the same for where.backward, or None where that is None.
        spec: kind of stack, and whether means are subtracted.
        where: from `window`, with the same spec.

    Returns:
        (2L, H, W) float32, pixels.

    Raises:
        ValueError: the wrong number of fields, or of the wrong type or shape.
    """
    arrange = _arrangement(spec.kind)
    halves = [("forward", forward, where.forward, where.ahead), ("backward", backward, where.backward, where.behind)]
    parts = []
    for name, fields, span, order in halves:
        check_count(name, None if fields is None else len(fields), span)
        if span is not None:
            _check_flow(name, fields)
            parts.append(arrange(fields[np.array(order) - span[0]]))  # indexing by a list copies
    stack = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return subtract_mean(stack) if spec.subtract_mean else stack


def _same_points(fields: np.ndarray) -> np.ndarray:
    return fields.astype(np.float32, copy=False).reshape(-1, *fields.shape[2:])


def _along_path(fields: np.ndarray) -> np.ndarray:
    """Sample fields (L, 2, H, W), in the order of the path, along the path of each point -> (2L, H, W)."""
    if fields.dtype == np.float32 and has_numba():
        from pipeline.stacks import paths_numba  # takes half a second, and few streams need it

        return paths_numba.along_path(fields)
    height, width = fields.shape[2:]
    stack = np.empty(fields.shape, np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float64)  # errors grow with each step where neighbors move apart
    for k, field in enumerate(fields):
        motion_x, motion_y = field if k == 0 else _bilinear(field, x, y)
        stack[k, 0], stack[k, 1] = motion_x, motion_y
        x += motion_x
        y += motion_y
    return stack.reshape(-1, height, width)


def _bilinear(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Both components (H, W) float64 of a field (2, H, W) at the points (x, y), clamped to the image."""
    from scipy.ndimage import map_coordinates

    return [map_coordinates(component.astype(np.float64), (y, x), order=1, mode="nearest") for component in field]


def _arrangement(kind: str):
    if kind not in ("stack", "trajectory"):
        raise ValueError(f"kind is {kind!r}; allowed: stack, trajectory")
    return _same_points if kind == "stack" else _along_path


def _check_flow(name: str, flow: np.ndarray) -> None:
    if not isinstance(flow, np.ndarray) or not np.issubdtype(flow.dtype, np.floating):
        got = getattr(flow, "dtype", type(flow).__name__)
        raise ValueError(f"{name} is {got}; it must be a numpy array, floating, in pixels (stored planes are bytes)")
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"{name} has shape {flow.shape}; it must be (N, 2, H, W)")


def _check_window(flow: np.ndarray, start: int, length: int) -> None:
    _check_flow("flow", flow)
    if length < 1:
        raise ValueError(f"length is {length}; it must be at least 1")
    if not 0 <= start <= len(flow) - length:
        last = len(flow) - length
        allowed = f"0 to {last}" if last >= 0 else f"none; use a length of at most {len(flow)}"
        raise ValueError(f"start is {start}; with {len(flow)} fields and length {length} allowed: {allowed}")
