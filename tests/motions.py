"""Pictures that move in a known way, and how far a flow is from the truth."""

import numpy as np
import torch

from pipeline.flow import tvl1_torch

# method -> mean end-point error on the motions below, in pixels, that it must stay under
CLASSICAL = {"tvl1": 0.1, "brox": 0.1, "dis_ultrafast": 0.4, "dis_fast": 0.3, "dis_medium": 0.2}
CLASSICAL |= {"farneback": 0.3, "deepflow": 0.1, "pcaflow": 0.5}


def texture(x, y, seed=0):
    """Gray value at any real point: a sum of waves in many directions, 8 to 40 px long."""
    rng = np.random.default_rng(seed)
    value = np.zeros(np.broadcast(x, y).shape)
    for _ in range(24):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        wave = 2 * np.pi / rng.uniform(8, 40)
        value += np.sin(wave * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return np.rint(np.clip(128 + 20 * value, 0, 255)).astype(np.uint8)


def moved(motion, height=96, width=120):
    """Two frames and the true flow: the second frame at p shows what the first shows at p - (its motion)."""
    y, x = np.mgrid[:height, :width].astype(float)
    flow = np.stack(np.broadcast_arrays(*motion(x, y), x)[:2])
    before_x, before_y = x.copy(), y.copy()
    for _ in range(50):  # the point q that motion carries onto p, by fixed point iteration
        dx, dy = motion(before_x, before_y)
        before_x, before_y = x - dx, y - dy
    return np.stack([texture(x, y), texture(before_x, before_y)]), flow


def turn(x, y, angle=0.03):
    x, y = x - 60, y - 48
    return np.cos(angle) * x - np.sin(angle) * y - x, np.sin(angle) * x + np.cos(angle) * y - y


MOTIONS = {
    "right": lambda x, y: (2.0 + 0 * x, 0 * y),
    "up": lambda x, y: (0 * x, -3.0 + 0 * y),
    "subpixel": lambda x, y: (0.3 + 0 * x, -0.45 + 0 * y),
    "far": lambda x, y: (9.0 + 0 * x, -6.0 + 0 * y),
    "rotation": turn,
    "zoom": lambda x, y: (0.04 * (x - 60), 0.04 * (y - 48)),
    "sinusoid": lambda x, y: (1.5 * np.sin(2 * np.pi * y / 120), np.cos(2 * np.pi * x / 160)),
}


def error_px(flow, truth, border=12):
    """Mean end-point error away from the border, where things enter and leave."""
    inner = (slice(None), slice(border, -border), slice(border, -border))
    return np.linalg.norm(flow[inner] - truth[inner], axis=0).mean()


# settings of TV-L1 with one term or both
TERMS = {
    "gradient": {"tvl1_gradient_weight": 0.4, "tvl1_brightness_weight": 0.0},
    "brightness": {"tvl1_gradient_weight": 0.0, "tvl1_brightness_weight": 0.2},
    "both": {},
}


def reference(first, second, spec):
    """TV-L1's definition in float64, of (H, W) uint8 images."""
    images = (torch.from_numpy(image).double()[None] for image in (first, second))
    return tvl1_torch.flow_between(*images, spec)[0].numpy()
