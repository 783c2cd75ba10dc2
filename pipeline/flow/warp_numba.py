"""Pyramids and warping of `warp`, compiled for the CPU, and pairs on threads.

A state is (H, fields, W), float32 or float64, with all fields of a row side by side; the first two are the flow. Work
along a row is a plain loop, which LLVM turns into vector instructions. Constants are float32 (`_f`), and exact: they
preserve either precision, whereas a Python number would turn float32 into float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from pipeline.flow.compiled import compiled, inlined
from pipeline.flow.filters import BETTER, DERIVATIVE, MISMATCHED, gaussian_taps, shrinking_sigmas_px

_f = np.float32
_THE_ONLY = np.array([0])  # index of an image's only field
_KEPT_BYTES = 31 << 20  # glibc adapts its threshold to freed blocks of no more than 32 MiB


def of_pairs(compute: Callable[[int], np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """Flow of every pair, (N, 2, H, W) float32, on as many threads as `cv2.setNumThreads` allows, one pair per thread.

    Args:
        compute: number of a pair -> its flow (2, H, W).
        shape: N, H, W.
    """
    _keep_freed_memory()
    count = shape[0]
    threads = max(1, min(cv2.getNumThreads(), count))
    flow = np.empty((count, 2, *shape[1:]), np.float32)

    def fill(k: int) -> None:
        flow[k] = compute(k)

    if threads == 1:
        for k in range(count):
            fill(k)
        return flow
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(count)))
    return flow


@functools.cache
def _keep_freed_memory() -> None:
    """Make glibc keep a pair's freed arrays for the next one; done once per process.

    By default it returns blocks of their size to the system, which must then clear their pages again; that takes a
    seventh of the time of a single pair of 320 x 240. Freeing a block raises glibc's threshold to its size (mallopt(3),
    M_MMAP_THRESHOLD). Nothing is written to the block, so it takes no memory.
    """
    np.empty(_KEPT_BYTES, np.uint8)


def flow_of(state: np.ndarray) -> np.ndarray:
    """The flow in a state, (H, 2, W), a view."""
    return state[:, :2]


def resized(state: np.ndarray, size: tuple[int, int], precision: type, fields: np.ndarray) -> np.ndarray:
    """Some fields of a state, the flow among them, on a finer grid; the others are still to be written."""
    finer = np.empty((size[0], state.shape[1], size[1]), precision)
    resize(state, finer, fields)
    finer[:, 0] *= finer.dtype.type(size[1] / state.shape[2])
    finer[:, 1] *= finer.dtype.type(size[0] / state.shape[0])
    return finer


def pyramid(image: np.ndarray, sizes: list[tuple[int, int]], presmooth_px: float) -> list[np.ndarray]:
    """The image (H, W), blurred with a sigma of `presmooth_px`, at every size, finest first, in float64."""
    levels = [_blur(image.astype(np.float64), presmooth_px)]
    for size, sigma_px in zip(sizes[1:], shrinking_sigmas_px(sizes), strict=True):
        levels.append(_resize(_blur(levels[-1], sigma_px), size))
    return levels


def gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of an image (H, W) along x and y, borders repeated."""
    return _filter(image, DERIVATIVE, [1.0]), _filter(image, [1.0], DERIVATIVE)


def mismatch(first: np.ndarray, second: np.ndarray, state: np.ndarray) -> float:
    """`warp.mismatch` of one pair of images (H, W)."""
    moved, inside = np.empty_like(first), np.empty_like(first)
    warp(np.pad(second, (1, 2), mode="edge")[None], state, moved[None], inside)
    pairs = list(zip(gradient(first), gradient(moved), strict=True))
    apart = sum(abs(still - there) for still, there in pairs)
    steep = sum(abs(still) + abs(there) for still, there in pairs)
    return float((0.5 + inside * (apart / (steep + 1) - 0.5)).mean(dtype=np.float64))


def or_afresh(
    state: np.ndarray, images: tuple[np.ndarray, np.ndarray], improve: Callable[[np.ndarray], None]
) -> np.ndarray:
    """The state, or one improved from zero if that explains the images better; see `filters.restart_level`."""
    found = mismatch(*images, state)
    if found <= MISMATCHED:
        return state
    afresh = np.zeros_like(state)
    improve(afresh)
    return afresh if mismatch(*images, afresh) < BETTER * found else state


def _blur(image: np.ndarray, sigma_px: float) -> np.ndarray:
    return _filter(image, gaussian_taps(sigma_px), gaussian_taps(sigma_px))


def _filter(image: np.ndarray, along_x, along_y) -> np.ndarray:
    taps = (np.array(taps, np.float64) for taps in (along_x, along_y))
    return cv2.sepFilter2D(image, -1, *taps, borderType=cv2.BORDER_REPLICATE)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W); OpenCV's function would round to single precision."""
    resized = np.empty((size[0], 1, size[1]), image.dtype)
    resize(image[:, None], resized, _THE_ONLY)
    return resized[:, 0]


@compiled
def warp(moving, state, warped, inside):
    """Bicubic sampling of every channel (C, H + 3, W + 3, padded) at the points the flow leads to; see `warp.warp`."""
    channels, height, width = warped.shape
    stride, plane = np.uint64(width + 3), np.uint64(height + 3) * np.uint64(width + 3)
    values, corners = moving.reshape(-1), np.empty(width, np.uint64)
    across, down = np.empty(width, warped.dtype), np.empty(width, warped.dtype)
    for y in range(height):
        _land(state[y, 0], state[y, 1], y, height, corners, across, down, inside[y])
        for x in range(width):
            along_x, along_y = _cubic_taps(across[x]), _cubic_taps(down[x])
            for c in range(channels):  # unsigned indices: numba tests whether signed ones count from the end
                first = corners[x] + np.uint64(c) * plane
                second, third = first + stride, first + stride + stride
                warped[c, y, x] = (
                    along_y[0] * _line(values, first, along_x)
                    + along_y[1] * _line(values, second, along_x)
                    + along_y[2] * _line(values, third, along_x)
                    + along_y[3] * _line(values, third + stride, along_x)
                )


@compiled
def _land(flow_x, flow_y, y, height, corners, across, down, inside):
    """Where the points of a row land: index of the first of 16 neighbors, fractions along x and y, and `inside`.

    See `warp._landing`. Pixel positions are whole numbers, which floating point holds exactly.
    """
    width, zero, one = len(flow_x), _f(0), _f(1)
    last_x, last_y = _f(width - 1), _f(height - 1)
    for x in range(width):
        whole_x, whole_y = np.floor(flow_x[x]), np.floor(flow_y[x])
        t, s = flow_x[x] - whole_x, flow_y[x] - whole_y
        left, top = _f(x) + whole_x, _f(y) + whole_y
        out_x = max(-left - t, zero) + max(left - last_x + t, zero)
        out_y = max(-top - s, zero) + max(top - last_y + s, zero)
        inside[x] = max(one - out_x - out_y, zero)
        across[x] = t if zero <= left < last_x else zero
        down[x] = s if zero <= top < last_y else zero
        left, top = min(max(left, zero), last_x), min(max(top, zero), last_y)
        corners[x] = np.int64(top) * (width + 3) + np.int64(left)


@inlined
def _cubic_taps(t):
    """See `warp._cubic_taps`."""
    half, two = _f(0.5), _f(2)
    before, here = t * (t * (_f(1) - half * t) - half), t * t * (_f(1.5) * t - _f(2.5)) + _f(1)
    return before, here, t * (t * (two - _f(1.5) * t) + half), t * t * (half * t - half)


@inlined
def _line(values, first, taps):
    a, b = taps[0] * values[first], taps[1] * values[first + np.uint64(1)]
    c, d = taps[2] * values[first + np.uint64(2)], taps[3] * values[first + np.uint64(3)]
    return a + b + c + d


@compiled
def resize(source, resized, fields):
    """Resize some fields of (H, fields, W) bilinearly, grids aligned at the outer pixel edges; see `warp.resize`.

    A pixel's position in the source is a ratio of whole numbers, so it is exact at any distance.
    """
    size, to_size = source.shape[2], resized.shape[2]
    left, right, share = np.empty(to_size, np.uint64), np.empty(to_size, np.uint64), np.empty(to_size, source.dtype)
    for x in range(to_size):
        left[x], right[x], share[x] = _between(x, size, to_size)
    line = np.empty(size, source.dtype)
    for y in range(resized.shape[0]):
        top, bottom, down = _between(y, source.shape[0], resized.shape[0])
        for field in fields:
            upper, lower, row = source[top, field], source[bottom, field], resized[y, field]
            for x in range(size):
                line[x] = upper[x] + down * (lower[x] - upper[x])
            for x in range(to_size):
                row[x] = line[left[x]] + share[x] * (line[right[x]] - line[left[x]])


@compiled
def _between(to, size, to_size):
    """Source pixels before and after a pixel of the resized image, and its distance from the first."""
    position = max((2 * to + 1) * size - to_size, 0)
    before = position // (2 * to_size)
    return before, min(before + 1, size - 1), (position - before * 2 * to_size) / (2 * to_size)
