"""The compiled loops of `tvl1_numba`, over the rows of an image and along them.

The state is (H, fields, W), float32 or float64, with all fields of a row side by side. Work along a row is a plain
loop, which LLVM turns into vector instructions. Constants are float32 (`_f`), and exact: they preserve either
precision, whereas a Python number would turn float32 into float64.
"""

from __future__ import annotations

import numpy as np

from pipeline.flow.compiled import compiled

_f = np.float32
# first fields, two each (x and y); from DATA on, five groups of one field per channel: the dual variable, then the
# groups numbered in the second line
FLOW, AHEAD, DUAL_X, DUAL_Y, STEP, DATA = 0, 2, 4, 6, 8, 10
SLOPE_X, SLOPE_Y, CONSTANT, DATA_STEP, GROUPS = 1, 2, 3, 4, 5


@compiled
def linearize(warped, still, inside, state, derivative, flat, per_slope, per_far):
    """Write slopes, constants and step sizes of the data term, linearized around the current flow, into the state."""
    channels, height, width = warped.shape
    half, one = _f(0.5), _f(1)
    line = np.empty(width + 4, warped.dtype)
    for y in range(height):
        row = state[y]
        step_x, step_y = row[STEP], row[STEP + 1]
        step_x[:] = _f(4)
        step_y[:] = _f(4)
        within = inside[y]
        for c in range(channels):
            slope_x, slope_y = row[DATA + SLOPE_X * channels + c], row[DATA + SLOPE_Y * channels + c]
            constant, step = row[DATA + CONSTANT * channels + c], row[DATA + DATA_STEP * channels + c]
            # half the sum of both images' derivatives is the derivative of half their sum
            up2, up1 = max(y - 2, 0), max(y - 1, 0)
            down1, down2 = min(y + 1, height - 1), min(y + 2, height - 1)
            for x in range(width):
                outer = (warped[c, down2, x] + still[c, down2, x]) - (warped[c, up2, x] + still[c, up2, x])
                inner = (warped[c, down1, x] + still[c, down1, x]) - (warped[c, up1, x] + still[c, up1, x])
                slope_y[x] = half * within[x] * (derivative[4] * outer + derivative[3] * inner)
            for x in range(width):
                line[x + 2] = warped[c, y, x] + still[c, y, x]
            line[0] = line[1] = line[2]
            line[width + 2] = line[width + 3] = line[width + 1]
            for x in range(width):
                outer, inner = line[x + 4] - line[x], line[x + 3] - line[x + 1]
                slope_x[x] = half * within[x] * (derivative[4] * outer + derivative[3] * inner)
            for x in range(width):
                a, b = slope_x[x] * per_slope, slope_y[x] * per_slope
                share = one / np.sqrt(one + (a * a + b * b))
                residual = warped[c, y, x] - still[c, y, x]
                far = residual * share * per_far
                share /= one + far * far
                a, b = slope_x[x] * share, slope_y[x] * share
                slope_x[x], slope_y[x] = a, b
                constant[x] = residual * share - a * row[FLOW, x] - b * row[FLOW + 1, x]
                step[x] = one / (abs(a) + abs(b) + flat)
                step_x[x] += abs(a)
                step_y[x] += abs(b)
        for x in range(width):
            step_x[x] = one / step_x[x]
            step_y[x] = one / step_y[x]
            row[AHEAD, x] = row[FLOW, x]
            row[AHEAD + 1, x] = row[FLOW + 1, x]


@compiled
def solve(state, box, iterations):
    """All primal-dual iterations of a warping in one sweep over the rows."""
    height, nothing = state.shape[0], np.zeros(state.shape[2], state.dtype)
    for time in range(height + iterations - 1):
        for k in range(max(0, time - height + 1), min(iterations, time + 1)):
            y = time - k  # iteration k - 1 has just done row y + 1, and will not touch rows y and y - 1 again
            _dual_row(state, y)
            _data_row(state[y], box)
            _primal_row(state, y, len(box), nothing)


@compiled
def _dual_row(state, y):
    """Gradient ascent in the dual of the total variation, with projection onto the unit ball."""
    row = state[y]
    below = state[min(y + 1, state.shape[0] - 1)]
    u, v, u_below, v_below = row[AHEAD], row[AHEAD + 1], below[AHEAD], below[AHEAD + 1]
    ux, vx, uy, vy = row[DUAL_X], row[DUAL_X + 1], row[DUAL_Y], row[DUAL_Y + 1]
    rate, one, last = _f(0.5), _f(1), len(u) - 1
    for x in range(last):
        a, b = ux[x] + rate * (u[x + 1] - u[x]), uy[x] + rate * (u_below[x] - u[x])
        c, d = vx[x] + rate * (v[x + 1] - v[x]), vy[x] + rate * (v_below[x] - v[x])
        shrink = one / np.sqrt(max(one, a * a + b * b + c * c + d * d))
        ux[x], uy[x], vx[x], vy[x] = a * shrink, b * shrink, c * shrink, d * shrink
    b, d = uy[last] + rate * (u_below[last] - u[last]), vy[last] + rate * (v_below[last] - v[last])
    shrink = one / np.sqrt(max(one, b * b + d * d))
    uy[last], vy[last] = b * shrink, d * shrink


@compiled
def _data_row(row, box):
    """Gradient ascent in the dual of the data term of each channel, clipped to its bound."""
    channels = len(box)
    u, v = row[AHEAD], row[AHEAD + 1]
    for c in range(channels):
        dual, bound = row[DATA + c], box[c]
        slope_x, slope_y = row[DATA + SLOPE_X * channels + c], row[DATA + SLOPE_Y * channels + c]
        constant, step = row[DATA + CONSTANT * channels + c], row[DATA + DATA_STEP * channels + c]
        for x in range(len(u)):
            raised = dual[x] + step[x] * (constant[x] + slope_x[x] * u[x] + slope_y[x] * v[x])
            dual[x] = min(max(raised, -bound), bound)


@compiled
def _primal_row(state, y, channels, nothing):
    """Gradient descent of the flow, then its extrapolation, whose fields (AHEAD) first serve as scratch space."""
    row = state[y]
    for component in range(2):
        flow, ahead, step = row[FLOW + component], row[AHEAD + component], row[STEP + component]
        dual_x, dual_y = row[DUAL_X + component], row[DUAL_Y + component]
        above = state[y - 1, DUAL_Y + component] if y > 0 else nothing
        ahead[0] = dual_x[0] + dual_y[0] - above[0]
        for x in range(1, len(flow)):
            ahead[x] = dual_x[x] - dual_x[x - 1] + dual_y[x] - above[x]
        for c in range(channels):
            dual, slope = row[DATA + c], row[DATA + (SLOPE_X + component) * channels + c]
            for x in range(len(flow)):
                ahead[x] -= dual[x] * slope[x]
        for x in range(len(flow)):
            moved = flow[x] + step[x] * ahead[x]
            ahead[x] = moved + moved - flow[x]
            flow[x] = moved


@compiled
def limit(state, start, most):
    """Limit each component of the flow to at most `most` pixels from its value in `start` (H, 2, W)."""
    for y in range(state.shape[0]):
        for component in range(2):
            flow, begun = state[y, FLOW + component], start[y, component]
            for x in range(len(flow)):
                flow[x] = begun[x] + min(max(flow[x] - begun[x], -most), most)


@compiled
def trust(state, box, per_cost, floor, trusted):
    """Write the confidence in the flow at each pixel into `trusted` (H, W); see `tvl1_torch._trust`."""
    channels, one = len(box), _f(1)
    for y in range(state.shape[0]):
        row, cost = state[y], trusted[y]
        u, v = row[FLOW], row[FLOW + 1]
        cost[:] = 0
        for c in range(channels):
            slope_x, slope_y = row[DATA + SLOPE_X * channels + c], row[DATA + SLOPE_Y * channels + c]
            constant, weight = row[DATA + CONSTANT * channels + c], box[c] * per_cost
            for x in range(len(u)):
                cost[x] += weight * abs(constant[x] + slope_x[x] * u[x] + slope_y[x] * v[x])
        for x in range(len(u)):
            cost[x] = floor + (one - floor) / (one + cost[x] * cost[x])
