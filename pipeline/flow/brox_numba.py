"""Brox flow on the CPU, compiled: the iterations of `brox_torch`, several times faster.

What `brox_torch` does in some fifty passes over the image for each inner iteration, `brox_rows.solve` does in one, row
by row, so that most of what it reads is still in the cache.
"""

from __future__ import annotations

import functools

import numpy as np

from pipeline.flow import brox_model as model
from pipeline.flow import brox_rows as rows
from pipeline.flow import warp_numba
from pipeline.flow.filters import DERIVATIVE, TRUST_FLOOR, pyramid_sizes, restart_level
from pipeline.flow.median_numba import median3, padded, weighted_median
from pipeline.flow.warp_numba import flow_of
from pipeline.specs import FlowSpec

_FLOW = np.array([rows.FLOW, rows.FLOW + 1])


def flow_between(first: np.ndarray, second: np.ndarray, spec: FlowSpec) -> np.ndarray:
    """Flow of each pair, on as many threads as `cv2.setNumThreads` allows, one pair per thread.

    Args:
        first, second: (N, H, W) uint8 gray.
        spec: the `brox_*` settings.

    Returns:
        (N, 2, H, W) float32, pixels; the same bits regardless of the number of threads and the other pairs.
    """
    return warp_numba.of_pairs(lambda k: _of_pair(first[k], second[k], spec), first.shape)


def _of_pair(first: np.ndarray, second: np.ndarray, spec: FlowSpec) -> np.ndarray:
    """Flow of one pair, (2, H, W), coarse to fine."""
    sizes = pyramid_sizes(*first.shape, step=spec.brox_scale_step, min_side=model.MIN_SIDE_PX)
    pyramids = [warp_numba.pyramid(image, sizes, model.PRESMOOTH_PX) for image in (first, second)]
    state, restart = np.zeros((sizes[-1][0], rows.FIELDS, sizes[-1][1])), restart_level(sizes)
    for number, size in reversed(list(enumerate(sizes))):
        precision = np.float64 if model.is_precise(size, sizes[0]) else np.float32
        state = warp_numba.resized(state, size, precision, _FLOW)
        images = tuple(levels[number].astype(precision, copy=False) for levels in pyramids)
        improve = functools.partial(_improve, images=images, spec=spec, scale=spec.brox_scale_step**number)
        improve(state)
        if number == restart:
            state = warp_numba.or_afresh(state, images, improve)
    return flow_of(state).transpose(1, 0, 2)


def _improve(state: np.ndarray, images: tuple[np.ndarray, np.ndarray], spec: FlowSpec, *, scale: float) -> None:
    """Improve the flow in the state at one size, `scale` times the full size: warp, solve, filter, several times."""
    (first, second), number = images, state.dtype.type
    height, width = first.shape
    half_width = (width + 1) // 2
    still, mean = np.empty((2, 2, height, width), number)
    parts = np.empty((2, height, rows.PARTS, half_width), number)
    unknowns = np.zeros((2, height + 2, 2, half_width + 2), number)
    derivative, numbers = np.array(DERIVATIVE, number), _numbers(spec, number)
    rows.gradient(first, derivative, still)
    _set_smoothness(state, first, spec.brox_smoothness)
    moving, warped, inside = padded(second[None], 1, 2), np.empty_like(first), np.empty_like(first)
    for turn in range(spec.brox_warps):
        warp_numba.warp(moving, state, warped[None], inside)
        far = number(1 / model.FAR_PX**2)
        rows.constrain(state, warped, first, still, inside, mean, derivative, number(model.STEEP**2), far)
        for _ in range(spec.brox_iterations):
            rows.solve(state, parts, unknowns, spec.brox_sweeps, numbers)
        flow = np.ascontiguousarray(flow_of(state).transpose(1, 0, 2))
        if turn < spec.brox_warps - 1:
            filtered = median3(median3(flow))
        else:
            trust = np.empty_like(first)
            rows.trust(state, numbers[0], number(1 / model.DOUBT), number(TRUST_FLOOR), trust)
            filtered = weighted_median(flow, first, trust, scale=scale)
        flow_of(state)[:] = filtered.transpose(1, 0, 2)


def _numbers(spec: FlowSpec, number: type) -> np.ndarray:
    """What `brox_rows.solve` takes as `numbers`."""
    squares = model.DATA_EPSILON_PX**2, model.SMOOTH_EPSILON**2
    return np.array([spec.brox_gradient_weight, *squares, model.RELAXATION, model.SINGULAR], number)


def _set_smoothness(state: np.ndarray, first: np.ndarray, weight: float) -> None:
    """Write the weights of smoothness between neighbors into the state; see `brox_torch._smoothness`."""
    edge = first.dtype.type(-model.EDGE)
    across, down = state[:, rows.SMOOTH_X], state[:, rows.SMOOTH_Y]
    across[:, -1], down[-1] = 0, 0
    across[:, :-1] = np.exp(edge * np.abs(np.diff(first, axis=1))) * first.dtype.type(weight)
    down[:-1] = np.exp(edge * np.abs(np.diff(first, axis=0))) * first.dtype.type(weight)
