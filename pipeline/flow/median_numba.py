"""The medians of `warp`, compiled for the CPU: the median of 3 x 3 pixels and the weighted median."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from pipeline.flow.compiled import compiled, inlined
from pipeline.flow.filters import MEDIAN_FACTORS, MEDIAN_FLOOR, MEDIAN_GRAY, MEDIAN_SPREAD, median_offsets

_f, _u = np.float32, np.uint64
# The weighted median works on a table: a row for the pixel itself and each of its neighbors (23 of _PLACES rows are
# used), and a lane for each of up to _LANES adjacent pixels in an image row. Both are constants, because LLVM
# vectorizes a loop over the lanes without checks only if it knows the distance between rows. The values (_PLACES rows)
# are followed by the weights, which move with them, and by the weights in their first order, for both components of
# the flow. Indices are unsigned, because numba tests whether signed ones count from the end, and compiles a function
# afresh for each literal integer.
_LANES, _PLACES, _VECTOR = 96, 24, 16
_ROW, _WEIGHTS, _UNSORTED = _u(_LANES), _u(_PLACES * _LANES), _u(2 * _PLACES * _LANES)


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
    number, offsets, filtered = flow.dtype.type, _offsets(scale), np.empty_like(flow)
    reach = int(offsets.max())  # they are symmetric
    around = padded(flow, reach, reach)
    gray, trusted = padded(np.stack([image, trust]), reach, reach)
    factors = np.array(MEDIAN_FACTORS, number)
    numbers = number(1 / MEDIAN_GRAY), number(MEDIAN_FLOOR), number(MEDIAN_SPREAD)
    _rows(around, gray, trusted, filtered, offsets, factors, *numbers)
    return filtered


@functools.lru_cache(256)
def _offsets(scale: float) -> np.ndarray:
    """(23, 2), x and y; computing them takes as long as the median of a small level."""
    offsets = np.array(median_offsets(scale))
    offsets.setflags(write=False)
    return offsets


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
    count, reach, stride = len(offsets), (gray.shape[0] - height) // 2, gray.shape[1]
    steps = offsets[:, 1] * stride + offsets[:, 0]
    flow, gray, trusted = around.reshape(2, -1), gray.reshape(-1), trusted.reshape(-1)
    table, total = np.zeros(3 * _PLACES * _LANES, gray.dtype), np.zeros(_LANES, gray.dtype)
    table[count * _LANES : _PLACES * _LANES] = np.inf  # unused places stay the last ones, and have zero weight
    for y in range(height):
        for left in range(0, width, _LANES):
            size = _u(min(_LANES, width - left))
            lanes = (size + _u(_VECTOR - 1)) // _u(_VECTOR) * _u(_VECTOR)  # what is beyond the image is not used
            here = (reach + y) * stride + reach + left
            total[:] = 0
            for j in range(count):
                there, weight = _u(here + steps[j]), _UNSORTED + _u(j) * _ROW
                for x in range(size):
                    difference = (gray[there + x] - gray[_u(here) + x]) * per_gray
                    difference *= difference
                    similar = floor + (_f(1) - floor) / (_f(1) + difference * difference)
                    table[weight + x] = factors[j] * trusted[there + x] * similar
                    total[x] += table[weight + x]
            for component in range(2):
                for j in range(count):
                    there, value = _u(here + steps[j]), _u(j) * _ROW
                    for x in range(size):
                        table[value + x] = flow[component, there + x]
                _sort(table, lanes)
                _middle_mean(table, total, spread, filtered[component, y, left : left + np.int64(size)])


@compiled
def _sort(table, lanes):
    """Sort the places of every lane but for the order of the second and third, the fourth and fifth, and so on.

    Three groups of eight are sorted and merged. Batcher's merging (Knuth, The art of computer programming, volume 3,
    5.3.4) first merges the places with even numbers and those with odd numbers; what is left is to order each of the
    odd ones and the even one after it.
    """
    for group in range(3):
        start = _u(8 * group) * _ROW
        for x in range(lanes):
            i, k = start + x, start + x + _u(4) * _ROW
            eight = _sorted_eight(_four(table, i, _ROW, _UNSORTED) + _four(table, k, _ROW, _UNSORTED))
            _put_four(table, i, _ROW, eight[:4])
            _put_four(table, k, _ROW, eight[4:])
    every_other = _u(2) * _ROW
    for odd in range(2):
        for x in range(lanes):
            i = _u(odd) * _ROW + x
            k = i + _u(8) * _ROW
            eight = _merged_four_four(_four(table, i, every_other, _WEIGHTS) + _four(table, k, every_other, _WEIGHTS))
            _put_four(table, i, every_other, eight[:4])
            _put_four(table, k, every_other, eight[4:])
    for x in range(lanes):
        _order(table, x, _u(1))
        _order(table, x, _u(3))
        _order(table, x, _u(5))
        _order(table, x, _u(7))
        _order(table, x, _u(9))
        _order(table, x, _u(11))
        _order(table, x, _u(13))
    for odd in range(2):
        for x in range(lanes):
            i = _u(odd) * _ROW + x
            k, m = i + _u(8) * _ROW, i + _u(16) * _ROW
            eight = _four(table, i, every_other, _WEIGHTS) + _four(table, k, every_other, _WEIGHTS)
            twelve = _merged_eight_four(eight + _four(table, m, every_other, _WEIGHTS))
            _put_four(table, i, every_other, twelve[:4])
            _put_four(table, k, every_other, twelve[4:8])
            _put_four(table, m, every_other, twelve[8:])


@compiled
def _middle_mean(table, total, spread, mean):
    """Mean of the values, in the order that `_sort` leaves, between the weighted quantiles 1/2 -+ spread."""
    for x in range(_u(len(mean))):
        bounds = (_f(0.5) - spread) * total[x], (_f(0.5) + spread) * total[x]
        sums = _added((table[x], table[x + _WEIGHTS]), bounds, (_f(0), bounds[0], _f(0)))
        sums = _added_two(table, x, _u(1), bounds, sums)
        sums = _added_two(table, x, _u(3), bounds, sums)
        sums = _added_two(table, x, _u(5), bounds, sums)
        sums = _added_two(table, x, _u(7), bounds, sums)
        sums = _added_two(table, x, _u(9), bounds, sums)
        sums = _added_two(table, x, _u(11), bounds, sums)
        sums = _added_two(table, x, _u(13), bounds, sums)
        sums = _added_two(table, x, _u(15), bounds, sums)
        sums = _added_two(table, x, _u(17), bounds, sums)
        sums = _added_two(table, x, _u(19), bounds, sums)
        sums = _added_two(table, x, _u(21), bounds, sums)
        mean[x] = sums[2] / (bounds[1] - bounds[0])


@inlined
def _added_two(table, x, place, bounds, sums):
    i, j = place * _ROW + x, (place + _u(1)) * _ROW + x
    less, more = _ordered((table[i], table[i + _WEIGHTS]), (table[j], table[j + _WEIGHTS]))
    return _added(more, bounds, _added(less, bounds, sums))


@inlined
def _added(pair, bounds, sums):
    """Add the part of a (value, weight) pair that lies between the bounds.

    It is added to the weight so far, to that between the bounds, and to the weighted sum of the values.
    """
    until = sums[0] + pair[1]
    inside = min(max(until, bounds[0]), bounds[1])
    return until, inside, sums[2] + pair[0] * (inside - sums[1])


@inlined
def _order(table, x, place):
    """Order the pairs of this place and the next one."""
    i, j = place * _ROW + x, (place + _u(1)) * _ROW + x
    less, more = _ordered((table[i], table[i + _WEIGHTS]), (table[j], table[j + _WEIGHTS]))
    table[i], table[i + _WEIGHTS] = less
    table[j], table[j + _WEIGHTS] = more


@inlined
def _four(table, i, step, weights):
    """Four (value, weight) pairs, `step` apart; weights are that far behind the values."""
    j, k, m = i + step, i + _u(2) * step, i + _u(3) * step
    a, b = (table[i], table[i + weights]), (table[j], table[j + weights])
    c, d = (table[k], table[k + weights]), (table[m], table[m + weights])
    return a, b, c, d


@inlined
def _put_four(table, i, step, four):
    j, k, m = i + step, i + _u(2) * step, i + _u(3) * step
    table[i], table[i + _WEIGHTS] = four[0]
    table[j], table[j + _WEIGHTS] = four[1]
    table[k], table[k + _WEIGHTS] = four[2]
    table[m], table[m + _WEIGHTS] = four[3]


@inlined
def _sorted_eight(eight):
    """Sort eight pairs in 19 comparisons, the minimum; Knuth, same section."""
    a, b, c, d, e, f, g, h = eight
    (a, c), (b, d), (e, g), (f, h) = _ordered(a, c), _ordered(b, d), _ordered(e, g), _ordered(f, h)
    (a, e), (b, f), (c, g), (d, h) = _ordered(a, e), _ordered(b, f), _ordered(c, g), _ordered(d, h)
    (a, b), (c, d), (e, f), (g, h) = _ordered(a, b), _ordered(c, d), _ordered(e, f), _ordered(g, h)
    (c, e), (d, f) = _ordered(c, e), _ordered(d, f)
    (b, e), (d, g) = _ordered(b, e), _ordered(d, g)
    (b, c), (d, e), (f, g) = _ordered(b, c), _ordered(d, e), _ordered(f, g)
    return a, b, c, d, e, f, g, h


@inlined
def _merged_eight_four(twelve):
    """Merge eight sorted pairs and four sorted pairs."""
    a, b, c, d, e, f, g, h, i, j, k, m = twelve
    a, c, e, g, i, k = _merged_four_two(a, c, e, g, i, k)
    b, d, f, h, j, m = _merged_four_two(b, d, f, h, j, m)
    (b, c), (d, e), (f, g) = _ordered(b, c), _ordered(d, e), _ordered(f, g)
    (h, i), (j, k) = _ordered(h, i), _ordered(j, k)
    return a, b, c, d, e, f, g, h, i, j, k, m


@inlined
def _merged_four_four(eight):
    a, b, c, d, e, f, g, h = eight
    a, c, e, g = _merged_two_two(a, c, e, g)
    b, d, f, h = _merged_two_two(b, d, f, h)
    (b, c), (d, e), (f, g) = _ordered(b, c), _ordered(d, e), _ordered(f, g)
    return a, b, c, d, e, f, g, h


@inlined
def _merged_four_two(a, b, c, d, e, f):
    a, c, e = _merged_two_one(a, c, e)
    b, d, f = _merged_two_one(b, d, f)
    (b, c), (d, e) = _ordered(b, c), _ordered(d, e)
    return a, b, c, d, e, f


@inlined
def _merged_two_two(a, b, c, d):
    (a, c), (b, d) = _ordered(a, c), _ordered(b, d)
    b, c = _ordered(b, c)
    return a, b, c, d


@inlined
def _merged_two_one(a, b, c):
    a, c = _ordered(a, c)
    b, c = _ordered(b, c)
    return a, b, c


@inlined
def _ordered(a, b):
    """Order two (value, weight) pairs, the smaller value first."""
    in_order = a[0] <= b[0]
    return (min(a[0], b[0]), a[1] if in_order else b[1]), (max(a[0], b[0]), b[1] if in_order else a[1])
