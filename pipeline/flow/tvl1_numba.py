"""TV-L1 on the CPU, compiled: the iterations of `tvl1_torch`, an order of magnitude faster.

Two things make it fast. The fields of an image row lie side by side in memory, and row y of iteration k is computed
right after row y + 1 of iteration k - 1, so that what an iteration reads is in the cache still, where each iteration
by itself would fetch the whole image again; the arithmetic is that of one iteration after the other. And whatever runs
along a row is a plain loop, which LLVM turns into vector instructions.

numba brings its own compiler: nothing is needed on a user's machine, and what it compiled is kept beside this file.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import cv2
import numpy as np
from numba import njit

from pipeline.flow.filters import (
    DERIVATIVE,
    MEDIAN_FLOOR,
    MEDIAN_GRAY,
    MEDIAN_SPREAD,
    MEDIAN_TAPS,
    gaussian_taps,
    pyramid_sizes,
    shrinking_sigma_px,
)
from pipeline.flow.tvl1_model import BALANCE, FLAT, MIN_SIDE_PX, PRESMOOTH_PX, STEEPNESS, UPDATE_PX, box_of
from pipeline.specs import FlowSpec

_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "arcp", "nsz"})
_f = np.float32
_BALANCE, _FLAT, _UPDATE_PX = _f(BALANCE), _f(FLAT), _f(UPDATE_PX)
_GRAY, _FLOOR, _SPREAD = _f(1 / MEDIAN_GRAY), _f(MEDIAN_FLOOR), _f(MEDIAN_SPREAD)
_OUTER, _INNER = _f(DERIVATIVE[4]), _f(DERIVATIVE[3])
_REACH = max(dx for dx, _, _ in MEDIAN_TAPS)
_OFFSETS = np.array([(dx, dy) for dx, dy, _ in MEDIAN_TAPS])
_FACTORS = np.array([factor for _, _, factor in MEDIAN_TAPS], np.float32)
# fields of a row of the state, two each for x and y; from _DATA on, five groups of one field a channel
_FLOW, _AHEAD, _DUAL_X, _DUAL_Y, _STEP, _WEIGHT, _DATA = 0, 2, 4, 6, 8, 10, 11
_SLOPE_X, _SLOPE_Y, _CONSTANT, _DATA_STEP, _GROUPS = 1, 2, 3, 4, 5


def flow_between(first: np.ndarray, second: np.ndarray, spec: FlowSpec) -> np.ndarray:
    """Flow of each pair, on as many threads as `cv2.setNumThreads` allows, a pair a thread.

    Args:
        first, second: (N, H, W) uint8 gray.
        spec: the `tvl1_*` settings.

    Returns:
        (N, 2, H, W) float32, pixels; the same bits whatever the number of threads and the other pairs.
    """
    pairs, threads = list(zip(first, second, strict=True)), min(cv2.getNumThreads(), len(first))
    if threads <= 1:
        return np.stack([_of_pair(*pair, spec) for pair in pairs])
    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(lambda pair: _of_pair(*pair, spec), pairs)))


def _of_pair(first: np.ndarray, second: np.ndarray, spec: FlowSpec) -> np.ndarray:
    """(2, H, W) flow, coarse to fine."""
    sizes = pyramid_sizes(*first.shape, step=spec.tvl1_scale_step, min_side=MIN_SIDE_PX)
    levels = list(zip(_pyramid(first, sizes), _pyramid(second, sizes), strict=True))
    box = np.array(box_of(spec), np.float32)
    state = np.zeros((sizes[-1][0], _DATA + _GROUPS * len(box), sizes[-1][1]), np.float32)
    for level_first, level_second in reversed(levels):
        state = _resized(state, level_first.shape, len(box))
        _improve(state, level_first, level_second, box, spec)
    return np.ascontiguousarray(state[:, _FLOW : _FLOW + 2].transpose(1, 0, 2))


def _improve(state: np.ndarray, first: np.ndarray, second: np.ndarray, box: np.ndarray, spec: FlowSpec) -> None:
    """Improve the flow in the state at one size: warp, solve, filter, several times."""
    state[:, _WEIGHT] = 1 / (1 + _f(STEEPNESS) * np.hypot(*_gradient(first)))
    still, moving = _channels(first, spec), np.pad(_channels(second, spec), ((0, 0), (1, 2), (1, 2)), mode="edge")
    warped = np.empty_like(still)
    inside = np.empty_like(first)
    for turn in range(spec.tvl1_warps):
        _warp(moving, state, warped, inside)
        _linearise(warped, still, inside, state)
        start = state[:, _FLOW : _FLOW + 2].copy()
        _solve(state, box, spec.tvl1_iterations)
        flow = _limited(state, start)
        last = turn == spec.tvl1_warps - 1
        state[:, _FLOW : _FLOW + 2] = (_weighted_median(flow, first) if last else _median(flow)).transpose(1, 0, 2)


def _pyramid(image: np.ndarray, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    levels = [_blur(image.astype(np.float32), PRESMOOTH_PX)]
    for finer, size in pairwise(sizes):
        levels.append(_resize(_blur(levels[-1], shrinking_sigma_px(finer, size)), size))
    return levels


def _blur(image: np.ndarray, sigma_px: float) -> np.ndarray:
    return _filter(image, gaussian_taps(sigma_px), gaussian_taps(sigma_px))


def _filter(image: np.ndarray, along_x, along_y) -> np.ndarray:
    taps = (np.array(taps, np.float32) for taps in (along_x, along_y))
    return cv2.sepFilter2D(image, cv2.CV_32F, *taps, borderType=cv2.BORDER_REPLICATE)


def _gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _filter(image, DERIVATIVE, [1.0]), _filter(image, [1.0], DERIVATIVE)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def _channels(image: np.ndarray, spec: FlowSpec) -> np.ndarray:
    parts = list(_gradient(image)) if spec.tvl1_gradient_weight else []
    return np.stack([*parts, image] if spec.tvl1_brightness_weight else parts)


def _resized(state: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """Flow and dual variables on a finer grid, in a new state."""
    if (state.shape[0], state.shape[2]) == size:
        return state
    finer = np.zeros((size[0], state.shape[1], size[1]), np.float32)
    for field in (*range(_FLOW, _FLOW + 2), *range(_DUAL_X, _STEP), *range(_DATA, _DATA + channels)):
        finer[:, field] = _resize(np.ascontiguousarray(state[:, field]), size)
    finer[:, _FLOW] *= _f(size[1] / state.shape[2])
    finer[:, _FLOW + 1] *= _f(size[0] / state.shape[0])
    finer[:, _DUAL_X : _DUAL_X + 2, -1] = 0
    finer[-1, _DUAL_Y : _DUAL_Y + 2] = 0
    return finer


def _limited(state: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(2, H, W): the flow after a solution that began at `start`, which it leaves by `UPDATE_PX` at most."""
    change = state[:, _FLOW : _FLOW + 2] - start
    return np.ascontiguousarray((start + np.clip(change, -_UPDATE_PX, _UPDATE_PX)).transpose(1, 0, 2))


def _median(flow: np.ndarray) -> np.ndarray:
    return np.stack([cv2.medianBlur(component, 3) for component in flow])


def _weighted_median(flow: np.ndarray, image: np.ndarray) -> np.ndarray:
    edges = ((_REACH, _REACH), (_REACH, _REACH))
    around, filtered = np.pad(flow, ((0, 0), *edges), mode="edge"), np.empty_like(flow)
    _weighted_median_rows(around, np.pad(image, edges, mode="edge"), filtered, _OFFSETS, _FACTORS)
    return filtered


@_compiled
def _warp(moving, state, warped, inside):
    """Bicubic look-up of every channel (C, H + 3, W + 3, padded) at the points the flow leads to; see `warp.warp`."""
    channels, height, width = warped.shape
    one, half, zero = _f(1), _f(0.5), _f(0)
    for v in range(height):
        flow_x, flow_y = state[v, _FLOW], state[v, _FLOW + 1]
        for u in range(width):
            to_x, to_y = u + flow_x[u], v + flow_y[u]
            x, y = min(max(to_x, zero), _f(width - 1)), min(max(to_y, zero), _f(height - 1))
            inside[v, u] = max(one - abs(to_x - x) - abs(to_y - y), zero)
            left, top = int(x), int(y)
            t, s = x - _f(left), y - _f(top)
            a0, a1 = t * (t * (one - half * t) - half), t * t * (_f(1.5) * t - _f(2.5)) + one
            a2, a3 = t * (t * (_f(2) - _f(1.5) * t) + half), t * t * (half * t - half)
            b0, b1 = s * (s * (one - half * s) - half), s * s * (_f(1.5) * s - _f(2.5)) + one
            b2, b3 = s * (s * (_f(2) - _f(1.5) * s) + half), s * s * (half * s - half)
            for c in range(channels):
                r0, r1 = moving[c, top, left : left + 4], moving[c, top + 1, left : left + 4]
                r2, r3 = moving[c, top + 2, left : left + 4], moving[c, top + 3, left : left + 4]
                warped[c, v, u] = (
                    b0 * (a0 * r0[0] + a1 * r0[1] + a2 * r0[2] + a3 * r0[3])
                    + b1 * (a0 * r1[0] + a1 * r1[1] + a2 * r1[2] + a3 * r1[3])
                    + b2 * (a0 * r2[0] + a1 * r2[1] + a2 * r2[2] + a3 * r2[3])
                    + b3 * (a0 * r3[0] + a1 * r3[1] + a2 * r3[2] + a3 * r3[3])
                )


@_compiled
def _linearise(warped, still, inside, state):
    """Slopes, constant and steps of the data term around the present flow, into the state."""
    channels, height, width = warped.shape
    half, one = _f(0.5), _f(1)
    line = np.empty(width + 4, np.float32)
    for y in range(height):
        row = state[y]
        step_x, step_y = row[_STEP], row[_STEP + 1]
        step_x[:] = _f(4)
        step_y[:] = _f(4)
        within = inside[y]
        for c in range(channels):
            slope_x, slope_y = row[_DATA + _SLOPE_X * channels + c], row[_DATA + _SLOPE_Y * channels + c]
            constant, step = row[_DATA + _CONSTANT * channels + c], row[_DATA + _DATA_STEP * channels + c]
            # half the sum of both images' derivatives is the derivative of half their sum
            up2, up1 = max(y - 2, 0), max(y - 1, 0)
            down1, down2 = min(y + 1, height - 1), min(y + 2, height - 1)
            for x in range(width):
                outer = (warped[c, down2, x] + still[c, down2, x]) - (warped[c, up2, x] + still[c, up2, x])
                inner = (warped[c, down1, x] + still[c, down1, x]) - (warped[c, up1, x] + still[c, up1, x])
                slope_y[x] = half * within[x] * (_OUTER * outer + _INNER * inner)
            for x in range(width):
                line[x + 2] = warped[c, y, x] + still[c, y, x]
            line[0] = line[1] = line[2]
            line[width + 2] = line[width + 3] = line[width + 1]
            for x in range(width):
                outer, inner = line[x + 4] - line[x], line[x + 3] - line[x + 1]
                slope_x[x] = half * within[x] * (_OUTER * outer + _INNER * inner)
            for x in range(width):
                constant[x] = (
                    warped[c, y, x] - still[c, y, x] - slope_x[x] * row[_FLOW, x] - slope_y[x] * row[_FLOW + 1, x]
                )
                step[x] = _BALANCE / (abs(slope_x[x]) + abs(slope_y[x]) + _FLAT)
                step_x[x] += abs(slope_x[x])
                step_y[x] += abs(slope_y[x])
        for x in range(width):
            step_x[x] = one / (_BALANCE * step_x[x])
            step_y[x] = one / (_BALANCE * step_y[x])
            row[_AHEAD, x] = row[_FLOW, x]
            row[_AHEAD + 1, x] = row[_FLOW + 1, x]


@_compiled
def _solve(state, box, iterations):
    """All primal-dual iterations of a warping in one sweep over the rows."""
    height = state.shape[0]
    for time in range(height + iterations - 1):
        for k in range(max(0, time - height + 1), min(iterations, time + 1)):
            y = time - k  # of iteration k - 1, row y + 1 was done just now, and it will touch neither y nor y - 1 again
            _dual_row(state, y)
            _data_row(state[y], box)
            _primal_row(state, y, len(box))


@_compiled
def _dual_row(state, y):
    """Ascend in the dual of the total variation, and shrink it to the length `weight`."""
    row = state[y]
    below = state[min(y + 1, state.shape[0] - 1)]
    u, v, u_below, v_below = row[_AHEAD], row[_AHEAD + 1], below[_AHEAD], below[_AHEAD + 1]
    ux, vx, uy, vy, weight = row[_DUAL_X], row[_DUAL_X + 1], row[_DUAL_Y], row[_DUAL_Y + 1], row[_WEIGHT]
    rate, last = _f(0.5) * _BALANCE, len(u) - 1
    for x in range(last):
        a, b = ux[x] + rate * (u[x + 1] - u[x]), uy[x] + rate * (u_below[x] - u[x])
        c, d = vx[x] + rate * (v[x + 1] - v[x]), vy[x] + rate * (v_below[x] - v[x])
        shrink = weight[x] / max(weight[x], np.sqrt(a * a + b * b + c * c + d * d))
        ux[x], uy[x], vx[x], vy[x] = a * shrink, b * shrink, c * shrink, d * shrink
    b, d = uy[last] + rate * (u_below[last] - u[last]), vy[last] + rate * (v_below[last] - v[last])
    shrink = weight[last] / max(weight[last], np.sqrt(b * b + d * d))
    uy[last], vy[last] = b * shrink, d * shrink


@_compiled
def _data_row(row, box):
    """Ascend in the dual of the data term of each channel, and clip it."""
    channels = len(box)
    u, v = row[_AHEAD], row[_AHEAD + 1]
    for c in range(channels):
        dual, bound = row[_DATA + c], box[c]
        slope_x, slope_y = row[_DATA + _SLOPE_X * channels + c], row[_DATA + _SLOPE_Y * channels + c]
        constant, step = row[_DATA + _CONSTANT * channels + c], row[_DATA + _DATA_STEP * channels + c]
        for x in range(len(u)):
            raised = dual[x] + step[x] * (constant[x] + slope_x[x] * u[x] + slope_y[x] * v[x])
            dual[x] = min(max(raised, -bound), bound)


@_compiled
def _primal_row(state, y, channels):
    """Descend with the flow, and look ahead by as much again; the fields of the latter serve as scratch before."""
    row = state[y]
    for component in range(2):
        flow, ahead, step = row[_FLOW + component], row[_AHEAD + component], row[_STEP + component]
        dual_x, dual_y = row[_DUAL_X + component], row[_DUAL_Y + component]
        if y > 0:
            above = state[y - 1, _DUAL_Y + component]
            for x in range(len(flow)):
                ahead[x] = dual_x[x] + dual_y[x] - above[x]
        else:
            for x in range(len(flow)):
                ahead[x] = dual_x[x] + dual_y[x]
        for x in range(1, len(flow)):
            ahead[x] -= dual_x[x - 1]
        for c in range(channels):
            dual, slope = row[_DATA + c], row[_DATA + (_SLOPE_X + component) * channels + c]
            for x in range(len(flow)):
                ahead[x] -= dual[x] * slope[x]
        for x in range(len(flow)):
            moved = flow[x] + step[x] * ahead[x]
            ahead[x] = moved + moved - flow[x]
            flow[x] = moved


@_compiled
def _weighted_median_rows(around, gray, filtered, offsets, factors):
    """See `warp.weighted_median`; flow (2, ...) and gray are padded by the reach of the offsets."""
    _, height, width = filtered.shape
    count, reach = len(offsets), (gray.shape[0] - height) // 2
    weights, values = np.empty((count, width), np.float32), np.empty((count, width), np.float32)
    total, below = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(height):
        middle = gray[reach + y, reach : reach + width]
        total[:] = 0
        for j in range(count):
            there = gray[reach + y + offsets[j, 1], reach + offsets[j, 0] : reach + offsets[j, 0] + width]
            weight, factor = weights[j], factors[j]
            for x in range(width):
                difference = (there[x] - middle[x]) * _GRAY
                difference *= difference
                weight[x] = factor * (_FLOOR + (_f(1) - _FLOOR) / (_f(1) + difference * difference))
                total[x] += weight[x]
        for component in range(2):
            for j in range(count):
                start = reach + offsets[j, 0]
                values[j] = around[component, reach + y + offsets[j, 1], start : start + width]
            mean = filtered[component, y]
            mean[:] = 0
            for j in range(count):
                _weigh_below(below, values, weights, j)
                _add_share(mean, values[j], weights[j], below, total)
            for x in range(width):
                mean[x] /= _f(2) * _SPREAD * total[x]


@_compiled
def _weigh_below(below, values, weights, j):
    """All weight below value j; of equal values the earlier one counts as below. Four others at a time save stores."""
    mine = values[j]
    below[:] = 0
    others = len(values)
    for i in range(0, j - j % 4, 4):
        a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
        p, q, r, s = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for x in range(len(below)):
            left = (p[x] if a[x] <= mine[x] else _f(0)) + (q[x] if b[x] <= mine[x] else _f(0))
            right = (r[x] if c[x] <= mine[x] else _f(0)) + (s[x] if d[x] <= mine[x] else _f(0))
            below[x] += left + right
    for i in range(j - j % 4, j):
        a, p = values[i], weights[i]
        for x in range(len(below)):
            below[x] += p[x] if a[x] <= mine[x] else _f(0)
    rest = j + 1 + (others - j - 1) % 4
    for i in range(j + 1, rest):
        a, p = values[i], weights[i]
        for x in range(len(below)):
            below[x] += p[x] if a[x] < mine[x] else _f(0)
    for i in range(rest, others, 4):
        a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
        p, q, r, s = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for x in range(len(below)):
            left = (p[x] if a[x] < mine[x] else _f(0)) + (q[x] if b[x] < mine[x] else _f(0))
            right = (r[x] if c[x] < mine[x] else _f(0)) + (s[x] if d[x] < mine[x] else _f(0))
            below[x] += left + right


@_compiled
def _add_share(mean, value, weight, below, total):
    """Add a value times that part of its weight that lies within the spread around half of all."""
    low, high = _f(0.5) - _SPREAD, _f(0.5) + _SPREAD
    for x in range(len(mean)):
        part = min(below[x] + weight[x], high * total[x]) - max(below[x], low * total[x])
        mean[x] += value[x] * max(part, _f(0))
