"""The medians of `warp`, compiled for the CPU: the median of 3 x 3 pixels and the weighted median."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.flow.compiled import compiled, inlined
from pipeline.flow.filters import MEDIAN_FACTORS, MEDIAN_FLOOR, MEDIAN_GRAY, MEDIAN_SPREAD, median_offsets

_f = np.float32
# A table has _PLACES rows of _LANES values: a row for the pixel itself and each of its neighbors (23 rows are used),
# and a lane for each of _LANES adjacent pixels in an image row. Both are constants, because LLVM vectorizes a loop over
# the lanes only if it knows the distance between a table's rows.
_LANES, _PLACES = 64, 24
_EIGHT = 8 * _LANES


def median3(flow: np.ndarray) -> np.ndarray:
    """Median of the 3 x 3 neighborhood of each pixel of (2, H, W), borders repeated; see `warp.median3`."""
    filtered = np.empty_like(flow)
    _median3(padded(flow, 1, 1), filtered)
    return filtered


def weighted_median(flow: np.ndarray, image: np.ndarray, trust: np.ndarray, *, scale: float) -> np.ndarray:
    """Weighted median of one flow.

    Args:
        flow: (2, H, W), float32 or float64, pixels.
        image, trust: (H, W) of the same type.
        scale: size of this pyramid level, 1 at full size.

    Returns:
        (2, H, W) of the same type; see `warp.weighted_median`.
    """
    number, offsets = flow.dtype.type, np.array(median_offsets(scale))
    reach, filtered = int(np.abs(offsets).max()), np.empty_like(flow)
    around = padded(flow, reach, reach)
    gray, trusted = padded(np.stack([image, trust]), reach, reach)
    factors = np.array(MEDIAN_FACTORS, number)
    numbers = number(1 / MEDIAN_GRAY), number(MEDIAN_FLOOR), number(MEDIAN_SPREAD)
    _rows(around, gray, trusted, filtered, offsets, factors, *numbers)
    return filtered


def padded(planes: np.ndarray, before: int, after: int) -> np.ndarray:
    """Pad (C, H, W) planes by `before` and `after` pixels along both image axes, borders repeated.

    OpenCV takes half as long as `numpy.pad`, and every pyramid level of a pair needs this several times.
    """
    count, height, width = planes.shape
    found = np.empty((count, height + before + after, width + before + after), planes.dtype)
    for plane, target in zip(planes, found, strict=True):
        cv2.copyMakeBorder(plane, before, after, before, after, cv2.BORDER_REPLICATE, dst=target)
    return found


@compiled
def _median3(around, filtered):
    """Sort every column of three, then take the median of (largest low, median of the middles, smallest high)."""
    _, height, width = filtered.shape
    low, middle, high = np.empty((3, width + 2), filtered.dtype)
    for component in range(2):
        for y in range(height):
            above, here, below = around[component, y], around[component, y + 1], around[component, y + 2]
            for x in range(width + 2):
                less, more = min(above[x], here[x]), max(above[x], here[x])
                low[x], rest = min(less, below[x]), max(less, below[x])
                middle[x], high[x] = min(more, rest), max(more, rest)
            row = filtered[component, y]
            for x in range(width):
                lowest = max(max(low[x], low[x + 1]), low[x + 2])
                highest = min(min(high[x], high[x + 1]), high[x + 2])
                a, b = min(middle[x], middle[x + 1]), max(middle[x], middle[x + 1])
                center = max(a, min(b, middle[x + 2]))
                a, b = min(lowest, center), max(lowest, center)
                row[x] = max(a, min(b, highest))


@compiled
def _rows(around, gray, trusted, filtered, offsets, factors, per_gray, floor, spread):
    """See `warp.weighted_median`; `around` (the flow), `gray` and `trusted` are padded by the reach of the offsets."""
    _, height, width = filtered.shape
    count, reach = len(offsets), (gray.shape[0] - height) // 2
    of_all, weights = np.zeros(_PLACES * _LANES, gray.dtype), np.zeros(_PLACES * _LANES, gray.dtype)
    values, total = np.zeros(_PLACES * _LANES, gray.dtype), np.zeros(_LANES, gray.dtype)
    values[count * _LANES :] = np.inf  # unused places sort last and have zero weight
    for y in range(height):
        for left in range(0, width, _LANES):
            size = min(_LANES, width - left)
            middle = gray[reach + y, reach + left : reach + left + size]
            total[:] = 0
            for j in range(count):
                row, start = reach + y + offsets[j, 1], reach + left + offsets[j, 0]
                there, believed = gray[row, start : start + size], trusted[row, start : start + size]
                weight = of_all[j * _LANES : (j + 1) * _LANES]
                _weigh(there, middle, believed, factors[j], per_gray, floor, weight, total)
            for component in range(2):
                for j in range(count):
                    row, start = reach + y + offsets[j, 1], reach + left + offsets[j, 0]
                    there, value = around[component, row, start : start + size], values[j * _LANES : (j + 1) * _LANES]
                    for x in range(size):
                        value[x] = there[x]
                for x in range(_PLACES * _LANES):
                    weights[x] = of_all[x]
                _sort(values, weights)
                _middle_mean(values, weights, total, count, spread, filtered[component, y, left : left + size])


@compiled
def _weigh(there, middle, believed, factor, per_gray, floor, weight, total):
    """Compute the weight of one neighbor of each pixel, and add it to the pixel's total."""
    for x in range(len(there)):
        difference = (there[x] - middle[x]) * per_gray
        difference *= difference
        weight[x] = factor * believed[x] * (floor + (_f(1) - floor) / (_f(1) + difference * difference))
        total[x] += weight[x]


@compiled
def _middle_mean(values, weights, total, count, spread, mean):
    """Mean of the sorted values between the weighted quantiles 1/2 - spread and 1/2 + spread."""
    below, sums = np.zeros(_LANES, values.dtype), np.zeros(_LANES, values.dtype)
    for j in range(count):
        value, weight = values[j * _LANES : (j + 1) * _LANES], weights[j * _LANES : (j + 1) * _LANES]
        for x in range(_LANES):
            until = below[x] + weight[x]
            part = min(until, (_f(0.5) + spread) * total[x]) - max(below[x], (_f(0.5) - spread) * total[x])
            sums[x] += value[x] * max(part, _f(0))
            below[x] = until
    for x in range(len(mean)):
        mean[x] = sums[x] / (_f(2) * spread * total[x])


@compiled
def _sort(values, weights):
    """Sort 24 values in each lane along with their weights: three groups of eight in registers, merged in pairs."""
    for k in range(3):
        _sort_eight(values[k * _EIGHT :], weights[k * _EIGHT :])
    for k in (0, 1, 0):
        _merge(values[k * _EIGHT :], weights[k * _EIGHT :])


@compiled
def _merge(values, weights):
    """Merge two adjacent sorted groups of eight: separate the smaller half from the larger, then sort each half."""
    for k in range(8):
        i, j = k * _LANES, (15 - k) * _LANES
        for x in range(_LANES):
            less, more = _ordered((values[i + x], weights[i + x]), (values[j + x], weights[j + x]))
            values[i + x], weights[i + x] = less
            values[j + x], weights[j + x] = more
    _sort_bitonic(values, weights)
    _sort_bitonic(values[_EIGHT:], weights[_EIGHT:])


@compiled
def _sort_eight(values, weights):
    for x in range(_LANES):
        _put(values, weights, x, _sorted(_get(values, weights, x)))


@compiled
def _sort_bitonic(values, weights):
    for x in range(_LANES):
        _put(values, weights, x, _sorted_bitonic(_get(values, weights, x)))


@inlined
def _get(v, w, x):
    """Eight (value, weight) pairs of a lane."""
    a, b = (v[x], w[x]), (v[_LANES + x], w[_LANES + x])
    c, d = (v[2 * _LANES + x], w[2 * _LANES + x]), (v[3 * _LANES + x], w[3 * _LANES + x])
    e, f = (v[4 * _LANES + x], w[4 * _LANES + x]), (v[5 * _LANES + x], w[5 * _LANES + x])
    g, h = (v[6 * _LANES + x], w[6 * _LANES + x]), (v[7 * _LANES + x], w[7 * _LANES + x])
    return a, b, c, d, e, f, g, h


@inlined
def _put(v, w, x, eight):
    a, b, c, d, e, f, g, h = eight
    v[x], w[x] = a
    v[_LANES + x], w[_LANES + x] = b
    v[2 * _LANES + x], w[2 * _LANES + x] = c
    v[3 * _LANES + x], w[3 * _LANES + x] = d
    v[4 * _LANES + x], w[4 * _LANES + x] = e
    v[5 * _LANES + x], w[5 * _LANES + x] = f
    v[6 * _LANES + x], w[6 * _LANES + x] = g
    v[7 * _LANES + x], w[7 * _LANES + x] = h


@inlined
def _sorted(eight):
    """Sort eight pairs in 19 comparisons, the minimum; Knuth, The art of computer programming, volume 3, 5.3.4."""
    a, b, c, d, e, f, g, h = eight
    (a, c), (b, d), (e, g), (f, h) = _ordered(a, c), _ordered(b, d), _ordered(e, g), _ordered(f, h)
    (a, e), (b, f), (c, g), (d, h) = _ordered(a, e), _ordered(b, f), _ordered(c, g), _ordered(d, h)
    (a, b), (c, d), (e, f), (g, h) = _ordered(a, b), _ordered(c, d), _ordered(e, f), _ordered(g, h)
    (c, e), (d, f) = _ordered(c, e), _ordered(d, f)
    (b, e), (d, g) = _ordered(b, e), _ordered(d, g)
    (b, c), (d, e), (f, g) = _ordered(b, c), _ordered(d, e), _ordered(f, g)
    return a, b, c, d, e, f, g, h


@inlined
def _sorted_bitonic(eight):
    """Sort eight pairs whose values rise and then fall, or vice versa."""
    a, b, c, d, e, f, g, h = eight
    (a, e), (b, f), (c, g), (d, h) = _ordered(a, e), _ordered(b, f), _ordered(c, g), _ordered(d, h)
    (a, c), (b, d), (e, g), (f, h) = _ordered(a, c), _ordered(b, d), _ordered(e, g), _ordered(f, h)
    (a, b), (c, d), (e, f), (g, h) = _ordered(a, b), _ordered(c, d), _ordered(e, f), _ordered(g, h)
    return a, b, c, d, e, f, g, h


@inlined
def _ordered(a, b):
    """Order two (value, weight) pairs, the smaller value first."""
    in_order = a[0] <= b[0]
    return (min(a[0], b[0]), a[1] if in_order else b[1]), (max(a[0], b[0]), b[1] if in_order else a[1])
