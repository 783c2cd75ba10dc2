"""What must not be taken for motion: a change of light, and the border of the image."""

import cv2
import numpy as np
import pytest

from pipeline.flow import brox_model, estimate, tvl1_model
from pipeline.specs import FlowSpec

SHIFT = np.array([2.3, -1.1], np.float32)[:, None, None]
CHANGES = {
    "brighter": lambda image, x: image + 60,
    "darker": lambda image, x: 0.6 * image,
    "shade": lambda image, x: (0.75 + 0.25 * np.sin(x / 30)) * image,
}


def moved_and_lit(change, height=120, width=160):
    """(2, H, W) uint8: a textured patch on smooth shades, moved by SHIFT, then lit otherwise."""
    texture = cv2.GaussianBlur(np.random.default_rng(3).normal(size=(2 * height, 2 * width)), (0, 0), 2)
    texture = (40 * texture / texture.std()).astype(np.float32)

    def image(x, y):
        at = ((x + 30).astype(np.float32), (y + 30).astype(np.float32))
        patch = np.exp(-((((x - 60) / 30) ** 2 + ((y - 60) / 30) ** 2) ** 2))
        return 150 + 40 * np.sin(x / 70 + 0.5) * np.cos(y / 60) + patch * cv2.remap(texture, *at, cv2.INTER_CUBIC)

    y, x = np.mgrid[:height, :width].astype(float)
    second = CHANGES[change](image(x - SHIFT[0], y - SHIFT[1]), x)
    return np.stack([np.rint(frame).clip(0, 255).astype(np.uint8) for frame in (image(x, y), second)])


def error_px(flow):
    return np.linalg.norm(flow[0] - SHIFT, axis=0)[10:-10, 10:-10].mean()


@pytest.mark.parametrize(("change", "most_px"), [("brighter", 0.2), ("darker", 3.0), ("shade", 5.0)])
@pytest.mark.parametrize("method", ["tvl1", "brox"])
def test_a_change_of_light_is_not_taken_for_motion(monkeypatch, method, change, most_px):
    frames = moved_and_lit(change)
    assert error_px(estimate(frames, FlowSpec(method=method), device="cpu")) < most_px
    monkeypatch.setattr(brox_model if method == "brox" else tvl1_model, "FAR_PX", 1e9)  # what keeps it so
    assert error_px(estimate(frames, FlowSpec(method=method), device="cpu")) > 2 * most_px


@pytest.mark.parametrize("kind", ["noise", "chessboard"])
def test_identical_frames_do_not_move_for_farneback(kind):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160)).astype(np.uint8)
    frame = noise if kind == "noise" else (np.indices(noise.shape).sum(0) // 8 % 2 * 255).astype(np.uint8)
    found = estimate(np.stack([frame, frame]), FlowSpec(method="farneback"), device="cpu")
    assert np.abs(found).max() < 0.01
