import importlib.util
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import middlebury, moving_texture
from motions import CLASSICAL, MOTIONS, error_px, moved, texture

from pipeline.flow import (
    brox,
    check,
    device,
    estimate,
    estimate_on_device,
    methods,
    opencv,
    to_gray,
    tvl1,
    tvl1_torch,
    warp,
)
from pipeline.flow.filters import pyramid_sizes, shrinking_sigmas_px
from pipeline.specs import FLOW_METHODS, FlowSpec

# RAFT has tests/test_flow_raft.py, the methods that need an OpenCV with CUDA have tests/test_flow_opencv.py

QUICK = FlowSpec(tvl1_warps=2, tvl1_iterations=5)  # for tests of behavior, not of accuracy


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("method", CLASSICAL)
def test_known_motion(method, motion):
    frames, truth = moved(MOTIONS[motion], 128, 160)
    flow = estimate(frames, FlowSpec(method=method), device="cpu")
    assert flow.shape == (1, 2, 128, 160) and flow.dtype == np.float32
    assert error_px(flow[0], truth) < CLASSICAL[method]


@pytest.mark.parametrize("method", CLASSICAL)
def test_backward_is_the_flow_of_the_reversed_clip(method):
    frames = np.stack([moved(MOTIONS[name])[0][1] for name in ("right", "subpixel", "far")])
    frames = np.concatenate([moved(MOTIONS["right"])[0][:1], frames])
    spec = FlowSpec(method=method, tvl1_warps=2, tvl1_iterations=5)
    back = estimate(frames, spec, device="cpu", direction="backward")
    assert np.array_equal(back, estimate(frames[::-1], spec, device="cpu")[::-1])
    assert back[0, 0, 12:-12, 12:-12].mean() == pytest.approx(-2, abs=0.3)  # frame 1 onto frame 0: to the left


@pytest.mark.parametrize("method", ["tvl1", "brox"])
@pytest.mark.parametrize(("shift", "size"), [((24, -18), (144, 180)), ((-30, 0), (144, 180)), ((18, 24), (240, 320))])
def test_a_pan_of_thirty_pixels(method, shift, size):
    """A smooth random picture, and two windows on it. It has structure of any size, as photographs have."""
    noise = np.random.default_rng(5).normal(size=(size[0] + 80, size[1] + 80)).astype(np.float32)
    picture = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1.5, 4, 12))
    picture = cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    frames = np.stack([picture[40 - y : 40 - y + size[0], 40 - x : 40 - x + size[1]] for x, y in ((0, 0), shift)])
    flow = estimate(frames, FlowSpec(method=method), device="cpu")[0]
    y, x = np.mgrid[: size[0], : size[1]]
    stays = (x + shift[0] >= 0) & (x + shift[0] < size[1]) & (y + shift[1] >= 0) & (y + shift[1] < size[0])
    assert np.hypot(flow[0] - shift[0], flow[1] - shift[1])[stays].mean() < 0.2


@pytest.mark.parametrize("method", ["tvl1", "brox"])
@pytest.mark.parametrize(("size", "pan"), [((12, 400), 4), ((16, 400), 8), ((24, 500), 8), ((48, 500), 15)])
@pytest.mark.parametrize("upright", [False, True])
def test_a_pan_along_a_narrow_strip(method, size, pan, upright):
    noise = np.random.default_rng(6).normal(size=(size[0], size[1] + pan)).astype(np.float32)
    picture = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1.5, 4, 12))
    picture = cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    frames = np.stack([picture[:, pan:], picture[:, :-pan]])
    frames = frames.swapaxes(1, 2) if upright else frames
    flow = estimate(frames, FlowSpec(method=method), device="cpu")[0]
    along, across = (flow[1].T, flow[0].T) if upright else flow
    assert np.hypot(along - pan, across)[:, :-pan].mean() < 0.1


@pytest.mark.parametrize("name", ["RubberWhale", "Venus", "Dimetrodon", "Hydrangea"])
def test_middlebury_end_point_error(shared, name):
    limit_px = {"RubberWhale": 0.101, "Venus": 0.232, "Dimetrodon": 0.085, "Hydrangea": 0.169}[name]
    frames, truth, known = middlebury(shared, name)
    flow = estimate(frames, FlowSpec(), device="cpu")[0]
    assert np.linalg.norm(flow - truth, axis=0)[known].mean() < limit_px


@pytest.mark.parametrize("size", [(16, 16), (17, 13), (40, 1), (1, 40), (1, 1), (61, 83), (75, 30)])
def test_a_pair_alone_is_the_pair_in_a_batch(size):
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    frames = np.stack([texture(x - 0.8 * t, y + 0.3 * t * t) for t in range(6)])
    together = estimate(frames, FlowSpec(batch_pairs=5), device="cpu")
    alone = np.concatenate([estimate(frames[t : t + 2], FlowSpec(), device="cpu") for t in range(5)])
    assert together.tobytes() == alone.tobytes()


def test_plain_torch_gives_the_same_bytes_in_any_batch(monkeypatch):
    """numba computes a pair at a time; torch takes `batch_pairs` of them, as CUDA does."""
    monkeypatch.setattr(tvl1, "has_numba", lambda: False)
    y, x = np.mgrid[:33, :47].astype(float)
    frames = np.stack([texture(x - 0.8 * t, y + 0.3 * t * t) for t in range(6)])
    given = frames[:-1], frames[1:]
    found = [tvl1.between(*given, FlowSpec(batch_pairs=pairs), device="cpu") for pairs in (1, 2, 5)]
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


def test_threads_do_not_change_a_bit():
    frames = np.concatenate([moved(MOTIONS["rotation"], 61, 83)[0], moved(MOTIONS["zoom"], 61, 83)[0]])
    one = estimate(frames, FlowSpec(), device="cpu")
    torch.set_num_threads(2)
    assert estimate(frames, FlowSpec(), device="cpu").tobytes() == one.tobytes()


@pytest.mark.parametrize("method", CLASSICAL)
def test_results_do_not_depend_on_earlier_calls(method):
    spec = FlowSpec(method=method, tvl1_warps=2, tvl1_iterations=5)
    fast, slow = moved(MOTIONS["far"])[0], moved(MOTIONS["subpixel"])[0]
    fresh = estimate(slow, spec, device="cpu")
    estimate(fast, spec, device="cpu")
    assert np.array_equal(estimate(slow, spec, device="cpu"), fresh)
    assert np.array_equal(estimate(np.concatenate([fast, slow]), spec, device="cpu")[2:], fresh)


@pytest.mark.parametrize("method", CLASSICAL)
@pytest.mark.parametrize(
    "size", [(16, 16), (1, 1), (1, 33), (37, 1), (2, 3), (15, 64), (33, 47), (24, 80), (1, 300), (31, 700)]
)
def test_any_size_and_any_content_is_finite(method, size):
    noise = np.random.default_rng(0).integers(0, 256, size)
    flat = [np.full(size, value) for value in (0, 0, 255, 128)]
    frames = np.stack([noise, *flat, 255 * (noise > 128), noise]).astype(np.uint8)
    flow = estimate(frames, FlowSpec(method=method, tvl1_warps=2, tvl1_iterations=5), device="cpu")
    assert flow.shape == (6, 2, *size) and np.isfinite(flow).all()


@pytest.mark.parametrize("size", [(16, 16), (61, 83), (1, 5)])
def test_tvl1_of_identical_frames_is_exactly_zero(size):
    noise = np.random.default_rng(1).integers(0, 256, (1, *size)).astype(np.uint8)
    assert not estimate(np.repeat(noise, 3, axis=0), FlowSpec(), device="cpu").any()


@pytest.mark.parametrize("method", CLASSICAL)
def test_rgb_is_its_gray(method):
    rgb = np.random.default_rng(2).integers(0, 256, (2, 24, 32, 3)).astype(np.uint8)
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in rgb])
    assert np.array_equal(to_gray(rgb), gray) and to_gray(gray) is gray
    assert np.abs(gray - rgb @ np.array([0.299, 0.587, 0.114])).max() < 0.51
    spec = FlowSpec(method=method, tvl1_warps=2, tvl1_iterations=5)
    assert np.array_equal(estimate(rgb, spec, device="cpu"), estimate(gray, spec, device="cpu"))


def test_warp_is_keys_cubic_interpolation():
    rng = np.random.default_rng(3)
    image = rng.normal(0, 50, (7, 9)).astype(np.float32)
    flow = rng.normal(0, 3, (2, 7, 9)).astype(np.float32)
    warped, inside = warp.warp(torch.from_numpy(image)[None, None], torch.from_numpy(flow)[None])
    for v in range(7):
        for u in range(9):
            x, y = u + flow[0, v, u], v + flow[1, v, u]
            outside = max(-x, x - 8, 0) + max(-y, y - 6, 0)
            assert float(inside[0, 0, v, u]) == pytest.approx(max(0, 1 - outside), abs=1e-5)
            assert float(warped[0, 0, v, u]) == pytest.approx(keys(image, np.clip(x, 0, 8), np.clip(y, 0, 6)), abs=1e-3)


def keys(image, x, y):
    def weight(d):
        d = abs(d)
        return 1.5 * d**3 - 2.5 * d**2 + 1 if d <= 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0

    total, left, top = 0.0, int(np.floor(x)), int(np.floor(y))
    for row in range(top - 1, top + 3):
        for column in range(left - 1, left + 3):
            value = image[np.clip(row, 0, image.shape[0] - 1), np.clip(column, 0, image.shape[1] - 1)]
            total += float(value) * weight(x - column) * weight(y - row)
    return total


def test_median_of_nine():
    images = np.random.default_rng(4).normal(0, 1, (2, 2, 6, 5)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    nine = np.stack([padded[..., i : i + 6, j : j + 5] for i in range(3) for j in range(3)])
    assert np.array_equal(warp.median3(torch.from_numpy(images)).numpy(), np.median(nine, axis=0))


def test_resized_flow_keeps_its_meaning():
    flow = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 10, 20)
    larger = warp.resize_flow(flow, (15, 50))
    assert larger.shape == (1, 2, 15, 50)
    assert torch.allclose(larger[0, 0], torch.tensor(7.5)) and torch.allclose(larger[0, 1], torch.tensor(-3.0))


def test_gradient_of_a_ramp():
    y, x = np.mgrid[:9, :11].astype(np.float32)
    along_x, along_y = warp.gradient(torch.from_numpy(3 * x - 5 * y)[None, None])
    assert torch.allclose(along_x[..., 2:-2], torch.tensor(3.0), atol=1e-4)
    assert torch.allclose(along_y[..., 2:-2, :], torch.tensor(-5.0), atol=1e-4)


def test_pyramid_sizes_by_example():
    halves = pyramid_sizes(240, 320, step=0.5, min_side=12)
    assert halves == [(240, 320), (120, 160), (60, 80), (30, 40), (15, 20)]
    assert pyramid_sizes(16, 1, step=0.5, min_side=12) == [(16, 1)]
    assert pyramid_sizes(320, 24, step=0.5, min_side=12) == [(320, 24), (160, 12), (80, 12), (40, 12)]
    assert pyramid_sizes(200, 5, step=0.5, min_side=12) == [(200, 5), (100, 5), (50, 5)]
    assert warp.blur(torch.ones(1, 1, 4, 4), sigma_px=0).eq(1).all()


def test_a_strip_is_blurred_as_its_upright_twin():
    for size in ((12, 400), (24, 320), (240, 320)):
        lying, upright = (pyramid_sizes(*sides, step=0.62, min_side=8) for sides in (size, size[::-1]))
        assert shrinking_sigmas_px(lying) == shrinking_sigmas_px(upright)


def test_methods_say_what_is_there(monkeypatch):
    assert tuple(methods()) == FLOW_METHODS
    assert {methods()[name] for name in CLASSICAL} == {"available"}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    assert methods()["tvl1"] == "not available: torch is not installed; pip install torch"
    assert methods()["raft_small"] == "not available: torch is not installed; pip install torch"
    assert methods()["farneback"] == "available"


@pytest.mark.parametrize(("hidden", "method"), [("torch", "tvl1"), ("torch", "raft_small"), ("torchvision", "raft_small")])  # fmt: skip
def test_what_is_not_installed_is_named_wherever_flow_is_asked_for(monkeypatch, hidden, method):
    find, load = importlib.util.find_spec, importlib.import_module

    def import_module(name):
        if name == f"pipeline.flow.{method.partition('_')[0]}":
            raise ModuleNotFoundError(f"No module named {hidden!r}")
        return load(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == hidden else find(name))
    monkeypatch.setattr(importlib, "import_module", import_module)
    message = rf"\[flow\] method {method} is not available: {hidden} is not installed; pip install {hidden}$"
    frames, spec = np.zeros((2, 32, 32), np.uint8), FlowSpec(method=method)
    with pytest.raises(ValueError, match=message):
        check(spec)
    with pytest.raises(ValueError, match=message):
        estimate(frames, spec, device="cpu")


@pytest.mark.parametrize("method", ["dis_medium", "tvl1", "brox"])
def test_flow_on_the_cpu_does_not_wait_for_torch(method):
    code = (
        "import sys, numpy; from pipeline.flow import estimate, methods; from pipeline.specs import FlowSpec; "
        f"estimate(numpy.zeros((2, 20, 20), 'uint8'), FlowSpec(method={method!r}), device='cpu'); methods(); "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 8, 8), np.float32), "frames are float32; they must be a numpy array of uint8"),
        ([[0]], "frames are list; they must be a numpy array"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), "frames are Tensor; they must be a numpy array"),
        (np.zeros((40, 50, 3), np.uint8), r"shape \(40, 50, 3\), which is one RGB frame; motion needs at least 2"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"frames have shape \(2, 8, 8, 4\); allowed: \(T, H, W, 3\) RGB"),
        (np.zeros((8, 8), np.uint8), r"frames have shape \(8, 8\)"),
        (np.zeros((2, 0, 8), np.uint8), "no side 0"),
        (np.zeros((1, 8, 8), np.uint8), "frames hold 1 frame; motion needs at least 2"),
    ],
)
def test_refuses_other_frames(frames, message):
    with pytest.raises(ValueError, match=message):
        estimate(frames, QUICK, device="cpu")


def test_gray_frames_three_pixels_wide_are_a_clip_if_they_are_few():
    assert estimate(np.zeros((4, 20, 3), np.uint8), QUICK, device="cpu").shape == (3, 2, 20, 3)


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("method", ["tvl1", "brox"])
def test_torchs_default_type_does_not_matter(method, numba, monkeypatch):
    for module in (tvl1, brox):
        monkeypatch.setattr(module, "has_numba", lambda: numba)
    frames, _ = moved(MOTIONS["right"], 30, 40)
    spec = FlowSpec(method=method, tvl1_iterations=5)
    wanted = estimate(frames, spec, device="cpu")
    torch.set_default_dtype(torch.float64)
    try:
        found = estimate(frames, spec, device="cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == np.float32 and found.tobytes() == wanted.tobytes()


def test_refuses_unknown_direction_and_device():
    frames = np.zeros((2, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="direction is 'back'; allowed: forward, backward"):
        estimate(frames, QUICK, direction="back")
    with pytest.raises(ValueError, match="device is None; allowed: auto, cpu, cuda"):
        estimate(np.zeros((2, 8, 8), np.uint8), FlowSpec(), device=None)
    with pytest.raises(ValueError, match="device is 'gpu'; allowed: auto, cpu, cuda"):
        estimate(frames, QUICK, device="gpu")
    with pytest.raises(ValueError, match="method dis_fast computes on the CPU only; use device auto or cpu"):
        estimate(frames, FlowSpec(method="dis_fast"), device="cuda")
    with pytest.raises(ValueError, match=r"device is 'cuda:99', but torch sees \d+ CUDA devices"):
        estimate(frames, QUICK, device="cuda:99")


def test_auto_is_the_cpu_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    frames = moved(MOTIONS["right"], 24, 32)[0]
    assert np.array_equal(estimate(frames, QUICK), estimate(frames, QUICK, device="cpu"))
    with pytest.raises(ValueError, match="torch sees 0 CUDA devices here; use device auto or cpu"):
        estimate(frames, QUICK, device="cuda")


def test_batches_bound_the_memory(monkeypatch):
    seen = []
    original = tvl1_torch.flow_between
    monkeypatch.setattr(tvl1_torch, "flow_between", lambda a, b, spec: seen.append(len(a)) or original(a, b, spec))
    monkeypatch.setattr(tvl1.importlib.util, "find_spec", lambda name: None)  # no numba
    frames = np.zeros((8, 20, 20), np.uint8)
    estimate(frames, FlowSpec(batch_pairs=3, tvl1_warps=1, tvl1_iterations=1), device="cpu")
    assert seen == [3, 3, 1]
    monkeypatch.setattr(device, "PLAIN_PIXELS", 100)  # less than one frame: still a pair at a time
    estimate(frames, QUICK, device="cpu")
    assert seen[3:] == [1] * 7


def test_presets_are_those_of_opencv():
    frames = moved(MOTIONS["rotation"])[0]
    for name in opencv.PRESETS:
        dis = cv2.DISOpticalFlow.create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{name[4:].upper()}"))
        expected = dis.calc(frames[0], frames[1], None).transpose(2, 0, 1)
        assert np.array_equal(estimate(frames, FlowSpec(method=name), device="cpu")[0], expected)


@pytest.mark.needs_cuda
def test_cuda_agrees_with_the_cpu():
    frames = np.concatenate([moved(MOTIONS["rotation"])[0], moved(MOTIONS["zoom"])[0]])
    on_gpu = estimate(frames, FlowSpec(), device="cuda")
    assert np.abs(on_gpu - estimate(frames, FlowSpec(), device="cpu")).mean() < 1e-3
    alone = np.concatenate([estimate(frames[t : t + 2], FlowSpec(), device="cuda") for t in range(3)])
    assert on_gpu.tobytes() == alone.tobytes()


def test_small_images_seen_before_change_nothing():
    """OpenCV's DIS remembers the coarsest scale of the smallest image: an estimator must not outlive its size."""
    small, large = moving_texture(2, height=24, width=32), moving_texture(2, height=240, width=320, dx=6.0)
    spec = FlowSpec(method="dis_medium")
    alone = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(large[0, ..., 0], large[1, ..., 0], None)
    estimate(small, spec)
    np.testing.assert_array_equal(estimate(large, spec)[0], alone.transpose(2, 0, 1))


def test_a_name_is_no_spec():
    with pytest.raises(ValueError, match=r"spec is 'tvl1'; it must be a FlowSpec, such as FlowSpec\(method='tvl1'\)"):
        estimate(np.zeros((2, 8, 9), np.uint8), "tvl1")
    with pytest.raises(ValueError, match="spec is 'tvl1'; it must be a FlowSpec"):
        estimate_on_device(np.zeros((2, 8, 9), np.uint8), "tvl1")
