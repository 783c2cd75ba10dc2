"""The medians of `warp` on the CPU, compiled: of 3 x 3 pixels, and the weighted one."""

from __future__ import annotations

import functools

import numpy as np

from pipeline.flow.compiled import compiled
from pipeline.flow.filters import MEDIAN_FACTORS, MEDIAN_FLOOR, MEDIAN_GRAY, MEDIAN_SPREAD, median_offsets

_f = np.float32
_BLOCK = 128  # pixels of a row whose neighbours are in the processor's nearest cache together


def median3(flow: np.ndarray) -> np.ndarray:
    """Median of the 3 x 3 neighbourhood of each pixel of (2, H, W), borders repeated; see `warp.median3`."""
    filtered = np.empty_like(flow)
    _median3(np.pad(flow, ((0, 0), (1, 1), (1, 1)), mode="edge"), filtered)
    return filtered


def weighted_median(flow: np.ndarray, image: np.ndarray, trust: np.ndarray, *, scale: float) -> np.ndarray:
    """The weighted median, of one flow.

    Args:
        flow: (2, H, W), float32 or float64.
        image, trust: (H, W) of the same type.
        scale: of this level of the pyramid.

    Returns:
        (2, H, W) of the same type; see `warp.weighted_median`.
    """
    number, offsets = flow.dtype.type, np.array(median_offsets(scale))
    edges = ((np.abs(offsets).max(),) * 2,) * 2
    around, filtered = np.pad(flow, ((0, 0), *edges), mode="edge"), np.empty_like(flow)
    gray, trusted = (np.pad(plane, edges, mode="edge") for plane in (image, trust))
    factors = np.array(MEDIAN_FACTORS, number)
    numbers = number(1 / MEDIAN_GRAY), number(MEDIAN_FLOOR), number(MEDIAN_SPREAD)
    _rows(around, gray, trusted, filtered, offsets, factors, _network(len(offsets)), *numbers)
    return filtered


@functools.cache
def _network(count: int) -> np.ndarray:
    """(comparators, 2) places to be put in order, one pair after the other, so that all are: Batcher's network.

    The same comparisons whatever the values, so that many pixels are sorted side by side.

    Source: Knuth, The art of computer programming, volume 3, 5.2.2, algorithm M.
    """
    pairs, part = [], 1
    while part < count:
        step = part
        while step:
            for start in range(step % part, count - step, 2 * step):
                for low in range(start, start + min(step, count - start - step)):
                    if low // (2 * part) == (low + step) // (2 * part):
                        pairs.append((low, low + step))
            step //= 2
        part *= 2
    return np.array(pairs)


@compiled
def _median3(around, filtered):
    """Sorts every column of three, then takes the median of (largest low, middle middle, smallest high)."""
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
                centre = max(a, min(b, middle[x + 2]))
                a, b = min(lowest, centre), max(lowest, centre)
                row[x] = max(a, min(b, highest))


@compiled
def _rows(around, gray, trusted, filtered, offsets, factors, network, per_gray, floor, spread):
    """See `warp.weighted_median`; flow (2, ...), gray and trust are padded by the reach of the offsets."""
    _, height, width = filtered.shape
    count, reach = len(offsets), (gray.shape[0] - height) // 2
    for left in range(0, width, _BLOCK):
        size = min(_BLOCK, width - left)
        # one array each: parts of a larger one are not known to be contiguous, and take four times as long to sort
        weights, values = np.empty((count, size), gray.dtype), np.empty((count, size), gray.dtype)
        total, below, sorted_weights = np.empty(size, gray.dtype), np.empty(size, gray.dtype), np.empty_like(weights)
        for y in range(height):
            middle = gray[reach + y, reach + left : reach + left + size]
            total[:] = 0
            for j in range(count):
                row, start = reach + y + offsets[j, 1], reach + left + offsets[j, 0]
                there, believed = gray[row, start : start + size], trusted[row, start : start + size]
                weight, factor = weights[j], factors[j]
                for x in range(size):
                    difference = (there[x] - middle[x]) * per_gray
                    difference *= difference
                    likeness = floor + (_f(1) - floor) / (_f(1) + difference * difference)
                    weight[x] = factor * believed[x] * likeness
                    total[x] += weight[x]
            for component in range(2):
                for j in range(count):
                    row, start = reach + y + offsets[j, 1], reach + left + offsets[j, 0]
                    values[j] = around[component, row, start : start + size]
                sorted_weights[:] = weights
                _sort(values, sorted_weights, network)
                mean = filtered[component, y, left : left + size]
                _middle_mean(values, sorted_weights, total, below, spread, mean)


@compiled
def _sort(values, weights, network):
    """Sort (count, size) values along the first axis, and the weights as they go."""
    for k in range(len(network)):
        i, j = network[k]
        for x in range(values.shape[1]):
            first, second, of_first, of_second = values[i, x], values[j, x], weights[i, x], weights[j, x]
            in_order = first <= second
            values[i, x], values[j, x] = min(first, second), max(first, second)
            weights[i, x] = of_first if in_order else of_second
            weights[j, x] = of_second if in_order else of_first


@compiled
def _middle_mean(values, weights, total, below, spread, mean):
    """Mean of the sorted values by that part of their weights that lies within the spread around half of all."""
    below[:] = 0
    mean[:] = 0
    for j in range(len(values)):
        value, weight = values[j], weights[j]
        for x in range(len(mean)):
            until = below[x] + weight[x]
            part = min(until, (_f(0.5) + spread) * total[x]) - max(below[x], (_f(0.5) - spread) * total[x])
            mean[x] += value[x] * max(part, _f(0))
            below[x] = until
    for x in range(len(mean)):
        mean[x] /= _f(2) * spread * total[x]
