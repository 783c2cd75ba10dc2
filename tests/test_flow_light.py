"""What must not be taken for motion: a change of light, and the border of the image."""

import cv2
import numpy as np
import pytest
import torch

from pipeline.flow import (
    brox_model,
    brox_torch,
    estimate,
    tvl1_model,
    tvl1_torch,
    warp,
    warp_numba,
)
from pipeline.flow.filters import restart_level
from pipeline.specs import FlowSpec

SHIFT = np.array([2.3, -1.1], np.float32)[:, None, None]
DEFINED = {"tvl1": tvl1_torch, "brox": brox_torch}
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
    monkeypatch.setattr(warp_numba, "MISMATCHED", 1.0)  # and no start afresh
    assert error_px(estimate(frames, FlowSpec(method=method), device="cpu")) > 2 * most_px


def flashed(height=144, width=192):
    """(2, H, W) uint8: a texture of all sizes, moved by (3, -2), under a flash in the center of the second frame."""
    along = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    noise = np.fft.fft2(np.random.default_rng(0).normal(size=(256, 256)))
    texture = np.fft.ifft2(noise / np.maximum(along, 1 / 64) * np.exp(-((along / 0.25) ** 2))).real
    texture = 110 + 35 * texture / texture.std()
    y, x = np.mgrid[:height, :width]
    light = 150 * np.exp(-((x - width / 2) ** 2 + (y - height / 2) ** 2) / (2 * 40**2))
    first, second = texture[40 : 40 + height, 30 : 30 + width], texture[42 : 42 + height, 27 : 27 + width]
    return np.stack([first, second + light]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", ["tvl1", "brox"])
def test_a_flash_does_not_mislead_all_finer_levels(monkeypatch, method):
    frames, spec = flashed(), FlowSpec(method=method)
    truth = np.array([3.0, -2.0], np.float32)[:, None, None]

    def error_of(flow):
        return np.linalg.norm(flow[0] - truth, axis=0)[8:-8, 8:-8].mean()

    found = estimate(frames, spec, device="cpu")
    assert error_of(found) < 0.2
    gray = torch.from_numpy(frames)
    exact = DEFINED[method].flow_between(gray[:1].double(), gray[1:].double(), spec)
    assert np.abs(found - exact.numpy()).max() < 0.02
    single = DEFINED[method].flow_between(gray[[0, 0, 1]], gray[[1, 0, 1]], spec)  # only the first pair starts afresh
    assert torch.equal(single[:1], DEFINED[method].flow_between(gray[:1], gray[1:], spec))
    assert np.abs(found - single[:1].numpy()).max() < 0.02 and single[1:].abs().max() < 1e-3
    monkeypatch.setattr(warp_numba, "MISMATCHED", 1.0)
    assert error_of(estimate(frames, spec, device="cpu")) > 2


@pytest.mark.needs_cuda
@pytest.mark.parametrize("method", ["tvl1", "brox"])
def test_a_flash_on_cuda_gives_the_flow_of_the_cpu_alone_and_in_a_batch(method):
    frames, spec = flashed(), FlowSpec(method=method)
    found = estimate(frames, spec, device="cuda")
    assert np.abs(found - estimate(frames, spec, device="cpu")).max() < 0.02
    assert estimate(frames[[0, 1, 1]], spec, device="cuda")[:1].tobytes() == found.tobytes()


def test_the_level_of_a_restart_is_the_coarsest_that_is_large_enough():
    assert restart_level([(240, 320), (120, 160), (60, 80), (30, 40)]) == 2
    assert restart_level([(48, 64), (24, 32)]) == 0
    assert restart_level([(240, 320)]) is None and restart_level([(40, 400), (20, 200)]) is None


def test_a_mismatch_is_that_of_the_gradients():
    """Zero for the true motion, whatever light is added; a half where the flow leads out; alike in both versions."""
    first = np.random.default_rng(0).uniform(0, 255, (30, 40))
    images = [torch.from_numpy(image)[None, None] for image in (first, first + 20)]
    state = np.zeros((30, 2, 40))
    assert warp.mismatch(*images, torch.zeros(1, 2, 30, 40, dtype=torch.double)).item() == pytest.approx(0, abs=1e-12)
    assert warp_numba.mismatch(first, first + 20, state) == pytest.approx(0, abs=1e-12)
    state[:, 0] = 3.4
    there = warp.mismatch(*images, torch.from_numpy(state.transpose(1, 0, 2))[None]).item()
    assert warp_numba.mismatch(first, first + 20, state) == pytest.approx(there, abs=1e-9) and 0.3 < there < 1
    state[:, 0] = 99
    assert warp_numba.mismatch(first, first + 20, state) == 0.5


@pytest.mark.parametrize("kind", ["noise", "chessboard"])
def test_identical_frames_do_not_move_for_farneback(kind):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160)).astype(np.uint8)
    frame = noise if kind == "noise" else (np.indices(noise.shape).sum(0) // 8 % 2 * 255).astype(np.uint8)
    found = estimate(np.stack([frame, frame]), FlowSpec(method="farneback"), device="cpu")
    assert np.abs(found).max() < 0.01
