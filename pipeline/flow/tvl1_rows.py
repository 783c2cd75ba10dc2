"""The compiled loops of `tvl1_numba`: all iterations of a warping in one sweep over the rows of an image.

The state is (H, 6 + C, W), float32 or float64, for C channels: all that outlasts a warping. What the iterations of a
row need besides lies in a ring of rows, which stays in the cache: a row enters it just before its first iteration and
leaves it after its last. In the ring a row is cut into tiles of `_TILE` pixels, with the fields of a tile one after
the other at a constant distance. So LLVM knows that they do not overlap, and turns loops along a tile into vector
instructions. A loop that also read another row would first test for overlaps, which takes longer than a row of a small
level; so what an iteration needs from neighboring rows is copied first, by loops of its own. Indices are unsigned,
because numba tests whether signed ones count from the end. Constants are float32 (`_f`), and exact: they preserve
either precision, whereas a Python number would turn float32 into float64.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.flow.compiled import compiled, inlined

_f, _u = np.float32, np.uint64
# first fields of the state; two each (x and y), then one per channel: the dual variable of the data term
FLOW, DUAL_X, DUAL_Y, DATA = 0, 2, 4, 6
MOST_CHANNELS = 3
# pixels of a tile, and the distance of its fields; the margin between two fields holds the neighbors of a tile's ends
_TILE, _STRIDE, _VECTOR = 384, 400, 16
# first fields of a tile, as places in it, two each (x and y). What a loop reads one pixel to the right (_AHEAD) comes
# after what it writes (_DUAL_X, _DUAL_Y): the other way round, LLVM would use shorter vectors.
_DUAL_X, _DUAL_Y, _STEP, _FLOW, _AHEAD = (_u(k * _STRIDE + _VECTOR) for k in range(0, 10, 2))
# first field of each channel, with five fields; those of channels that do not exist stay zero and have no effect
_CHANNELS = tuple(_u((10 + 5 * c) * _STRIDE + _VECTOR) for c in range(MOST_CHANNELS))
# first fields of what exists for one tile at a time: the pull on the flow, and the flow ahead in the row below
_PULL, _BELOW, _ALL = _u(0), _u(2 * _STRIDE), 4 * _STRIDE
_DUAL, _SLOPE_X, _SLOPE_Y, _CONSTANT, _DATA_STEP = (_u(k * _STRIDE) for k in range(5))
_NEXT, _ONE = _u(_STRIDE), _u(1)  # from x to y of a field; from a pixel to its right neighbor


def ring_of(size: tuple[int, int], iterations: int, dtype: type) -> np.ndarray:
    """A ring for `solve`, for any number of calls with images of this size, (height, width).

    All must have equally many channels, because the places of others must stay zero. The ring starts at a cache line,
    and so do all fields: vectors that lie across two lines take a tenth more time.
    """
    shape = min(iterations + 2, size[0]), -(-size[1] // _TILE), 2 * _VECTOR + (10 + 5 * MOST_CHANNELS) * _STRIDE
    places = np.zeros(math.prod(shape) + _VECTOR, dtype)
    start = -places.ctypes.data % 64 // places.itemsize
    return places[start : start + math.prod(shape)].reshape(shape)


@compiled
def solve(state, ring, images, box, iterations, constants, most, trusted):
    """Linearize the data term around the current flow, then do all primal-dual iterations of a warping.

    Args:
        state, ring: see above.
        images: the warped second image (C, H, W), the first one (C, H, W) and which points land inside (H, W).
        box: (MOST_CHANNELS,) bounds of the data term's dual variable, zero for channels that do not exist.
        iterations: how many.
        constants: taps of the derivative; FLAT, 1 / SATURATION, 1 / (SATURATION * FAR_PX) of `tvl1_model`; 1 / DOUBT
            and the least confidence.
        most: pixels by which the flow moves at most, in each component.
        trusted: (H, W), receives the confidence in the flow at each pixel; see `tvl1_torch._trust`.
    """
    height, width = state.shape[0], state.shape[2]
    rows, tiles, tile = ring.shape
    places, tile = ring.reshape(-1), _u(tile)
    row, line, scratch = _u(tiles) * tile, np.empty(width + 4, state.dtype), np.zeros(_ALL, state.dtype)
    for time in range(-1, height + iterations):
        following = time + 1  # the first iteration of a row needs the next row
        if following < height:
            _enter(places, _u(following % rows) * row, tile, state, images, following, line, constants)
        for k in range(max(0, time - height + 1), min(iterations, time + 1)):
            y = time - k  # iteration k - 1 has just done row y + 1, and will not touch rows y and y - 1 again
            here, above = _u(y % rows) * row, _u((y - 1) % rows) * row
            below = _u((y + 1) % rows) * row if y + 1 < height else here
            _iterate(places, scratch, here, above, below, tile, width, y == 0, box)
        if time >= iterations:
            y = time - iterations
            _leave(places, _u(y % rows) * row, tile, state, y, box, most, constants, trusted[y])


@compiled
def _iterate(ring, scratch, here, above, below, tile, width, top, box):
    """Do one iteration of a row; `here`, `above` and `below` are the places of its first tile and of its neighbors'."""
    for left in range(0, width, _TILE):
        size, p, more = min(_TILE, width - left), _u(left // _TILE) * tile, left + _TILE < width
        lanes = _u((size + _VECTOR - 1) // _VECTOR * _VECTOR)  # the flow of those beyond the image stays zero
        _copy(ring, above + p + _DUAL_Y, scratch, _PULL, lanes, _f(0) if top else _f(1))
        _copy(ring, below + p + _AHEAD, scratch, _BELOW, lanes, _f(1))
        _ascend(ring, scratch, here + p, lanes)
        _descend(ring, scratch, here + p, lanes, (box[0], box[1], box[2]))
        _set_margins(ring, here + p, tile, _u(size), left > 0, more)


@compiled
def _enter(ring, start, tile, state, images, y, line, constants):
    """Write row y of the state into the ring, with slopes, constants and steps of the data term around its flow."""
    warped, still, inside = images
    channels, _, width = warped.shape
    for left in range(0, width, _TILE):
        lanes, p = _u(min(_TILE, width - left)), start + _u(left // _TILE) * tile
        for k in range(2):
            flow, dual_x, dual_y = state[y, FLOW + k, left:], state[y, DUAL_X + k, left:], state[y, DUAL_Y + k, left:]
            q = p + _u(k) * _NEXT
            for x in range(lanes):
                ring[q + _FLOW + x] = ring[q + _AHEAD + x] = flow[x]
                ring[q + _DUAL_X + x] = dual_x[x]
                ring[q + _DUAL_Y + x] = dual_y[x]
                ring[q + _STEP + x] = _f(4)
        _set_margins(ring, p, tile, lanes, left > 0, left + _TILE < width)
    for c in range(channels):
        for x in range(width):
            line[x + 2] = warped[c, y, x] + still[c, y, x]
        line[0] = line[1] = line[2]
        line[width + 2] = line[width + 3] = line[width + 1]
        for left in range(0, width, _TILE):
            lanes, p = _u(min(_TILE, width - left)), start + _u(left // _TILE) * tile
            q = p + _CHANNELS[c]
            _differentiate(ring, q, lanes, warped[c], still[c], inside[y], line, y, _u(left), constants[0])
            _linearize(ring, p, q, lanes, warped[c, y], still[c, y], _u(left), constants)
            dual = state[y, DATA + c, left:]
            for x in range(lanes):
                ring[q + _DUAL + x] = dual[x]
    for left in range(0, width, _TILE):
        lanes, p = _u(min(_TILE, width - left)), start + _u(left // _TILE) * tile
        for x in range(lanes):
            ring[p + _STEP + x] = _f(1) / ring[p + _STEP + x]
            ring[p + _STEP + _NEXT + x] = _f(1) / ring[p + _STEP + _NEXT + x]


@inlined
def _differentiate(ring, q, lanes, warped, still, inside, line, y, left, derivative):
    """Slopes of a channel, from column `left` on; half the sum of both images' derivatives is that of half their sum.

    `line` is the sum of both images in row y, with two pixels more on either side.
    """
    half, last = _f(0.5), len(warped) - 1
    up2, up1, down1, down2 = max(y - 2, 0), max(y - 1, 0), min(y + 1, last), min(y + 2, last)
    for x in range(lanes):
        i = left + x
        outer = (warped[down2, i] + still[down2, i]) - (warped[up2, i] + still[up2, i])
        inner = (warped[down1, i] + still[down1, i]) - (warped[up1, i] + still[up1, i])
        ring[q + _SLOPE_Y + x] = half * inside[i] * (derivative[4] * outer + derivative[3] * inner)
    for x in range(lanes):
        i = left + x
        outer, inner = line[i + _u(4)] - line[i], line[i + _u(3)] - line[i + _ONE]
        ring[q + _SLOPE_X + x] = half * inside[i] * (derivative[4] * outer + derivative[3] * inner)


@inlined
def _linearize(ring, p, q, lanes, warped, still, left, constants):
    """Slopes, constant and step of a channel, scaled by how far its residual is to be trusted, and the flow's steps."""
    _, flat, per_slope, per_far, _, _ = constants
    one = _f(1)
    for x in range(lanes):
        slope_x, slope_y = ring[q + _SLOPE_X + x], ring[q + _SLOPE_Y + x]
        a, b = slope_x * per_slope, slope_y * per_slope
        share = one / np.sqrt(one + (a * a + b * b))
        residual = warped[left + x] - still[left + x]
        far = residual * share * per_far
        share /= one + far * far
        a, b = slope_x * share, slope_y * share
        ring[q + _SLOPE_X + x], ring[q + _SLOPE_Y + x] = a, b
        ring[q + _CONSTANT + x] = residual * share - a * ring[p + _FLOW + x] - b * ring[p + _FLOW + _NEXT + x]
        ring[q + _DATA_STEP + x] = one / (abs(a) + abs(b) + flat)
        ring[p + _STEP + x] += abs(a)
        ring[p + _STEP + _NEXT + x] += abs(b)


@inlined
def _set_margins(ring, p, tile, size, before, more):
    """Copy the ends of a tile that its neighbors need into their margins, as far as there are neighbors."""
    for k in range(2):
        i = p + _u(k) * _NEXT
        if more:
            ring[i + tile + _DUAL_X - _ONE] = ring[i + _DUAL_X + size - _ONE]
        else:  # as if the image went on with the same flow, so the last column's difference along x is zero
            ring[i + _AHEAD + size] = ring[i + _AHEAD + size - _ONE]
        if before:
            ring[i - tile + _AHEAD + _u(_TILE)] = ring[i + _AHEAD]


@inlined
def _copy(ring, start, scratch, to, lanes, factor):
    """Copy two adjacent fields of another row, from place `start` on, times `factor`, to places `to` of `scratch`."""
    for x in range(lanes):
        scratch[to + x] = factor * ring[start + x]
        scratch[to + _NEXT + x] = factor * ring[start + _NEXT + x]


@inlined
def _ascend(ring, scratch, p, lanes):
    """Gradient ascent in the dual of the total variation, with projection onto the unit ball.

    _PULL holds the dual variable of the row above, and receives the part of the divergence along y.
    """
    rate, one = _f(0.5), _f(1)
    for x in range(lanes):
        i = p + x
        right = i + _ONE
        u, v = ring[i + _AHEAD], ring[i + _AHEAD + _NEXT]
        a = ring[i + _DUAL_X] + rate * (ring[right + _AHEAD] - u)
        b = ring[i + _DUAL_Y] + rate * (scratch[_BELOW + x] - u)
        c = ring[i + _DUAL_X + _NEXT] + rate * (ring[right + _AHEAD + _NEXT] - v)
        d = ring[i + _DUAL_Y + _NEXT] + rate * (scratch[_BELOW + _NEXT + x] - v)
        shrink = one / np.sqrt(max(one, a * a + b * b + c * c + d * d))
        b, d = b * shrink, d * shrink
        ring[i + _DUAL_X], ring[i + _DUAL_Y] = a * shrink, b
        ring[i + _DUAL_X + _NEXT], ring[i + _DUAL_Y + _NEXT] = c * shrink, d
        scratch[_PULL + x] = b - scratch[_PULL + x]
        scratch[_PULL + _NEXT + x] = d - scratch[_PULL + _NEXT + x]


@inlined
def _descend(ring, scratch, p, lanes, bounds):
    """Gradient ascent in the dual of each channel's data term, then descent of the flow, and its extrapolation."""
    first, second, third = _CHANNELS
    for x in range(lanes):
        i = p + x
        ahead = ring[i + _AHEAD], ring[i + _AHEAD + _NEXT]
        a = scratch[_PULL + x] + ring[i + _DUAL_X] - ring[i + _DUAL_X - _ONE]
        b = scratch[_PULL + _NEXT + x] + ring[i + _DUAL_X + _NEXT] - ring[i + _DUAL_X + _NEXT - _ONE]
        a, b = _ascend_data(ring, i + first, ahead, bounds[0], (a, b))
        a, b = _ascend_data(ring, i + second, ahead, bounds[1], (a, b))
        a, b = _ascend_data(ring, i + third, ahead, bounds[2], (a, b))
        u, v = ring[i + _FLOW], ring[i + _FLOW + _NEXT]
        moved_u, moved_v = u + ring[i + _STEP] * a, v + ring[i + _STEP + _NEXT] * b
        ring[i + _AHEAD], ring[i + _AHEAD + _NEXT] = moved_u + moved_u - u, moved_v + moved_v - v
        ring[i + _FLOW], ring[i + _FLOW + _NEXT] = moved_u, moved_v


@inlined
def _ascend_data(ring, q, ahead, bound, pull):
    """Gradient ascent in the dual of one channel's data term, clipped to its bound; add it to the pull on the flow."""
    slope_x, slope_y = ring[q + _SLOPE_X], ring[q + _SLOPE_Y]
    residual = ring[q + _CONSTANT] + slope_x * ahead[0] + slope_y * ahead[1]
    dual = min(max(ring[q + _DUAL] + ring[q + _DATA_STEP] * residual, -bound), bound)
    ring[q + _DUAL] = dual
    return pull[0] - dual * slope_x, pull[1] - dual * slope_y


@compiled
def _leave(ring, start, tile, state, y, box, most, constants, trusted):
    """Write a row of the ring back into row y of the state, the flow limited; and the confidence in it."""
    _, _, _, _, per_cost, floor = constants
    width, one = state.shape[2], _f(1)
    for left in range(0, width, _TILE):
        lanes, p = _u(min(_TILE, width - left)), start + _u(left // _TILE) * tile
        for k in range(2):
            flow, dual_x, dual_y = state[y, FLOW + k, left:], state[y, DUAL_X + k, left:], state[y, DUAL_Y + k, left:]
            q = p + _u(k) * _NEXT
            for x in range(lanes):
                flow[x] += min(max(ring[q + _FLOW + x] - flow[x], -most), most)
                dual_x[x] = ring[q + _DUAL_X + x]
                dual_y[x] = ring[q + _DUAL_Y + x]
        u, v, cost = state[y, FLOW, left:], state[y, FLOW + 1, left:], trusted[left:]
        for x in range(lanes):
            cost[x] = _f(0)
        for c in range(state.shape[1] - DATA):
            q, dual, weight = p + _CHANNELS[c], state[y, DATA + c, left:], box[c] * per_cost
            for x in range(lanes):
                dual[x] = ring[q + _DUAL + x]
                along = ring[q + _SLOPE_X + x] * u[x] + ring[q + _SLOPE_Y + x] * v[x]
                cost[x] += weight * abs(ring[q + _CONSTANT + x] + along)
        for x in range(lanes):
            cost[x] = floor + (one - floor) / (one + cost[x] * cost[x])
