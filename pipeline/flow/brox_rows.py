"""The compiled loops of `brox_numba`, over the rows of an image and along them.

The state is (H, FIELDS, W), float32 or float64, with all fields of a row side by side. Work along a row is a plain
loop, which LLVM turns into vector instructions. Constants are float32 (`_f`), and exact: they preserve either
precision, whereas a Python number would turn float32 into float64.
"""

from __future__ import annotations

import numpy as np

from pipeline.flow.compiled import compiled

_f = np.float32
# first fields: the flow, two; a, b and c of the constraints, three each; smoothness to the pixel on the right (0 in the
# last column), and to the pixel below (0 in the last row)
FLOW, A, B, C, SMOOTH_X, SMOOTH_Y, FIELDS = 0, 2, 5, 8, 11, 12, 13
# what the update of a pixel needs: weights of its neighbors above, below, left and right; two diagonal elements of its
# inverse matrix and the other element; two right-hand sides
_ABOVE, _BELOW, _LEFT, _RIGHT, _INVERSE, _OFF, _KNOWN, PARTS = 0, 1, 2, 3, 4, 6, 7, 9


@compiled
def gradient(image, derivative, slopes):
    """Write the derivatives of an image (H, W) along x and y into (2, H, W); see `warp.gradient`.

    Not OpenCV's, as `constrain` computes those of the warped image: of equal images, both must have the same bits.
    """
    line = np.empty(image.shape[1] + 4, image.dtype)
    for y in range(image.shape[0]):
        _slopes(image, y, derivative, line, slopes[0, y], slopes[1, y])


@compiled
def _slopes(image, y, derivative, line, slope_x, slope_y):
    """Derivatives of one row of an image; `line` (W + 4) is scratch space."""
    height, width = image.shape
    up2, up1, down1, down2 = max(y - 2, 0), max(y - 1, 0), min(y + 1, height - 1), min(y + 2, height - 1)
    above2, above, below, below2 = image[up2], image[up1], image[down1], image[down2]
    outer, inner, row = derivative[4], derivative[3], image[y]
    for x in range(width):
        slope_y[x] = outer * (below2[x] - above2[x]) + inner * (below[x] - above[x])
        line[x + 2] = row[x]
    line[0] = line[1] = row[0]
    line[width + 2] = line[width + 3] = row[width - 1]
    for x in range(width):
        slope_x[x] = outer * (line[x + 4] - line[x]) + inner * (line[x + 3] - line[x + 1])


@compiled
def constrain(state, warped, first, still, inside, mean, derivative, steep2, per_far2):
    """Write the constraints, linearized about the flow, into the state; see `brox_torch._constraints`.

    `still` (2, H, W) are the slopes of the first image. `mean` (2, H, W) is scratch space: slopes averaged over both.
    """
    height, width = first.shape
    half, line = _f(0.5), np.empty(width + 4, first.dtype)
    for y in range(height):
        row = state[y]
        _slopes(warped, y, derivative, line, mean[0, y], mean[1, y])
        for k in range(2):
            moved, of_first, change = mean[k, y], still[k, y], row[C + 1 + k]
            for x in range(width):
                change[x] = moved[x] - of_first[x]
                moved[x] = half * (moved[x] + of_first[x])
    for y in range(height):
        row = state[y]
        row[A], row[B] = mean[0, y], mean[1, y]
        for k in range(2):
            _slopes(mean[k], y, derivative, line, row[A + 1 + k], row[B + 1 + k])
        row[C] = warped[y] - first[y]
        _scale_row(row, inside[y], steep2, per_far2)


@compiled
def _scale_row(row, inside, steep2, per_far2):
    """Divide the constraints of a row by their slopes, weigh down those that are far, and refer them to the flow."""
    one, width = _f(1), row.shape[1]
    u, v, line = row[FLOW], row[FLOW + 1], np.empty((3, width), row.dtype)
    for k in range(3):
        a, b, c, scale = row[A + k], row[B + k], row[C + k], line[k]
        for x in range(width):
            scale[x] = inside[x] / np.sqrt(a[x] * a[x] + b[x] * b[x] + steep2)
    gray, along_x, along_y, c_gray, c_x, c_y = line[0], line[1], line[2], row[C], row[C + 1], row[C + 2]
    for x in range(width):
        far_gray, far_x, far_y = c_gray[x] * gray[x], c_x[x] * along_x[x], c_y[x] * along_y[x]
        near = one / (one + per_far2 * (far_x * far_x + far_y * far_y))
        gray[x] /= one + per_far2 * (far_gray * far_gray)
        along_x[x] *= near
        along_y[x] *= near
    for k in range(3):
        a, b, c, scale = row[A + k], row[B + k], row[C + k], line[k]
        for x in range(width):
            a[x] *= scale[x]
            b[x] *= scale[x]
            c[x] = c[x] * scale[x] - a[x] * u[x] - b[x] * v[x]


@compiled
def solve(state, parts, unknowns, sweeps, numbers):
    """One inner fixed point iteration: penalties at the current flow, then red-black over-relaxation, in one sweep.

    Half a sweep, over the pixels of one color, does row y right after the half before it has done row y + 1, so that
    what it reads is still in the cache. The arithmetic is that of one half after another.

    Args:
        state: (H, FIELDS, W); its flow is improved.
        parts: (2, H, PARTS, half width), scratch space, for each color; see `sor._color` for how pixels are packed.
        unknowns: (2, H + 2, 2, half width + 2), zero; scratch space as well.
        sweeps: number of updates of every pixel.
        numbers: gradient weight, squares of both epsilons, relaxation, least determinant, in the state's type.
    """
    height, width, half_width = state.shape[0], state.shape[2], parts.shape[3]
    halves, penalty = 2 * sweeps, np.zeros((4, width), state.dtype)  # rows y % 2 of squares along x, and weights below
    line = np.zeros((PARTS + 2, 2 * half_width), state.dtype)
    for time in range(height + halves):
        if time < height:
            _system_row(state, time, penalty, line, numbers)
            _pack(line, time, parts, unknowns)
        for k in range(max(0, time - height), min(halves, time)):
            y, color = time - 1 - k, k % 2
            own, other = unknowns[color, y + 1], unknowns[1 - color]
            _relax(parts[color, y], own, other[y], other[y + 1], other[y + 2], (y + color) % 2, numbers[3])
    for y in range(height):
        _unpack(state[y], y, unknowns)


@compiled
def _system_row(state, y, penalty, line, numbers):
    """Write what the updates of a row need into `line` (PARTS + 2, even width), the flow last."""
    width, height = state.shape[2], state.shape[0]
    row, here = state[y], penalty[2 + y % 2]  # weights between this row and the next
    above = penalty[3 - y % 2]
    if y == 0:
        _square_along_x(row, penalty[0])
        above[:] = 0
    if y + 1 < height:
        _square_along_x(state[y + 1], penalty[(y + 1) % 2])
    _weights_below(row, state[min(y + 1, height - 1)], penalty[y % 2], penalty[(y + 1) % 2], here, numbers[2])
    across = line[_RIGHT]
    _weights_across(row, state[max(y - 1, 0)], state[min(y + 1, height - 1)], across, line[_LEFT], numbers[2])
    line[_ABOVE, :width] = above
    line[_BELOW, :width] = here
    left = line[_LEFT]
    left[0] = 0
    for x in range(1, width):
        left[x] = across[x - 1]
    _data_row(row, line, numbers)


@compiled
def _square_along_x(row, square):
    """Squared length of the flow's central derivative along x, at every pixel of a row; the flow goes on at borders."""
    u, v, half, last = row[FLOW], row[FLOW + 1], _f(0.5), len(square) - 1
    for x in range(1, last):
        a, b = half * (u[x + 1] - u[x - 1]), half * (v[x + 1] - v[x - 1])
        square[x] = a * a + b * b
    if last > 0:
        for x, before, after in ((0, 0, 1), (last, last - 1, last)):
            a, b = half * (u[after] - u[before]), half * (v[after] - v[before])
            square[x] = a * a + b * b


@compiled
def _weights_below(row, below, square, square_below, weight, epsilon2):
    """Smoothness divided by the length of the flow's derivative, between the pixels of a row and those below."""
    u, v, u_below, v_below, smooth = row[FLOW], row[FLOW + 1], below[FLOW], below[FLOW + 1], row[SMOOTH_Y]
    half = _f(0.5)
    for x in range(len(weight)):
        a, b = u_below[x] - u[x], v_below[x] - v[x]
        weight[x] = smooth[x] / np.sqrt(a * a + b * b + half * (square[x] + square_below[x]) + epsilon2)


@compiled
def _weights_across(row, above, below, weight, square, epsilon2):
    """The same between each pixel of a row and the next; `square` is scratch space."""
    width, half = row.shape[1], _f(0.5)
    u, v, smooth = row[FLOW], row[FLOW + 1], row[SMOOTH_X]
    u_above, v_above, u_below, v_below = above[FLOW], above[FLOW + 1], below[FLOW], below[FLOW + 1]
    for x in range(width):
        a, b = half * (u_below[x] - u_above[x]), half * (v_below[x] - v_above[x])
        square[x] = a * a + b * b
    for x in range(width - 1):
        a, b = u[x + 1] - u[x], v[x + 1] - v[x]
        weight[x] = smooth[x] / np.sqrt(a * a + b * b + half * (square[x] + square[x + 1]) + epsilon2)
    weight[width - 1] = 0


@compiled
def _data_row(row, line, numbers):
    """Add the data term to a row's system, invert each pixel's matrix, and copy the flow."""
    gradient_weight, epsilon2, relaxation, singular, one = numbers[0], numbers[1], numbers[3], numbers[4], _f(1)
    u, v = row[FLOW], row[FLOW + 1]
    a0, a1, a2, b0, b1, b2 = row[A], row[A + 1], row[A + 2], row[B], row[B + 1], row[B + 2]
    c0, c1, c2 = row[C], row[C + 1], row[C + 2]
    above, below, left, right = line[_ABOVE], line[_BELOW], line[_LEFT], line[_RIGHT]
    first, last, off = line[_INVERSE], line[_INVERSE + 1], line[_OFF]
    known_u, known_v, start_u, start_v = line[_KNOWN], line[_KNOWN + 1], line[PARTS], line[PARTS + 1]
    for x in range(len(u)):
        r0, r1, r2 = (
            c0[x] + a0[x] * u[x] + b0[x] * v[x],
            c1[x] + a1[x] * u[x] + b1[x] * v[x],
            c2[x] + a2[x] * u[x] + b2[x] * v[x],
        )
        gray = one / np.sqrt(r0 * r0 + epsilon2)
        edge = gradient_weight / np.sqrt(r1 * r1 + r2 * r2 + epsilon2)
        known_u[x] = -(gray * a0[x] * c0[x] + edge * (a1[x] * c1[x] + a2[x] * c2[x]))
        known_v[x] = -(gray * b0[x] * c0[x] + edge * (b1[x] * c1[x] + b2[x] * c2[x]))
        total = above[x] + below[x] + left[x] + right[x]
        m11 = gray * a0[x] * a0[x] + edge * (a1[x] * a1[x] + a2[x] * a2[x]) + total
        m22 = gray * b0[x] * b0[x] + edge * (b1[x] * b1[x] + b2[x] * b2[x]) + total
        m12 = gray * a0[x] * b0[x] + edge * (a1[x] * b1[x] + a2[x] * b2[x])
        scale = relaxation / max(m11 * m22 - m12 * m12, singular)
        first[x], last[x], off[x] = m22 * scale, m11 * scale, -m12 * scale
        start_u[x], start_v[x] = u[x], v[x]


@compiled
def _pack(line, y, parts, unknowns):
    """Divide a row between the two colors: color k has the columns 2 c + (y + k) % 2."""
    half_width = parts.shape[3]
    for color in range(2):
        offset = (y + color) % 2
        for part in range(PARTS):
            source, target = line[part], parts[color, y, part]
            for c in range(half_width):
                target[c] = source[2 * c + offset]
        for k in range(2):
            source, target = line[PARTS + k], unknowns[color, y + 1, k]
            for c in range(half_width):
                target[c + 1] = source[2 * c + offset]


@compiled
def _unpack(row, y, unknowns):
    width = row.shape[1]
    for color in range(2):
        offset = (y + color) % 2
        for k in range(2):
            source, target = unknowns[color, y + 1, k], row[FLOW + k]
            for c in range((width - offset + 1) // 2):
                target[2 * c + offset] = source[c + 1]


@compiled
def _relax(parts, own, above, here, below, offset, relaxation):
    """Update the pixels of one color in a row; `above`, `here` and `below` are rows of the other color."""
    rest = _f(1) - relaxation
    weight_above, weight_below, weight_left, weight_right = parts[_ABOVE], parts[_BELOW], parts[_LEFT], parts[_RIGHT]
    first, last, off, known_u, known_v = (
        parts[_INVERSE],
        parts[_INVERSE + 1],
        parts[_OFF],
        parts[_KNOWN],
        parts[_KNOWN + 1],
    )
    u, v = own[0, 1:], own[1, 1:]
    u_above, v_above, u_below, v_below = above[0, 1:], above[1, 1:], below[0, 1:], below[1, 1:]
    u_left, v_left, u_right, v_right = here[0, offset:], here[1, offset:], here[0, offset + 1 :], here[1, offset + 1 :]
    for c in range(parts.shape[1]):
        sum_u = known_u[c] + weight_above[c] * u_above[c] + weight_below[c] * u_below[c]
        sum_v = known_v[c] + weight_above[c] * v_above[c] + weight_below[c] * v_below[c]
        sum_u += weight_left[c] * u_left[c] + weight_right[c] * u_right[c]
        sum_v += weight_left[c] * v_left[c] + weight_right[c] * v_right[c]
        u[c] = rest * u[c] + first[c] * sum_u + off[c] * sum_v
        v[c] = rest * v[c] + last[c] * sum_v + off[c] * sum_u


@compiled
def trust(state, gradient_weight, per_doubt, floor, trusted):
    """Write the confidence in the flow at each pixel into `trusted` (H, W); see `brox_torch._trust`."""
    one = _f(1)
    for y in range(state.shape[0]):
        row, found = state[y], trusted[y]
        u, v = row[FLOW], row[FLOW + 1]
        found[:] = 0
        for k in range(3):
            a, b, c = row[A + k], row[B + k], row[C + k]
            weight = per_doubt if k == 0 else per_doubt * gradient_weight
            for x in range(len(u)):
                found[x] += weight * abs(c[x] + a[x] * u[x] + b[x] * v[x])
        for x in range(len(u)):
            found[x] = floor + (one - floor) / (one + found[x] * found[x])
