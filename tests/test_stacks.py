import math

import cv2
import numpy as np
import pytest
import torch

from pipeline import stacks
from pipeline.specs import StackSpec
from pipeline.stacks import (
    bidirectional_stack,
    flow_stack,
    make_stack,
    num_windows,
    spaced,
    subtract_mean,
    trajectory_stack,
    window,
)
from pipeline.stacks import paths_torch as stacks_torch
from pipeline.stacks.paths_numba import along_path
from pipeline.stacks.windows import fill


def lookup(field, x, y):
    """Plain bilinear interpolation of one component at one point; outside, the nearest border point."""
    height, width = field.shape
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    left, top = math.floor(x), math.floor(y)
    value = 0.0
    for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if weight_x and weight_y:
                value += weight_x * weight_y * float(field[row, column])
    return value


def transcribed(fields, kind):
    """Equations 1 and 2 of the paper, point by point; `fields` in the order of the walk."""
    count, _, height, width = fields.shape
    stack = np.zeros((2 * count, height, width))
    for v in range(height):
        for u in range(width):
            x, y = float(u), float(v)
            for k in range(1, count + 1):
                field = fields[k - 1]
                dx, dy = lookup(field[0], x, y), lookup(field[1], x, y)
                stack[2 * k - 2, v, u], stack[2 * k - 1, v, u] = dx, dy
                if kind == "trajectory":
                    x, y = x + dx, y + dy
    return stack


def random_flow(rng, count, speed):
    """Smooth enough that a path is not chaos, fast enough that some points leave the image and some come back."""
    height, width = rng.integers(1, 9, 2)
    drift = rng.normal(0, speed, (count, 2, 1, 1))
    return (drift + rng.normal(0, 0.4, (count, 2, height, width))).astype(np.float32)


@pytest.mark.parametrize("seed", range(100))
def test_stacks_are_the_equations(seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 7))
    count = length + int(rng.integers(0, 4))
    start = int(rng.integers(0, count - length + 1))
    flow = random_flow(rng, count, speed=rng.choice([0.3, 2.0, 8.0]))
    fields = flow[start : start + length]
    assert np.array_equal(flow_stack(flow, start, length), transcribed(fields, "stack"))
    assert np.allclose(trajectory_stack(flow, start, length), transcribed(fields, "trajectory"), atol=1e-5)

    half = int(rng.integers(1, 4))
    forward = random_flow(rng, 2 * half + 3, speed=2.0)
    backward = rng.permuted(-forward, axis=0)
    frame = int(rng.integers(half, half + 4))
    for kind in ("stack", "trajectory"):
        ahead = np.stack([forward[t] for t in range(frame, frame + half)])
        behind = np.stack([backward[t] for t in range(frame - 1, frame - half - 1, -1)])
        expected = np.concatenate([transcribed(ahead, kind), transcribed(behind, kind)])
        assert np.allclose(bidirectional_stack(forward, backward, frame, 2 * half, kind=kind), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_a_path_through_motion_that_differs_from_point_to_point(seed):
    """Where neighbors move apart by several pixels a step, an error of position grows as fast."""
    flow = np.random.default_rng(seed).normal(0, 3, (10, 2, 24, 32)).astype(np.float32)
    assert np.allclose(trajectory_stack(flow, 0, 10), transcribed(flow, "trajectory"), rtol=0, atol=1e-5)


def test_beyond_the_border_nothing_is_left_to_chance(monkeypatch):
    """In numpy: points on the last row and column multiply their neighbors outside by 0, and 0 times NaN is NaN."""
    flow = np.random.default_rng(1).normal(0, 2, (4, 2, 5, 6))
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, np.nan, dtype))
    assert np.allclose(trajectory_stack(flow, 0, 4), transcribed(flow, "trajectory"), atol=1e-5)


def test_paths_of_the_random_cases_leave_the_image():
    flow = random_flow(np.random.default_rng(2), 6, speed=8.0)
    assert not np.allclose(trajectory_stack(flow, 0, 6), flow_stack(flow, 0, 6))
    assert np.abs(flow[:, :, 0, 0]).max() > 8  # further than the image is wide


def test_a_uniform_motion_is_the_same_along_its_path():
    flow = np.broadcast_to(np.float32([[[1.5]], [[-0.5]]]), (5, 2, 6, 7))
    assert np.array_equal(trajectory_stack(flow, 1, 3), flow_stack(flow, 1, 3))


def test_order_of_channels():
    flow = np.arange(6 * 2, dtype=np.float32).reshape(6, 2, 1, 1)  # field t holds x = 2t, y = 2t + 1
    assert flow_stack(flow, 2, 3).ravel().tolist() == [4, 5, 6, 7, 8, 9]
    both = bidirectional_stack(flow, flow + 100, 3, 4)
    assert both.ravel().tolist() == [6, 7, 8, 9, 104, 105, 102, 103]


def test_a_stack_is_a_float32_copy():
    flow = np.zeros((4, 2, 3, 3))
    stack = flow_stack(flow.astype(np.float32), 0, 4)
    stack += 1
    assert flow_stack(flow, 0, 4).dtype == trajectory_stack(flow, 0, 4).dtype == np.float32
    assert not flow.any()


def test_subtract_mean_takes_each_channel_by_itself():
    stack = np.random.default_rng(0).normal(3, 2, (6, 5, 4)).astype(np.float32)
    result = subtract_mean(stack)
    assert result.dtype == np.float32
    for channel in range(6):
        assert np.allclose(result[channel], stack[channel] - sum(map(float, stack[channel].ravel())) / 20, atol=1e-5)
    assert not subtract_mean(np.full((2, 3, 3), 0.1, np.float32)).any()


def test_counts_of_starts():
    assert [num_windows(n, StackSpec(length=10)) for n in (99, 10, 9, 1)] == [90, 1, 1, 1]
    assert num_windows(99, StackSpec(length=10, direction="bidirectional")) == 90


def test_spaced_positions():
    assert spaced(9, 3).tolist() == [0, 4, 8]
    assert spaced(90, 4).tolist() == [0, 30, 59, 89]
    assert spaced(2, 4).tolist() == [0, 0, 1, 1]
    assert spaced(9, 1).tolist() == [4]
    assert spaced(1, 25).tolist() == [0] * 25
    for count in range(1, 60):
        gaps = np.diff(spaced(count, 25))
        assert spaced(count, 25)[[0, -1]].tolist() == [0, count - 1] and gaps.max() - gaps.min() <= 1


def test_windows_by_example():
    where = window(99, StackSpec(length=4, direction="bidirectional"), 3)
    assert (where.forward, where.backward) == ((5, 7), (3, 5))
    assert (where.ahead, where.behind) == ((5, 6), (4, 3))
    where = window(99, StackSpec(length=10), 89)
    assert (where.forward, where.backward, where.behind) == ((89, 99), None, ())
    assert where.ahead == tuple(range(89, 99))


def test_short_clips_are_filled_with_their_own_fields():
    assert fill(0, 5, 3, short="repeat_last") == (0, 1, 2, 2, 2)
    assert fill(0, 5, 3, short="wrap") == (0, 1, 2, 0, 1)
    assert fill(-2, 1, 3, short="repeat_last") == (0, 0, 0)
    assert fill(-2, 1, 3, short="wrap") == (1, 2, 0)
    assert window(3, StackSpec(length=5), 0).ahead == (0, 1, 2, 2, 2)
    short = window(3, StackSpec(length=6, direction="bidirectional"), 0)
    assert (short.ahead, short.behind) == ((1, 2, 2), (0, 0, 0))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("kind", ["stack", "trajectory"])
@pytest.mark.parametrize("subtract", [False, True])
def test_make_stack_is_the_functions_on_what_was_read(direction, kind, subtract):
    rng = np.random.default_rng(5)
    forward = rng.normal(0, 1, (12, 2, 6, 5)).astype(np.float32)
    backward = rng.normal(0, 1, forward.shape).astype(np.float32)
    spec = StackSpec(length=4, kind=kind, direction=direction, subtract_mean=subtract)
    for start in range(num_windows(12, spec)):
        where = window(12, spec, start)
        read = [
            None if span is None else field[slice(*span)]
            for field, span in ((forward, where.forward), (backward, where.backward))
        ]
        if direction == "bidirectional":
            expected = bidirectional_stack(forward, backward, start + 2, 4, kind=kind)
        else:
            expected = (flow_stack if kind == "stack" else trajectory_stack)(forward, start, 4)
        assert np.array_equal(make_stack(*read, spec, where), subtract_mean(expected) if subtract else expected)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("short", ["repeat_last", "wrap"])
@pytest.mark.parametrize("num_fields", [1, 2, 5, 9])
def test_make_stack_of_a_short_clip_has_no_zeros(num_fields, short, direction):
    flow = np.random.default_rng(6).uniform(1, 2, (num_fields, 2, 4, 4)).astype(np.float32)
    spec = StackSpec(length=10, direction=direction, short=short, subtract_mean=False)
    where = window(num_fields, spec, 0)
    backward = None if where.backward is None else flow[slice(*where.backward)]
    stack = make_stack(flow[slice(*where.forward)], backward, spec, where)
    assert stack.shape == (20, 4, 4) and stack.min() >= 1


def test_errors_name_what_is_allowed():
    flow = np.zeros((12, 2, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"start is 3; with 12 fields and length 10 allowed: 0 to 2"):
        flow_stack(flow, 3, 10)
    with pytest.raises(ValueError, match=r"start is -1"):
        trajectory_stack(flow, -1, 10)
    with pytest.raises(ValueError, match=r"allowed: none; use a length of at most 12"):
        flow_stack(flow, 0, 13)
    with pytest.raises(ValueError, match=r"length is 0; it must be at least 1"):
        flow_stack(flow, 0, 0)
    with pytest.raises(ValueError, match=r"flow has shape \(12, 4, 4\); it must be \(N, 2, H, W\)"):
        flow_stack(flow[:, 0], 0, 1)
    with pytest.raises(ValueError, match=r"frame is 1; with 12 fields and length 4 allowed: 2 to 10"):
        bidirectional_stack(flow, flow, 1, 4)
    with pytest.raises(ValueError, match=r"allowed: none; use a length of at most 12"):
        bidirectional_stack(flow, flow, 7, 14)
    with pytest.raises(ValueError, match=r"length is 3; a bidirectional stack needs an even number"):
        bidirectional_stack(flow, flow, 5, 3)
    with pytest.raises(ValueError, match="backward is uint8; it must be a numpy array, floating, in pixels"):
        bidirectional_stack(flow, flow.astype(np.uint8), 5, 4)
    with pytest.raises(ValueError, match=r"backward has shape .*; it must be that of forward"):
        bidirectional_stack(flow, flow[1:], 5, 4)
    with pytest.raises(ValueError, match=r"kind is 'path'; allowed: stack, trajectory"):
        bidirectional_stack(flow, flow, 5, 4, kind="path")


def test_errors_of_the_helpers():
    spec = StackSpec(length=10)
    with pytest.raises(ValueError, match=r"num_fields is 0; a stack needs a clip of at least 1 flow field"):
        num_windows(0, spec)
    with pytest.raises(ValueError, match=r"start is 3; 12 fields and length 10 allow 0 to 2"):
        window(12, spec, 3)
    with pytest.raises(ValueError, match=r"count is 0 and n is 3"):
        spaced(0, 3)
    with pytest.raises(ValueError, match=r"count is 3 and n is 0"):
        spaced(3, 0)
    with pytest.raises(ValueError, match=r"short is 'zero'; allowed: repeat_last, wrap"):
        fill(0, 2, 1, short="zero")
    where = window(12, spec, 0)
    with pytest.raises(ValueError, match=r"forward holds 9 fields; the window asks for 10"):
        make_stack(np.zeros((9, 2, 3, 3)), None, spec, where)
    with pytest.raises(ValueError, match=r"backward holds 10 fields; the window asks for None"):
        make_stack(np.zeros((10, 2, 3, 3)), np.zeros((10, 2, 3, 3)), spec, where)
    with pytest.raises(ValueError, match=r"forward has shape \(10, 3, 3\)"):
        make_stack(np.zeros((10, 3, 3)), None, spec, where)


@pytest.mark.parametrize(("flow", "got"), [(np.zeros((9, 2, 5, 6), np.uint8), "uint8"), ([[1.0]], "list")])
def test_stored_bytes_are_no_flow(flow, got):
    for stack in (flow_stack, trajectory_stack):
        with pytest.raises(ValueError, match=f"flow is {got}; it must be a numpy array, floating, in pixels"):
            stack(flow, 0, 2)
    with pytest.raises(ValueError, match=f"forward is {got}; it must be a numpy array, floating, in pixels"):
        bidirectional_stack(flow, flow, 4, 2)


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_no_number_makes_no_index(strange):
    fields = np.ones((4, 2, 9, 12), np.float32)
    fields[0, :, 3, 4] = strange
    fields[1, :, 6, 7] = -strange
    stacked = along_path(fields), stacks_torch.along_path(torch.from_numpy(fields)[None])[0].numpy()
    for found in stacked:
        assert found.shape == (8, 9, 12) and np.all(found[:, 0, 0] == 1)


CONTENTS = {
    "smooth": lambda rng, shape: cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), 3) * 30,
    "noise": lambda rng, shape: rng.normal(0, 6, shape).astype(np.float32),
    "far out of the image": lambda rng, shape: rng.normal(0, 500, shape).astype(np.float32),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("size", [(40, 56), (1, 9), (9, 1), (1, 1), (17, 33)])
def test_compiled_and_on_a_device_the_paths_are_bit_for_bit_the_same(monkeypatch, size, content):
    rng = np.random.default_rng(3)
    fields = np.stack([content(rng, size).reshape(size) for _ in range(2 * 2 * 6)]).reshape(2, 6, 2, *size)
    by_numba, on_device = [along_path(each) for each in fields], stacks_torch.along_path(torch.from_numpy(fields))
    monkeypatch.setattr(stacks, "has_numba", lambda: False)
    for each, compiled, found in zip(fields, by_numba, on_device, strict=True):
        expected = trajectory_stack(each, 0, 6)
        assert np.array_equal(compiled, expected) and np.array_equal(found.numpy(), expected)


def test_a_short_clip_has_its_middle_frame_at_half_its_fields():
    where = window(5, StackSpec(length=10, direction="bidirectional"), 0)
    assert (where.ahead, where.behind) == ((2, 3, 4, 4, 4), (1, 0, 0, 0, 0))


def test_equal_spacing_rounds_halves_up():
    assert spaced(4, 3).tolist() == [0, 2, 3] and spaced(13, 25).tolist()[:4] == [0, 1, 1, 2]


def test_whoever_changes_a_stack_does_not_change_the_flow():
    fields = np.zeros((4, 2, 3, 3), np.float32)
    for made in (flow_stack, trajectory_stack):
        made(fields, 0, 4)[:] = 1
    assert not fields.any()


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 4, 4, 2)])  # the second is OpenCV's
def test_fields_without_two_components_are_refused(shape):
    with pytest.raises(ValueError, match="it must be"):
        flow_stack(np.zeros(shape, np.float32), 0, 2)


def test_no_bidirectional_stack_has_no_fields():
    flow = np.zeros((6, 2, 4, 4), np.float32)
    with pytest.raises(ValueError, match="at least 2"):
        bidirectional_stack(flow, flow, 3, 0)


def test_a_path_at_the_border_reads_nothing_beyond_the_fields():
    memory = np.full(3 * 2 * 5 * 6 + 7, np.nan, np.float32)
    fields = memory[:180].reshape(3, 2, 5, 6)
    fields[:] = 0.25
    assert np.isfinite(along_path(fields)).all()


def test_a_path_that_is_no_number_ends_within_a_field_of_any_width():
    fields = torch.ones((1, 4, 2, 9, 13))
    fields[0, 0, :, 3, 4] = float("nan")
    assert stacks_torch.along_path(fields).shape == (1, 8, 9, 13)
