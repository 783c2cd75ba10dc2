"""Triton kernels for images, counterparts of those in `warp`. Each program computes one tile of one image.

Images are contiguous (N, planes, H, W) float32 or float64; arithmetic has the precision of what is loaded. Coordinates
are clamped, so borders repeat and loads need no masks; only stores are masked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pipeline.flow import filters

_INNER = tl.constexpr(filters.DERIVATIVE[3])
_OUTER = tl.constexpr(filters.DERIVATIVE[4])
SIZE = ["height", "width"]  # new values of these do not make Triton recompile a kernel


@triton.jit(do_not_specialize=SIZE)
def blur(
    images,
    blurred,
    taps,
    height,
    width,
    RADIUS: tl.constexpr,
    ALONG_X: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Symmetric filter along one axis with (2 RADIUS + 1,) taps, computed in float64. Images may be uint8."""
    x, y, stored, image = tile(height, width, ROWS, COLUMNS)
    images += image * height * width
    here = y * width + x
    total = tl.load(taps + RADIUS) * tl.load(images + here).to(tl.float64)
    for k in tl.static_range(1, RADIUS + 1):
        if ALONG_X:
            low, high = y * width + tl.maximum(x - k, 0), y * width + tl.minimum(x + k, width - 1)
        else:
            low, high = tl.maximum(y - k, 0) * width + x, tl.minimum(y + k, height - 1) * width + x
        both = tl.load(images + low).to(tl.float64) + tl.load(images + high).to(tl.float64)
        total += tl.load(taps + RADIUS + k) * both
    tl.store(blurred + image * height * width + here, total, mask=stored)


@triton.jit(do_not_specialize=["from_height", "from_width", *SIZE])
def resize(
    images,
    resized,
    from_height,
    from_width,
    height,
    width,
    PLANES: tl.constexpr,
    FLOW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Bilinear resizing in the images' precision; with FLOW, vectors are scaled with the grid; see `warp.resize`.

    A pixel's position in the source is a fraction with denominator 2 width (or 2 height). Integers keep it exact,
    whereas floating point loses precision with distance from the origin. To find it takes longer than resizing a plane.
    """
    x, y, stored, image = tile(height, width, ROWS, COLUMNS)
    images += image * PLANES * from_height * from_width
    resized += image * PLANES * height * width + y * width + x
    left, right, t = _source(x, from_width, width)
    top, bottom, s = _source(y, from_height, height)
    top, bottom = top * from_width, bottom * from_width
    t, s = t.to(images.dtype.element_ty), s.to(images.dtype.element_ty)
    for plane in tl.static_range(PLANES):
        upper_left, lower_left = tl.load(images + top + left), tl.load(images + bottom + left)
        upper = upper_left + t * (tl.load(images + top + right) - upper_left)
        lower = lower_left + t * (tl.load(images + bottom + right) - lower_left)
        value = upper + s * (lower - upper)
        if FLOW:  # first x, then y
            value *= (width if plane == 0 else height).to(value.dtype)
            value /= (from_width if plane == 0 else from_height).to(value.dtype)
        tl.store(resized, value, mask=stored)
        images += from_height * from_width
        resized += height * width


@triton.jit(do_not_specialize=SIZE, do_not_specialize_on_alignment=["moving"])
def warp(
    moving, flow, warped, inside, height, width, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Bicubic sampling of every channel at the points that the flow leads to; see `warp.warp`."""
    x, y, stored, image = tile(height, width, ROWS, COLUMNS)
    plane, here = height * width, y * width + x
    flow += image * 2 * plane
    left, t, out_x = _landing(x, tl.load(flow + here), width - 1)
    top, s, out_y = _landing(y, tl.load(flow + plane + here), height - 1)
    tl.store(inside + image * plane + here, tl.maximum(1 - out_x - out_y, 0.0), mask=stored)
    for c in tl.static_range(CHANNELS):
        source = moving + (image * CHANNELS + c) * plane
        total = tl.zeros_like(t)
        for row in tl.static_range(4):
            at = tl.minimum(tl.maximum(top + (row - 1), 0), height - 1) * width
            line = tl.zeros_like(t)
            for column in tl.static_range(4):
                value = tl.load(source + at + tl.minimum(tl.maximum(left + (column - 1), 0), width - 1))
                line += _cubic(t, column) * value
            total += _cubic(s, row) * line
        tl.store(warped + (image * CHANNELS + c) * plane + here, total, mask=stored)


@triton.jit
def _landing(start, motion, last):
    """Where points land along one axis; see `warp._landing`."""
    whole = tl.floor(motion)
    fraction, before = motion - whole, start + whole.to(tl.int32)
    outside = tl.maximum(-before - fraction, 0.0) + tl.maximum(before - last + fraction, 0.0)
    fraction = tl.where((before < 0) | (before >= last), 0.0, fraction)
    return tl.minimum(tl.maximum(before, 0), last), fraction, outside


@triton.jit
def tile(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns and rows of this program's pixels, clamped; whether each lies in the image; the image's index.

    A tile is a flat range, row after row. For a tile with two axes, Triton would choose which threads are adjacent;
    since clamping hides which pixels are contiguous, some versions (3.6) choose those of a column.
    """
    across, down = tl.cdiv(width, COLUMNS), tl.cdiv(height, ROWS)
    image, number = tl.program_id(0) // (across * down), tl.program_id(0) % (across * down)
    place = tl.arange(0, ROWS * COLUMNS)
    x, y = number % across * COLUMNS + place % COLUMNS, number // across * ROWS + place // COLUMNS
    stored = (x < width) & (y < height)
    return tl.minimum(x, width - 1), tl.minimum(y, height - 1), stored, image.to(tl.int64)


@triton.jit
def slopes(image, x, y, height, width):
    """Derivatives along x and y by the five-point stencil, per pixel."""
    row, last_x, last_y = image + y * width, width - 1, height - 1
    outer = tl.load(row + tl.minimum(x + 2, last_x)) - tl.load(row + tl.maximum(x - 2, 0))
    inner = tl.load(row + tl.minimum(x + 1, last_x)) - tl.load(row + tl.maximum(x - 1, 0))
    slope_x = outer * _OUTER + inner * _INNER
    column = image + x
    outer = tl.load(column + tl.minimum(y + 2, last_y) * width) - tl.load(column + tl.maximum(y - 2, 0) * width)
    inner = tl.load(column + tl.minimum(y + 1, last_y) * width) - tl.load(column + tl.maximum(y - 1, 0) * width)
    return slope_x, outer * _OUTER + inner * _INNER


@triton.jit
def _source(to, from_size, to_size):
    """Source pixels before and after a pixel of the resized image, and its distance from the first, in [0, 1)."""
    position = tl.maximum((2 * to + 1) * from_size - to_size, 0)
    before = position // (2 * to_size)
    share = (position - before * 2 * to_size).to(tl.float64) / (2 * to_size).to(tl.float64)
    return before, tl.minimum(before + 1, from_size - 1), share


@triton.jit
def _cubic(t, k: tl.constexpr):
    """Weight of the neighbor at k - 1 of a point at t in [0, 1); exactly 0, 1, 0, 0 for t = 0."""
    if k == 0:
        return t * (t * (1 - 0.5 * t) - 0.5)
    if k == 1:
        return t * t * (1.5 * t - 2.5) + 1
    if k == 2:
        return t * (t * (2 - 1.5 * t) + 0.5)
    return t * t * (0.5 * t - 0.5)
