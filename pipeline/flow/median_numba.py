"""The weighted median of `warp.weighted_median` on the CPU, compiled."""

from __future__ import annotations

import numpy as np

from pipeline.flow.compiled import compiled
from pipeline.flow.filters import MEDIAN_FLOOR, MEDIAN_GRAY, MEDIAN_SPREAD, MEDIAN_TAPS

_f = np.float32
_GRAY, _FLOOR, _SPREAD = _f(1 / MEDIAN_GRAY), _f(MEDIAN_FLOOR), _f(MEDIAN_SPREAD)
_REACH = max(dx for dx, _, _ in MEDIAN_TAPS)
_OFFSETS = np.array([(dx, dy) for dx, dy, _ in MEDIAN_TAPS])
_FACTORS = np.array([factor for _, _, factor in MEDIAN_TAPS], np.float32)


def weighted_median(flow: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(2, H, W) float32 flow filtered by the gray values (H, W) float32 of its image: (2, H, W) float32."""
    edges = ((_REACH, _REACH), (_REACH, _REACH))
    around, filtered = np.pad(flow, ((0, 0), *edges), mode="edge"), np.empty_like(flow)
    _rows(around, np.pad(image, edges, mode="edge"), filtered, _OFFSETS, _FACTORS, _GRAY, _FLOOR, _SPREAD)
    return filtered


@compiled
def _rows(around, gray, filtered, offsets, factors, per_gray, floor, spread):
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
                difference = (there[x] - middle[x]) * per_gray
                difference *= difference
                weight[x] = factor * (floor + (_f(1) - floor) / (_f(1) + difference * difference))
                total[x] += weight[x]
        for component in range(2):
            for j in range(count):
                start = reach + offsets[j, 0]
                values[j] = around[component, reach + y + offsets[j, 1], start : start + width]
            mean = filtered[component, y]
            mean[:] = 0
            for j in range(count):
                _weigh_below(below, values, weights, j)
                _add_share(mean, values[j], weights[j], below, total, spread)
            for x in range(width):
                mean[x] /= _f(2) * spread * total[x]


@compiled
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


@compiled
def _add_share(mean, value, weight, below, total, spread):
    """Add a value times that part of its weight that lies within the spread around half of all."""
    low, high = _f(0.5) - spread, _f(0.5) + spread
    for x in range(len(mean)):
        part = min(below[x] + weight[x], high * total[x]) - max(below[x], low * total[x])
        mean[x] += value[x] * max(part, _f(0))
