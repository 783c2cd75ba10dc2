"""The compiled loops of `tvl1_numba`, over the rows of an image and along them.

The state is (H, fields, W) float32: all fields of a row side by side. What runs along a row is a plain loop, which LLVM
turns into vector instructions.
"""

from __future__ import annotations

import numpy as np

from pipeline.flow.compiled import compiled

_f = np.float32
# fields, two each for x and y; from DATA on, five groups of one field a channel: the dual variable, then these
FLOW, AHEAD, DUAL_X, DUAL_Y, STEP, WEIGHT, DATA = 0, 2, 4, 6, 8, 10, 11
SLOPE_X, SLOPE_Y, CONSTANT, DATA_STEP, GROUPS = 1, 2, 3, 4, 5


@compiled
def warp(moving, state, warped, inside):
    """Bicubic look-up of every channel (C, H + 3, W + 3, padded) at the points the flow leads to; see `warp.warp`."""
    channels, height, width = warped.shape
    one, half, zero = _f(1), _f(0.5), _f(0)
    for v in range(height):
        flow_x, flow_y = state[v, FLOW], state[v, FLOW + 1]
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


@compiled
def linearise(warped, still, inside, state, derivative, balance, flat):
    """Slopes, constant and steps of the data term around the present flow, into the state."""
    channels, height, width = warped.shape
    half, one = _f(0.5), _f(1)
    line = np.empty(width + 4, np.float32)
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
                constant[x] = (
                    warped[c, y, x] - still[c, y, x] - slope_x[x] * row[FLOW, x] - slope_y[x] * row[FLOW + 1, x]
                )
                step[x] = balance / (abs(slope_x[x]) + abs(slope_y[x]) + flat)
                step_x[x] += abs(slope_x[x])
                step_y[x] += abs(slope_y[x])
        for x in range(width):
            step_x[x] = one / (balance * step_x[x])
            step_y[x] = one / (balance * step_y[x])
            row[AHEAD, x] = row[FLOW, x]
            row[AHEAD + 1, x] = row[FLOW + 1, x]


@compiled
def solve(state, box, iterations, balance):
    """All primal-dual iterations of a warping in one sweep over the rows."""
    height = state.shape[0]
    for time in range(height + iterations - 1):
        for k in range(max(0, time - height + 1), min(iterations, time + 1)):
            y = time - k  # of iteration k - 1, row y + 1 was done just now, and it will touch neither y nor y - 1 again
            _dual_row(state, y, balance)
            _data_row(state[y], box)
            _primal_row(state, y, len(box))


@compiled
def _dual_row(state, y, balance):
    """Ascend in the dual of the total variation, and shrink it to the length `weight`."""
    row = state[y]
    below = state[min(y + 1, state.shape[0] - 1)]
    u, v, u_below, v_below = row[AHEAD], row[AHEAD + 1], below[AHEAD], below[AHEAD + 1]
    ux, vx, uy, vy, weight = row[DUAL_X], row[DUAL_X + 1], row[DUAL_Y], row[DUAL_Y + 1], row[WEIGHT]
    rate, last = _f(0.5) * balance, len(u) - 1
    for x in range(last):
        a, b = ux[x] + rate * (u[x + 1] - u[x]), uy[x] + rate * (u_below[x] - u[x])
        c, d = vx[x] + rate * (v[x + 1] - v[x]), vy[x] + rate * (v_below[x] - v[x])
        shrink = weight[x] / max(weight[x], np.sqrt(a * a + b * b + c * c + d * d))
        ux[x], uy[x], vx[x], vy[x] = a * shrink, b * shrink, c * shrink, d * shrink
    b, d = uy[last] + rate * (u_below[last] - u[last]), vy[last] + rate * (v_below[last] - v[last])
    shrink = weight[last] / max(weight[last], np.sqrt(b * b + d * d))
    uy[last], vy[last] = b * shrink, d * shrink


@compiled
def _data_row(row, box):
    """Ascend in the dual of the data term of each channel, and clip it."""
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
def _primal_row(state, y, channels):
    """Descend with the flow, and look ahead by as much again; the fields of the latter serve as scratch before."""
    row = state[y]
    for component in range(2):
        flow, ahead, step = row[FLOW + component], row[AHEAD + component], row[STEP + component]
        dual_x, dual_y = row[DUAL_X + component], row[DUAL_Y + component]
        if y > 0:
            above = state[y - 1, DUAL_Y + component]
            for x in range(len(flow)):
                ahead[x] = dual_x[x] + dual_y[x] - above[x]
        else:
            for x in range(len(flow)):
                ahead[x] = dual_x[x] + dual_y[x]
        for x in range(1, len(flow)):
            ahead[x] -= dual_x[x - 1]
        for c in range(channels):
            dual, slope = row[DATA + c], row[DATA + (SLOPE_X + component) * channels + c]
            for x in range(len(flow)):
                ahead[x] -= dual[x] * slope[x]
        for x in range(len(flow)):
            moved = flow[x] + step[x] * ahead[x]
            ahead[x] = moved + moved - flow[x]
            flow[x] = moved
