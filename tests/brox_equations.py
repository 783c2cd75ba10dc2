"""The equations of Brox flow in plain numpy, pixel by pixel, and a step whose result they give."""

import cv2
import numpy as np
import torch

from pipeline.flow import brox_model, warp
from pipeline.specs import FlowSpec


def dense(flow, across, down, matrix, right):
    """The same system as one dense matrix, unknowns in the order u0 v0 u1 v1 ..., row by row."""
    height, width = flow.shape[1:]
    system, known = np.zeros((2 * height * width,) * 2), np.zeros(2 * height * width)
    for y in range(height):
        for x in range(width):
            i = 2 * (y * width + x)
            system[i : i + 2, i : i + 2] += [[matrix[0, y, x], matrix[1, y, x]], [matrix[1, y, x], matrix[2, y, x]]]
            known[i : i + 2] = right[:, y, x]
            ahead = ([(i + 2, across[y, x])] if x + 1 < width else []) + (
                [(i + 2 * width, down[y, x])] if y + 1 < height else []
            )
            for j, weight in ahead:
                for k in (0, 1):
                    system[[i + k, j + k], [i + k, j + k]] += weight
                    system[[i + k, j + k], [j + k, i + k]] -= weight
    return np.linalg.solve(system, known).reshape(height, width, 2).transpose(2, 0, 1)


def slope(image, axis):
    """Five-point derivative, borders repeated."""
    size, taps = image.shape[axis], {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
    return sum(tap * np.take(image, np.clip(np.arange(size) + k, 0, size - 1), axis) for k, tap in taps.items())


def euler_lagrange(first, warped, inside, flow, spec):
    """One linearized step from `flow`, from the energy's definition, pixel by pixel."""
    height, width = first.shape
    bright = [(slope(first, axis) + slope(warped, axis)) / 2 for axis in (1, 0)]
    change = [warped - first, *(slope(warped, axis) - slope(first, axis) for axis in (1, 0))]
    normals = [bright, *([slope(side, 1), slope(side, 0)] for side in bright)]
    matrix, right = np.zeros((3, height, width)), np.zeros((2, height, width))
    for y, x in zip(*np.nonzero(inside), strict=True):
        slopes = [np.array([along_x[y, x], along_y[y, x]]) for along_x, along_y in normals]
        scales = [inside[y, x] / np.sqrt(n @ n + brox_model.STEEP**2) for n in slopes]
        far = [
            (difference[y, x] * scale / brox_model.FAR_PX) ** 2
            for difference, scale in zip(change, scales, strict=True)
        ]
        scales = [scales[0] / (1 + far[0]), *(scale / (1 + far[1] + far[2]) for scale in scales[1:])]
        rows = []
        for n, difference, scale in zip(slopes, change, scales, strict=True):
            # at the present flow the linearized constraint is the difference itself
            rows.append((n * scale, (difference[y, x] - n @ flow[:, y, x]) * scale, difference[y, x] * scale))
        gray = 1 / np.hypot(rows[0][2], brox_model.DATA_EPSILON_PX)
        gradient = spec.brox_gradient_weight / np.sqrt(
            rows[1][2] ** 2 + rows[2][2] ** 2 + brox_model.DATA_EPSILON_PX**2
        )
        for (n, constant, _), weight in zip(rows, (gray, gradient, gradient), strict=True):
            matrix[:, y, x] += weight * np.array([n[0] * n[0], n[0] * n[1], n[1] * n[1]])
            right[:, y, x] -= weight * n * constant

    def central(y, x, dy, dx):
        """Squared central derivative along (dy, dx); the flow goes on unchanged beyond the border."""
        ahead, behind = (np.clip([y + s * dy, x + s * dx], 0, [height - 1, width - 1]) for s in (1, -1))
        return (((flow[:, *ahead] - flow[:, *behind]) / 2) ** 2).sum()

    def weight(y, x, dy, dx):
        along = ((flow[:, y + dy, x + dx] - flow[:, y, x]) ** 2).sum()
        other = (central(y, x, dx, dy) + central(y + dy, x + dx, dx, dy)) / 2
        edge = np.exp(-brox_model.EDGE * abs(first[y + dy, x + dx] - first[y, x]))
        return edge * spec.brox_smoothness / np.sqrt(along + other + brox_model.SMOOTH_EPSILON**2)

    across = np.array([[weight(y, x, 0, 1) for x in range(width - 1)] for y in range(height)])
    down = np.array([[weight(y, x, 1, 0) for x in range(width)] for y in range(height - 1)])
    return dense(flow, across, down, matrix, right)


def one_step(height, width):
    """Settings, a first image, a flow, the second image warped by it, and the step from there that is expected."""
    rng = np.random.default_rng(4)
    first, second = (cv2.GaussianBlur(rng.uniform(0, 255, (height, width)), (0, 0), 1.0) for _ in range(2))
    flow = rng.uniform(-1.5, 1.5, (2, height, width))
    spec = FlowSpec(method="brox", brox_sweeps=500, brox_smoothness=1.5, brox_gradient_weight=2.0)
    given = [torch.from_numpy(part.astype(np.float32))[None] for part in (first[None], second[None], flow)]
    warped, inside = (part[0, 0].numpy() for part in warp.warp(given[1], given[2]))
    assert inside.max() == 1 and inside.min() == 0
    return spec, given, (first, warped.astype(float), inside.astype(float), flow)
