"""The Triton kernels of `tvl1_triton`; see `image_kernels` for what they share."""

from __future__ import annotations

import triton
import triton.language as tl

from pipeline.flow import filters, tvl1_model
from pipeline.flow.image_kernels import SIZE, slopes, tile

_FLAT = tl.constexpr(tvl1_model.FLAT)
_PER_SLOPE = tl.constexpr(1 / tvl1_model.SATURATION)
_PER_FAR = tl.constexpr(1 / (tvl1_model.SATURATION * tvl1_model.FAR_PX))
_PER_COST = tl.constexpr(1 / tvl1_model.DOUBT)
_TRUST_FLOOR = tl.constexpr(filters.TRUST_FLOOR)
_UPDATE_PX = tl.constexpr(tvl1_model.UPDATE_PX)
_GRAY = tl.constexpr(1 / filters.MEDIAN_GRAY)
_FLOOR = tl.constexpr(filters.MEDIAN_FLOOR)
_SPREAD = tl.constexpr(filters.MEDIAN_SPREAD)


@triton.jit(do_not_specialize=SIZE)
def describe(
    images,
    channels,
    height,
    width,
    GRADIENT: tl.constexpr,
    BRIGHTNESS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the channels that stay constant along the motion: gradient, gray value or both, whichever have a weight."""
    x, y, stored, image = tile(height, width, ROWS, COLUMNS)
    plane, here = height * width, y * width + x
    images += image * plane
    channels += image * (2 * (GRADIENT > 0) + (BRIGHTNESS > 0)) * plane
    if GRADIENT > 0:
        slope_x, slope_y = slopes(images, x, y, height, width)
        tl.store(channels + here, slope_x, mask=stored)
        tl.store(channels + plane + here, slope_y, mask=stored)
    if BRIGHTNESS > 0:
        tl.store(channels + 2 * (GRADIENT > 0) * plane + here, tl.load(images + here), mask=stored)


@triton.jit(do_not_specialize=SIZE)
def linearize(
    still,
    warped,
    inside,
    flow,
    linear,
    height,
    width,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Linearize the data term around the flow: slopes along x and y, then constants, into `linear` (N, 3 C, H, W)."""
    x, y, stored, image = tile(height, width, ROWS, COLUMNS)
    plane, here = height * width, y * width + x
    flow += image * 2 * plane
    u, v = tl.load(flow + here), tl.load(flow + plane + here)
    within = tl.load(inside + image * plane + here)
    linear += image * 3 * CHANNELS * plane
    for c in tl.static_range(CHANNELS):
        first, second = still + (image * CHANNELS + c) * plane, warped + (image * CHANNELS + c) * plane
        still_x, still_y = slopes(first, x, y, height, width)
        warped_x, warped_y = slopes(second, x, y, height, width)
        slope_x, slope_y = (still_x + warped_x) * 0.5 * within, (still_y + warped_y) * 0.5 * within
        a, b = slope_x * _PER_SLOPE, slope_y * _PER_SLOPE
        share = 1 / tl.sqrt(1 + (a * a + b * b))
        residual = tl.load(second + here) - tl.load(first + here)
        far = residual * share * _PER_FAR
        share /= 1 + far * far
        slope_x *= share
        slope_y *= share
        constant = residual * share - slope_x * u - slope_y * v
        tl.store(linear + c * plane + here, slope_x, mask=stored)
        tl.store(linear + (CHANNELS + c) * plane + here, slope_y, mask=stored)
        tl.store(linear + (2 * CHANNELS + c) * plane + here, constant, mask=stored)


@triton.jit(do_not_specialize=SIZE)
def iterate(
    flow,
    before,
    after,
    duals,
    duals_after,
    data,
    linear,
    height,
    width,
    GRADIENT: tl.constexpr,
    BRIGHTNESS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One primal-dual iteration. `before` is the flow one iteration earlier; in the first iteration it is `flow`.

    GRADIENT and BRIGHTNESS are the weights of the two terms. They are compile-time constants to be exact in double
    precision too; an argument would be float32.
    Neighboring programs read the flows and duals that this one updates, so the updates are written to other buffers.
    No other program reads the duals of the data term, so they are updated in place.
    """
    x, y, stored, image = tile(height, width, ROWS, COLUMNS)
    CHANNELS: tl.constexpr = 2 * (GRADIENT > 0) + (BRIGHTNESS > 0)
    plane = height * width
    flow, before, after = flow + image * 2 * plane, before + image * 2 * plane, after + image * 2 * plane
    duals, duals_after = duals + image * 4 * plane, duals_after + image * 4 * plane
    data, linear = data + image * CHANNELS * plane, linear + image * 3 * CHANNELS * plane

    left, right = tl.maximum(x - 1, 0), tl.minimum(x + 1, width - 1)
    above, below = tl.maximum(y - 1, 0), tl.minimum(y + 1, height - 1)
    here, to_left, to_above = y * width + x, y * width + left, above * width + x
    u, v = _ahead(flow, before, here, plane)
    u_right, v_right = _ahead(flow, before, y * width + right, plane)
    u_below, v_below = _ahead(flow, before, below * width + x, plane)
    ux, vx, uy, vy = _ascend(duals, here, plane, u, v, u_right, v_right, u_below, v_below)
    tl.store(duals_after + here, ux, mask=stored)
    tl.store(duals_after + plane + here, vx, mask=stored)
    tl.store(duals_after + 2 * plane + here, uy, mask=stored)
    tl.store(duals_after + 3 * plane + here, vy, mask=stored)

    u_left, v_left = _ahead(flow, before, to_left, plane)
    u_corner, v_corner = _ahead(flow, before, below * width + left, plane)
    ux_left, vx_left, _, _ = _ascend(duals, to_left, plane, u_left, v_left, u, v, u_corner, v_corner)
    u_above, v_above = _ahead(flow, before, to_above, plane)
    u_corner, v_corner = _ahead(flow, before, above * width + right, plane)
    _, _, uy_above, vy_above = _ascend(duals, to_above, plane, u_above, v_above, u_corner, v_corner, u, v)
    descent_u = ux + uy - tl.where(x > 0, ux_left, 0.0) - tl.where(y > 0, uy_above, 0.0)
    descent_v = vx + vy - tl.where(x > 0, vx_left, 0.0) - tl.where(y > 0, vy_above, 0.0)

    steep_x, steep_y = tl.zeros_like(u) + 4, tl.zeros_like(u) + 4
    for c in tl.static_range(CHANNELS):
        slope_x, slope_y = tl.load(linear + c * plane + here), tl.load(linear + (CHANNELS + c) * plane + here)
        constant = tl.load(linear + (2 * CHANNELS + c) * plane + here)
        step = 1 / (tl.abs(slope_x) + tl.abs(slope_y) + _FLAT)
        raised = tl.load(data + c * plane + here) + step * (constant + slope_x * u + slope_y * v)
        bound = tl.zeros_like(raised)  # a Python number in `minimum` would become float32
        if GRADIENT > 0 and c < 2:
            bound += GRADIENT
        else:
            bound += BRIGHTNESS
        raised = tl.minimum(tl.maximum(raised, -bound), bound)
        tl.store(data + c * plane + here, raised, mask=stored)
        descent_u -= raised * slope_x
        descent_v -= raised * slope_y
        steep_x += tl.abs(slope_x)
        steep_y += tl.abs(slope_y)
    tl.store(after + here, tl.load(flow + here) + descent_u / steep_x, mask=stored)
    tl.store(after + plane + here, tl.load(flow + plane + here) + descent_v / steep_y, mask=stored)


@triton.jit(do_not_specialize=SIZE)
def median(flow, start, filtered, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Median of the 3 x 3 neighborhood of the limited flow; see `warp.median3`."""
    x, y, stored, image = tile(height, width, ROWS, COLUMNS)
    plane = height * width
    left, right = tl.maximum(x - 1, 0), tl.minimum(x + 1, width - 1)
    above, below = tl.maximum(y - 1, 0) * width, tl.minimum(y + 1, height - 1) * width
    for component in range(2):
        shift = (image * 2 + component) * plane
        flow_plane, start_plane = flow + shift, start + shift
        low_1, middle_1, high_1 = _sorted(flow_plane, start_plane, above + left, y * width + left, below + left)
        low_2, middle_2, high_2 = _sorted(flow_plane, start_plane, above + x, y * width + x, below + x)
        low_3, middle_3, high_3 = _sorted(flow_plane, start_plane, above + right, y * width + right, below + right)
        low, high = tl.maximum(tl.maximum(low_1, low_2), low_3), tl.minimum(tl.minimum(high_1, high_2), high_3)
        middle = _middle(low, _middle(middle_1, middle_2, middle_3), high)
        tl.store(filtered + shift + y * width + x, middle, mask=stored)


@triton.jit(do_not_specialize=SIZE)
def trust(
    flow,
    start,
    linear,
    trusted,
    height,
    width,
    GRADIENT: tl.constexpr,
    BRIGHTNESS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Confidence in the limited flow at each pixel; see `tvl1_torch._trust`."""
    x, y, stored, image = tile(height, width, ROWS, COLUMNS)
    CHANNELS: tl.constexpr = 2 * (GRADIENT > 0) + (BRIGHTNESS > 0)
    plane, here = height * width, y * width + x
    flow, start = flow + image * 2 * plane, start + image * 2 * plane
    linear += image * 3 * CHANNELS * plane
    u, v = _limited(flow, start, here), _limited(flow, start, plane + here)
    cost = tl.zeros_like(u)
    for c in tl.static_range(CHANNELS):
        slope_x, slope_y = tl.load(linear + c * plane + here), tl.load(linear + (CHANNELS + c) * plane + here)
        residual = tl.abs(tl.load(linear + (2 * CHANNELS + c) * plane + here) + slope_x * u + slope_y * v)
        if GRADIENT > 0 and c < 2:
            cost += residual * (GRADIENT * _PER_COST)
        else:
            cost += residual * (BRIGHTNESS * _PER_COST)
    believed = 1 / (1 + cost * cost) * (1 - _TRUST_FLOOR) + _TRUST_FLOOR
    tl.store(trusted + image * plane + here, believed, mask=stored)


@triton.jit(do_not_specialize=SIZE)
def weighted_median(
    flow,
    start,
    images,
    trusted,
    filtered,
    offsets,
    height,
    width,
    FACTORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Weighted median of the limited flow; see `warp.weighted_median`.

    Arguments that are not images: offsets (neighbors, 2) int32, x and y; FACTORS, the weight factor of each.
    """
    x, y, stored, image = tile(height, width, ROWS, COLUMNS)
    plane, here = height * width, y * width + x
    images, trusted = images + image * plane, trusted + image * plane
    middle = tl.load(images + here)
    weights, total = (), tl.zeros_like(middle)
    for j in tl.static_range(len(FACTORS)):
        there = _shifted(x, y, offsets, j, height, width)
        difference = (tl.load(images + there) - middle) * _GRAY
        difference *= difference
        likeness = 1 / (1 + difference * difference) * (1 - _FLOOR) + _FLOOR
        weight = likeness * tl.load(trusted + there) * FACTORS[j]
        total += weight
        weights = weights + (weight,)
    low, high = total * (0.5 - _SPREAD), total * (0.5 + _SPREAD)
    for component in range(2):
        shift = (image * 2 + component) * plane
        values = ()
        for j in tl.static_range(len(FACTORS)):
            there = _shifted(x, y, offsets, j, height, width)
            values = values + (_limited(flow + shift, start + shift, there),)
        mean = tl.zeros_like(middle)
        for j in tl.static_range(len(FACTORS)):
            below = tl.zeros_like(middle)
            for i in tl.static_range(len(FACTORS)):
                if i < j:  # of equal values, the earlier counts as below
                    below += tl.where(values[i] <= values[j], weights[i], 0.0)
                if i > j:
                    below += tl.where(values[i] < values[j], weights[i], 0.0)
            part = tl.minimum(below + weights[j], high) - tl.maximum(below, low)
            mean += values[j] * tl.maximum(part, 0.0)
        tl.store(filtered + shift + here, mean / (high - low), mask=stored)


@triton.jit
def _ahead(flow, before, at, plane):
    """Both components of the extrapolated flow: 2 `flow` - `before`."""
    u, v = tl.load(flow + at), tl.load(flow + plane + at)
    return 2 * u - tl.load(before + at), 2 * v - tl.load(before + plane + at)


@triton.jit
def _ascend(duals, at, plane, u, v, u_right, v_right, u_below, v_below):
    """Gradient ascent in the duals of the total variation at a pixel, with projection onto the unit ball."""
    ux = tl.load(duals + at) + (u_right - u) * 0.5
    vx = tl.load(duals + plane + at) + (v_right - v) * 0.5
    uy = tl.load(duals + 2 * plane + at) + (u_below - u) * 0.5
    vy = tl.load(duals + 3 * plane + at) + (v_below - v) * 0.5
    shrink = 1 / tl.sqrt(tl.maximum(ux * ux + uy * uy + vx * vx + vy * vy, 1))
    return ux * shrink, vx * shrink, uy * shrink, vy * shrink


@triton.jit
def _limited(flow, start, at):
    """The flow, limited to within UPDATE_PX of its value before the warping, where the linear model holds."""
    begun = tl.load(start + at)
    return begun + tl.minimum(tl.maximum(tl.load(flow + at) - begun, -_UPDATE_PX), _UPDATE_PX)


@triton.jit
def _shifted(x, y, offsets, j: tl.constexpr, height, width):
    """Index of neighbor j within its plane, borders repeated."""
    there_x = tl.minimum(tl.maximum(x + tl.load(offsets + 2 * j), 0), width - 1)
    return tl.minimum(tl.maximum(y + tl.load(offsets + 2 * j + 1), 0), height - 1) * width + there_x


@triton.jit
def _sorted(flow, start, above, here, below):
    """The limited flow at three points, in ascending order."""
    a, b, c = _limited(flow, start, above), _limited(flow, start, here), _limited(flow, start, below)
    less, more = tl.minimum(a, b), tl.maximum(a, b)
    rest = tl.maximum(less, c)
    return tl.minimum(less, c), tl.minimum(more, rest), tl.maximum(more, rest)


@triton.jit
def _middle(a, b, c):
    return tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c))
