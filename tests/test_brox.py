"""Brox flow and its linear solver: known motion, the paper's equations in plain numpy, and the same bits in any batch."""

import cv2
import numpy as np
import pytest
import torch
from brox_equations import dense, euler_lagrange, one_step
from conftest import middlebury
from motions import MOTIONS, error_px, moved, texture

from pipeline.flow import brox, brox_model, brox_torch, device, estimate, sor
from pipeline.specs import FlowSpec

SPEC = FlowSpec(method="brox")
QUICK = FlowSpec(method="brox", brox_scale_step=0.5, brox_warps=1, brox_iterations=1, brox_sweeps=2)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def flow_of(frames, spec=SPEC, **more):
    return estimate(frames, spec, device="cpu", **more)


@pytest.mark.parametrize(
    ("motion", "limit_px"),
    [
        (lambda x, y: (3.0 + 0 * x, -2.0 + 0 * y), 0.01),
        (lambda x, y: (0.3 + 0 * x, -0.45 + 0 * y), 0.01),
        (lambda x, y: (14.0 + 0 * x, -9.0 + 0 * y), 0.02),
        (MOTIONS["rotation"], 0.04),
        (MOTIONS["zoom"], 0.06),
    ],
    ids=["integer", "subpixel", "far", "rotation", "zoom"],
)
def test_known_motion(motion, limit_px):
    frames, truth = moved(motion, 128, 160)
    flow = flow_of(frames)
    assert flow.shape == (1, 2, 128, 160) and flow.dtype == np.float32
    assert error_px(flow[0], truth, border=16) < limit_px


def layers(height=120, width=160):
    """A disc that moves by (6, 3) in front of a background that moves by (-4, 2): frames, true flow, where the disc is."""
    y, x = np.mgrid[:height, :width].astype(float)
    frames = []
    for t in (0, 1):
        disc = np.hypot(x - 70 - 6 * t, y - 60 - 3 * t) < 35
        frames.append(np.where(disc, texture(x - 6 * t, y - 3 * t, seed=1), texture(x + 4 * t, y - 2 * t, seed=2)))
    disc = np.hypot(x - 70, y - 60) < 35
    return np.stack(frames), np.where(disc, np.reshape([6, 3], (2, 1, 1)), np.reshape([-4, 2], (2, 1, 1))), disc


def test_an_object_in_front_of_another_keeps_its_motion_and_its_outline():
    frames, truth, disc = layers()
    error = np.linalg.norm(flow_of(frames)[0] - truth, axis=0)
    inner = cv2.erode(disc.astype(np.uint8), np.ones((9, 9))) > 0
    outer = cv2.dilate(disc.astype(np.uint8), np.ones((31, 31))) == 0
    assert error[inner].mean() < 0.1 and error[outer].mean() < 0.1
    assert error.mean() < 0.5  # what the disc hides has no counterpart


def test_gradient_constancy_bears_a_change_of_light():
    frames, truth = moved(MOTIONS["right"], 96, 120)
    frames = np.clip(frames, 0, 230)
    frames[1] += 25
    assert error_px(flow_of(frames)[0], truth) < 0.1
    without = FlowSpec(method="brox", brox_gradient_weight=0.0)
    assert error_px(flow_of(frames, without)[0], truth) > 0.5


def test_backward_carries_the_later_frame_onto_the_earlier():
    frames, truth = moved(MOTIONS["subpixel"], 64, 80)
    back = flow_of(frames, direction="backward")
    assert back.tobytes() == flow_of(frames[::-1].copy()).tobytes()
    assert error_px(back[0], -truth) < 0.05


@pytest.mark.parametrize("size", [(16, 16), (61, 83), (1, 5)])
def test_identical_frames_give_exactly_zero(size):
    noise = np.random.default_rng(1).integers(0, 256, (1, *size)).astype(np.uint8)
    assert not flow_of(np.repeat(noise, 3, axis=0)).any()


@pytest.mark.parametrize("size", [(16, 16), (17, 13), (40, 1), (1, 40), (1, 1), (61, 83), (75, 30), (48, 64)])
def test_a_pair_alone_is_the_pair_in_a_batch_of_mixed_content(size):
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    noise = np.random.default_rng(2).integers(0, 256, size)
    moving = [texture(x - 0.8 * t, y + 0.3 * t * t) for t in range(3)]
    frames = np.stack([*moving, noise, np.full(size, 255), moving[0], np.zeros(size)]).astype(np.uint8)
    together = flow_of(frames)
    assert np.isfinite(together).all()
    for t in range(6):
        assert flow_of(frames[t : t + 2]).tobytes() == together[t : t + 1].tobytes()
    for pairs in (1, 2, 5, 6):
        assert flow_of(frames, FlowSpec(method="brox", batch_pairs=pairs)).tobytes() == together.tobytes()


@pytest.mark.parametrize("numba", [True, False])
def test_threads_do_not_change_a_bit(monkeypatch, numba):
    monkeypatch.setattr(brox, "has_numba", lambda: numba)
    frames = np.concatenate([moved(MOTIONS["rotation"], 161, 183)[0], moved(MOTIONS["zoom"], 161, 183)[0]])
    spec = FlowSpec(method="brox", batch_pairs=3, brox_scale_step=0.5, brox_warps=1)
    one = flow_of(frames, spec)
    torch.set_num_threads(2)
    monkeypatch.setattr(cv2, "getNumThreads", lambda: 2)
    assert flow_of(frames, spec).tobytes() == one.tobytes()


@pytest.mark.parametrize("size", [(16, 16), (1, 33), (37, 1), (2, 3), (15, 64), (33, 47)])
def test_any_content_is_finite_and_not_farther_than_the_image(size):
    noise = np.random.default_rng(0).integers(0, 256, size)
    flat = [np.full(size, value) for value in (0, 0, 255, 128)]
    frames = np.stack([noise, *flat, 255 * (noise > 128), noise]).astype(np.uint8)
    flow = flow_of(frames)
    assert flow.shape == (6, 2, *size) and np.isfinite(flow).all()
    assert np.abs(flow).max() < max(*size, 16)
    assert np.abs(flow[1:4]).max() < 1e-3  # between flat images: gray values differ, but nowhere is there a slope


def test_memory_is_bounded_by_batches(monkeypatch):
    seen = []
    original = brox_torch.flow_between
    monkeypatch.setattr(brox, "has_numba", lambda: False)
    monkeypatch.setattr(brox_torch, "flow_between", lambda a, b, spec: seen.append(len(a)) or original(a, b, spec))
    frames = np.zeros((8, 20, 20), np.uint8)
    flow = brox.between(frames[:-1], frames[1:], FlowSpec(method="brox", batch_pairs=3), device="cpu")
    assert isinstance(flow, np.ndarray) and flow.shape == (7, 2, 20, 20)
    assert seen == [3, 3, 1]
    monkeypatch.setattr(device, "PLAIN_PIXELS", 100)  # less than one frame: still a pair at a time
    flow_of(frames, QUICK)
    assert seen[3:] == [1] * 7


def test_settings_of_brox_count_for_brox_alone():
    other = {"brox_smoothness": 9.0}
    assert FlowSpec(method="brox", **other).digest() != SPEC.digest()
    assert FlowSpec(method="tvl1", **other).digest() == FlowSpec(method="tvl1").digest()
    with pytest.raises(ValueError, match=r"\[flow\] brox_sweeps is 0; it must be at least 1"):
        FlowSpec(method="brox", brox_sweeps=0)


@pytest.mark.parametrize(
    ("name", "limit_px"), [("RubberWhale", 0.09), ("Venus", 0.235), ("Dimetrodon", 0.09), ("Hydrangea", 0.157)]
)
def test_middlebury_end_point_error(shared, name, limit_px):
    frames, truth, known = middlebury(shared, name)
    assert np.linalg.norm(flow_of(frames)[0] - truth, axis=0)[known].mean() < limit_px


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7), (4, 5), (1, 6), (7, 1), (1, 1)])
def test_relaxation_solves_the_system(height, width):
    rng = np.random.default_rng(3)
    root = rng.normal(0, 1, (2, 3, height, width))
    matrix = np.stack([(root[0] ** 2).sum(0), (root[0] * root[1]).sum(0), (root[1] ** 2).sum(0)])
    across, down = rng.uniform(0.1, 3, (height, width - 1)), rng.uniform(0.1, 3, (height - 1, width))
    flow, right = rng.normal(0, 1, (2, 2, height, width))
    batch = [torch.from_numpy(np.stack([part, part]).astype(np.float32)) for part in (flow, matrix, right)]
    weights = [torch.from_numpy(part.astype(np.float32)).expand(2, 1, -1, -1) for part in (across, down)]
    solved = sor.solve(batch[0], *weights, *batch[1:], sweeps=400)
    assert torch.equal(solved[0], solved[1])
    np.testing.assert_allclose(solved[0].numpy(), dense(flow, across, down, matrix, right), atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(6, 7), (5, 6), (4, 9)])
def test_one_step_solves_the_euler_lagrange_equations(height, width):
    spec, given, fields = one_step(height, width)
    smoothness = brox_torch._smoothness(given[0], spec.brox_smoothness)
    step = brox_torch._step(given[2], brox_torch._constraints(*given), smoothness, spec)
    np.testing.assert_allclose(step[0].numpy(), euler_lagrange(*fields, spec), atol=2e-3)


@pytest.mark.parametrize(
    "extreme",
    [
        {"brox_smoothness": 0.001},
        {"brox_smoothness": 1e5},
        {"brox_gradient_weight": 1e5},
        {"brox_scale_step": 0.3},
        {"brox_warps": 1, "brox_iterations": 1, "brox_sweeps": 1},
    ],
    ids=lambda extreme: next(iter(extreme)),
)
def test_extreme_settings_are_finite_even_between_unrelated_images(extreme):
    frames = np.stack([texture(*np.meshgrid(np.arange(40.0), np.arange(30.0)), seed=seed) for seed in range(3)])
    assert np.isfinite(flow_of(frames, FlowSpec(method="brox", **extreme))).all()


@pytest.mark.parametrize("size", [(33, 47), (1, 1)])
def test_everything_is_made_on_the_device_of_the_images(size):
    images = torch.rand(2, 1, *size, device="meta")  # stands for a GPU: refuses to be mixed with tensors of the CPU
    with pytest.raises(RuntimeError, match="device"):
        images + torch.rand(size)
    flow = brox_torch.flow_between(images[:, 0], images[:, 0], QUICK)
    assert flow.device.type == "meta" and flow.shape == (2, 2, *size) and flow.dtype == torch.float32


@pytest.mark.needs_cuda
def test_cuda_agrees_with_the_cpu():
    frames = np.concatenate([moved(MOTIONS["rotation"])[0], moved(MOTIONS["zoom"])[0]])
    on_gpu = estimate(frames, SPEC, device="cuda")
    difference = np.abs(on_gpu - flow_of(frames))
    assert np.median(difference) < 1e-3 and difference[[0, 2]].mean() < 1e-2  # pair 1 is of two unrelated images
    alone = np.concatenate([estimate(frames[t : t + 2], SPEC, device="cuda") for t in range(3)])
    assert on_gpu.tobytes() == alone.tobytes()
    assert brox.between(frames[:1], frames[1:2], QUICK, device="cuda").device.type == "cuda"


def test_trust_is_what_the_constraints_leave():
    a, b, c = np.random.default_rng(3).normal(0, 1, (3, 1, 3, 5, 6))
    flow = np.random.default_rng(4).normal(0, 1, (1, 2, 5, 6))
    spec = FlowSpec(method="brox", brox_gradient_weight=2.0)
    constraints = brox_torch._Constraints(*(torch.from_numpy(field) for field in (a, b, c)))
    distance = np.abs(a * flow[:, :1] + b * flow[:, 1:] + c)[0]
    cost = distance[0] + 2 * (distance[1] + distance[2])
    found = brox_torch._trust(torch.from_numpy(flow), constraints, spec)
    np.testing.assert_allclose(found[0, 0], 0.05 + 0.95 / (1 + (cost / 3) ** 2))
    assert cost.min() < 3 < cost.max()


def test_small_images_and_coarse_levels_are_computed_in_double_precision():
    assert [brox_model.is_precise(size, (240, 320)) for size in [(240, 320), (216, 288), (194, 259)]] == [False, False, True]  # fmt: skip
    assert [brox_model.is_precise((h, w), (h, w)) for h, w in [(1, 2047), (1, 2048), (45, 45), (45, 46)]] == [True, False, True, False]  # fmt: skip


@pytest.mark.parametrize(
    ("clip", "at"), [("run/daria_run", (10, 11)), ("skip/ira_skip", (10, 14)), ("run/ira_run", (10, 14))]
)
def test_single_precision_on_the_fine_levels_is_near_double_precision_on_all(monkeypatch, shared, clip, at):
    """Pairs whose flow is pixels off if all levels are computed in single precision."""
    video = cv2.VideoCapture(str(shared / f"data/weizmann/{clip}.avi"))
    frames = [cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2GRAY) for _ in range(at[1] + 1)]
    pair = np.stack([frames[k] for k in at])
    found = estimate(pair, FlowSpec(method="brox"), device="cpu")
    monkeypatch.setattr(brox_model, "PRECISE_SHARE", 2.0)
    apart = np.abs(estimate(pair, FlowSpec(method="brox"), device="cpu") - found)
    assert apart.max() < 0.02 and apart.mean() < 1e-4
