"""Image pairs of boxes on a plane, seen by a moving camera; ray-cast, so the motion is exact.

They have what layers (`scenes.py`) lack: depth that varies within a surface, thin objects in front of far ones, faces
with little texture, sharp corners, and motion that is large because something is near.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scenes import NOISE, Pair

GROUND_M, FAR_M = 2.0, 1000.0  # depth of the ground below the eye; distance if nothing is hit
FOCAL = 0.9  # focal length / width of the image
WAVES = 24  # number of sines that make up a texture
OVERSAMPLING = 2  # rays per pixel in each direction
FASTEST_SHARE = 0.015  # share of the pixels that move by more than `reach_px`
KINDS = {  # number of boxes, wavelengths of the textures in meters, their contrast in gray values
    "town": (26, (0.04, 4.0), (3.0, 22.0)),
    "wood": (40, (0.03, 2.0), (14.0, 34.0)),
}


class _Hit(NamedTuple):
    """Where rays meet the world."""

    distance: np.ndarray  # in units of the ray vector's length
    thing: np.ndarray  # index of the box; after the boxes come the ground, then the sky
    axis: np.ndarray  # normal of the face: 0 x, 1 y, 2 z


class _World:
    """Boxes on the ground; x to the right, y down, z ahead, the first camera at the origin."""

    def __init__(self, rng: np.random.Generator, kind: str):
        count, (shortest, longest), contrast = KINDS[kind]
        boxes = [_house(rng) if kind == "town" else _trunk_or_stone(rng) for _ in range(count)]
        self.low, self.high = (np.array(corner) for corner in zip(*boxes, strict=True))
        faces = (count + 1, 3)  # the sky has none
        length = np.exp(rng.uniform(np.log(shortest), np.log(longest), (*faces, WAVES)))
        angle = rng.uniform(0, 2 * np.pi, (*faces, WAVES))
        self.frequency = 2 * np.pi / length[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        self.phase = rng.uniform(0, 2 * np.pi, (*faces, WAVES))
        strength = length**0.45 * rng.uniform(0.3, 1, length.shape)
        strength *= np.sqrt(2 / np.sum(strength**2, -1, keepdims=True))
        self.strength = strength * rng.uniform(*contrast, (*faces, 1))
        self.color, self.shade = rng.uniform(50, 200, (count + 2, 3)), np.array([1.0, 0.8, 1.15])

    def cast(self, eye: np.ndarray, rays: np.ndarray) -> _Hit:
        """The first thing that each ray (H, W, 3) hits."""
        ground = len(self.low)
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse, down = 1 / rays, (GROUND_M - eye[1]) / rays[..., 1]
        met = (down > 0) & (down < FAR_M)
        distance, thing = np.where(met, down, FAR_M), np.where(met, ground, ground + 1)
        axis = np.where(met, 1, 2)
        for number, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            one, other = (low - eye) * inverse, (high - eye) * inverse
            enters, near, far = np.minimum(one, other), np.minimum(one, other).max(-1), np.maximum(one, other).min(-1)
            met = (near < far) & (near > 0.05) & (near < distance)
            distance, thing = np.where(met, near, distance), np.where(met, number, thing)
            axis = np.where(met, enters.argmax(-1), axis)
        return _Hit(distance, thing, axis)

    def paint(self, eye: np.ndarray, rays: np.ndarray, ray_width: float) -> np.ndarray:
        """(H, W, 3) gray values; waves finer than the width of a ray fade out."""
        hit = self.cast(eye, rays)
        points, image = eye + rays * hit.distance[..., None], self.color[hit.thing]
        for number, axis in np.unique(np.stack([hit.thing, hit.axis], -1).reshape(-1, 2), axis=0):
            if number == len(self.low) + 1:
                continue  # the sky is plain
            here = (hit.thing == number) & (hit.axis == axis)
            frequency = self.frequency[number, axis]
            angle = np.delete(points[here], axis, -1) @ frequency.T + self.phase[number, axis]
            blur_m = 0.6 * ray_width * hit.distance[here][:, None] * np.linalg.norm(frequency, axis=-1)
            texture = (np.sin(angle) * np.exp(-0.5 * blur_m**2)) @ self.strength[number, axis]
            image[here] = (image[here] + texture[:, None]) * self.shade[axis]
        return image


def _house(rng: np.random.Generator) -> tuple[list[float], list[float]]:
    ahead = rng.uniform(6, 60)
    aside = rng.choice([-1, 1]) * rng.uniform(2, 4 + 0.6 * ahead)
    return _box(aside, ahead, rng.uniform(1.5, 6), rng.uniform(2, 6), rng.uniform(3, 14))


def _trunk_or_stone(rng: np.random.Generator) -> tuple[list[float], list[float]]:
    ahead = rng.uniform(3.5, 22)
    aside = rng.uniform(-0.7, 0.7) * ahead
    if rng.random() < 0.6:
        return _box(aside, ahead, *[rng.uniform(0.06, 0.3)] * 2, rng.uniform(2, 7))
    return _box(aside, ahead, rng.uniform(0.3, 1.2), rng.uniform(0.3, 1), rng.uniform(0.2, 1))


def _box(aside: float, ahead: float, width: float, depth: float, height: float) -> tuple[list[float], list[float]]:
    return [aside - width / 2, GROUND_M - height, ahead], [aside + width / 2, GROUND_M, ahead + depth]


def street(kind: str, seed: int, *, reach_px: float, size: tuple[int, int]) -> Pair:
    """A "town" or "wood" seen by a camera that moves and turns; all but a few pixels move by at most `reach_px`.

    Args:
        kind: one of `KINDS`.
        seed: draws the world and the path of the camera, but not how far it goes.
        reach_px: bound of the motion, in pixels, for all but the fastest `FASTEST_SHARE`.
        size: (height, width).

    Returns:
        The pair; the motion of the sky, which has no texture, counts as unknown.
    """
    rng = np.random.default_rng([seed, *kind.encode()])
    world, turned = _World(rng, kind), _rotation(0, rng.uniform(-0.05, 0.1), 0)
    turn, way = rng.normal(0, (0.012, 0.006, 0.006)), rng.normal(0, (0.3, 0.06, 0.4))
    rays = _rays(size, 1) @ turned.T
    hit = world.cast(np.zeros(3), rays)
    points = rays * hit.distance[..., None]
    shortest, longest = 0.0, 4.0
    for _ in range(15):  # bisection: the farther the camera goes, the larger the motion
        share = (shortest + longest) / 2
        speed = np.linalg.norm(_motion(points, turned @ _rotation(*share * turn), share * turned @ way), axis=-1)
        slow = np.quantile(speed, 1 - FASTEST_SHARE) < reach_px
        shortest, longest = (share, longest) if slow else (shortest, share)
    second = turned @ _rotation(*shortest * turn), shortest * turned @ way
    frames = np.stack([_photograph(world, *camera, size, rng) for camera in ((turned, np.zeros(3)), second)])
    truth = _motion(points, *second)
    to = truth + np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), -1)
    known = hit.thing <= len(world.low)  # the sky's motion cannot be seen
    within = ((to >= 0) & (to <= np.array(size[::-1]) - 1)).all(-1)
    uncovered = world.cast(second[1], points - second[1]).distance > 0.995
    group = f"{kind}, up to {reach_px:g} px"
    visible = known & within & uncovered
    return Pair(group, f"seed {seed}", frames, np.moveaxis(truth, -1, 0).astype(np.float32), known, visible)


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    (cy, cp, cr), (sy, sp, sr) = np.cos((yaw, pitch, roll)), np.sin((yaw, pitch, roll))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return about_y @ about_x @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])


def _rays(size: tuple[int, int], dense: int) -> np.ndarray:
    """(H dense, W dense, 3) rays of depth 1 through the points of the image, for a camera that is not turned."""
    height, width = size
    x, y = ((np.arange(side * dense) + 0.5) / dense - 0.5 - (side - 1) / 2 for side in (width, height))
    x, y = np.meshgrid(x / (FOCAL * width), y / (FOCAL * width))
    return np.stack([x, y, np.ones_like(x)], -1)


def _motion(points: np.ndarray, turned: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """(H, W, 2) motion in pixels, from the pixels that see `points` (H, W, 3) to those of a turned, moved camera."""
    height, width = points.shape[:2]
    seen = (points - eye) @ turned
    image = seen[..., :2] / seen[..., 2:] * FOCAL * width + np.array([width - 1, height - 1]) / 2
    return image - np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)


def _photograph(world: _World, turned: np.ndarray, eye: np.ndarray, size: tuple[int, int], rng) -> np.ndarray:
    """(H, W, 3) uint8, with a camera's noise."""
    rays = _rays(size, OVERSAMPLING) @ turned.T
    image = world.paint(eye, rays, 1 / (FOCAL * size[1] * OVERSAMPLING))
    image = image.reshape(size[0], OVERSAMPLING, size[1], OVERSAMPLING, 3).mean((1, 3))
    return np.rint(image + rng.normal(0, NOISE, (*size, 1))).clip(0, 255).astype(np.uint8)
