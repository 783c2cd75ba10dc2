"""Red-black successive over-relaxation of two coupled fields on a grid, as batches of torch tensors.

The pixels are colored like a chessboard. All neighbors of a red pixel are black, so all red ones are updated at once,
then all black ones. The colors are stored apart, each as a packed image of half the width, and every step is
elementwise over shifted views of it. There is no reduction, so an image gives the same bits alone and in any batch, and
no pixel is computed needlessly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.flow.brox_model import RELAXATION, SINGULAR


class _Color(NamedTuple):
    """The linear system of the pixels of one color; all but `padded` are (N, 1 or 2, H * half width)."""

    above: Tensor  # weight of the neighbor above; all neighbors are of the other color
    below: Tensor  # weight of the neighbor below
    same: Tensor  # weight of the neighbor in the same column of the packed image
    before: Tensor  # weight of the neighbor one packed column before; 0 for pixels in odd columns
    after: Tensor  # weight of the neighbor one packed column after; 0 for pixels in even columns
    diagonal: Tensor  # diagonal of the inverse of the pixel's own 2 x 2 matrix, times RELAXATION
    off: Tensor  # off-diagonal element of that inverse, times RELAXATION
    right: Tensor  # right-hand side b
    padded: Tensor  # the unknowns, with a row of zeros above and below: (N, 2, (H + 2) * half width)


def solve(flow: Tensor, across: Tensor, down: Tensor, matrix: Tensor, right: Tensor, *, sweeps: int) -> Tensor:
    """Improve the solution U of  A_i U_i + sum over the four neighbors j of w_ij (U_i - U_j) = b_i  at every pixel i.

    Args:
        flow: (N, 2, H, W) float32 or float64, where to start; all arguments have its type.
        across: (N, 1, H, W - 1) weights w > 0 between each pixel and the one to its right.
        down: (N, 1, H - 1, W) weights between each pixel and the one below.
        matrix: (N, 3, H, W), A11, A12 = A21 and A22 of the symmetric, positive semi-definite A.
        right: (N, 2, H, W), the right-hand side b.
        sweeps: number of updates of every pixel; fixed, so no image depends on the others in its batch.

    Returns:
        (N, 2, H, W) of the same type.

    Source: D. M. Young, Iterative solution of large linear systems, 1971; both unknowns of a pixel are solved for
    together, as in Bruhn, Weickert, Schnorr, Lucas/Kanade meets Horn/Schunck, IJCV 61(3), 2005.
    """
    height, width = flow.shape[-2:]
    coefficients = _coefficients(flow, across, down, matrix, right)
    if width % 2:
        coefficients = functional.pad(coefficients, (0, 1))
    red, black = (_color(coefficients, color) for color in (0, 1))
    sums = torch.empty_like(red.right)
    for _ in range(sweeps):
        _update(red, black.padded, sums, height)
        _update(black, red.padded, sums, height)
    halves = [color.padded.unflatten(-1, (height + 2, -1))[..., 1:-1, :] for color in (red, black)]
    pairs = torch.stack(halves, -1)
    pairs[..., 1::2, :, :] = pairs[..., 1::2, :, :].flip(-1)
    return pairs.flatten(-2)[..., :width]


def _coefficients(flow: Tensor, across: Tensor, down: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    """What a pixel's update needs, (N, 11, H, W): 4 weights, 3 elements of the inverse times RELAXATION, b, U."""
    across, down = functional.pad(across, (1, 1)), functional.pad(down, (0, 0, 1, 1))
    weights = torch.cat((down[..., :-1, :], down[..., 1:, :], across[..., :-1], across[..., 1:]), 1)
    total = weights.sum(1, keepdim=True)
    first, off, last = matrix[:, :1] + total, matrix[:, 1:2], matrix[:, 2:] + total
    scale = (first * last).sub_(off.square()).clamp_min_(SINGULAR).reciprocal_().mul_(RELAXATION)
    return torch.cat((weights, last * scale, first * scale, -off * scale, right, flow), 1)


def _color(coefficients: Tensor, color: int) -> _Color:
    """Pick the pixels of one color: in row y, the columns 2 c + (y + color) % 2, which are packed into columns c."""
    pairs = coefficients.unflatten(-1, (-1, 2))
    packed = pairs[..., color].clone()
    packed[..., 1::2, :] = pairs[..., 1::2, :, 1 - color]
    odd = ((torch.arange(packed.shape[-2], device=packed.device) + color) % 2).to(packed.dtype).unsqueeze(1)
    even = 1 - odd
    above, below, left, after = packed[:, :4].split(1, 1)
    neighbors = above, below, left * odd + after * even, left * even, after * odd
    parts = [part.flatten(2) for part in (*neighbors, packed[:, 4:6], packed[:, 6:7], packed[:, 7:9])]
    return _Color(*parts, padded=functional.pad(packed[:, 9:], (0, 0, 1, 1)).flatten(2))


def _update(own: _Color, other: Tensor, sums: Tensor, height: int) -> None:
    """Relax the pixels of one color, given the padded unknowns of the other."""
    size = sums.shape[-1]
    row = size // height
    torch.addcmul(own.right, own.above, other[..., :size], out=sums)
    sums.addcmul_(own.below, other[..., 2 * row : 2 * row + size])
    sums.addcmul_(own.same, other[..., row : row + size])
    # where the shifted view crosses the end of a row, the weight is zero
    sums.addcmul_(own.before, other[..., row - 1 : row - 1 + size])
    sums.addcmul_(own.after, other[..., row + 1 : row + 1 + size])
    unknowns = own.padded[..., row : row + size]
    unknowns.mul_(1 - RELAXATION).addcmul_(own.diagonal, sums)
    unknowns[:, :1].addcmul_(own.off, sums[:, 1:])
    unknowns[:, 1:].addcmul_(own.off, sums[:, :1])
