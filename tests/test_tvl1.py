"""TV-L1: its definition against plain loops and another solver, what it finds, and within which bounds."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import moving_texture
from motions import MOTIONS, TERMS, error_px, moved, reference

from pipeline.flow import estimate, tvl1, tvl1_torch, warp
from pipeline.flow.filters import MEDIAN_FACTORS, gaussian_taps, median_offsets, pyramid_sizes, shrinking_sigmas_px
from pipeline.flow.tvl1_model import is_coarse, medians
from pipeline.specs import FlowSpec

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def problem(height, width, channels, seed=0):
    """A convex problem as one warping poses it, whose solution lies well within one pixel, and a state to start from."""
    rng = np.random.default_rng(seed)
    slope_x, slope_y = rng.normal(0, 4, (2, channels, height, width))
    constant = rng.normal(0, 1, (channels, height, width))
    flow, dual_x, dual_y = rng.normal(0, 0.2, (3, 2, height, width))
    dual_x[:, :, -1], dual_y[:, -1] = 0, 0
    data = rng.uniform(-0.1, 0.1, (channels, height, width))
    return (slope_x, slope_y, constant), (flow, dual_x, dual_y, data)


def solved(fields, start, spec):
    slopes_and_constant = (torch.from_numpy(field)[None] for field in fields)
    state = tvl1_torch._State(*(torch.from_numpy(field.copy())[None] for field in start))
    tvl1_torch._solve(state, *slopes_and_constant, spec)
    return [field[0].numpy() for field in (state.flow, state.dual_x, state.dual_y, state.dual_data)]


def loops(fields, start, iterations, bounds):
    """Chambolle and Pock's algorithm 1, a pixel at a time, with the steps of Pock and Chambolle 2011."""
    slope_x, slope_y, constant = fields
    flow, p, q, data = (field.copy() for field in start)
    ahead, (_, height, width) = flow.copy(), flow.shape
    for _ in range(iterations):
        for y in range(height):
            for x in range(width):
                for i in range(2):
                    p[i, y, x] += 0.5 * (ahead[i, y, x + 1] - ahead[i, y, x]) if x + 1 < width else 0
                    q[i, y, x] += 0.5 * (ahead[i, y + 1, x] - ahead[i, y, x]) if y + 1 < height else 0
                length = np.sqrt((p[:, y, x] ** 2).sum() + (q[:, y, x] ** 2).sum())
                p[:, y, x] /= max(1, length)
                q[:, y, x] /= max(1, length)
                for c, bound in enumerate(bounds):
                    a, b = slope_x[c, y, x], slope_y[c, y, x]
                    residual = constant[c, y, x] + a * ahead[0, y, x] + b * ahead[1, y, x]
                    data[c, y, x] = np.clip(data[c, y, x] + residual / (abs(a) + abs(b) + 1e-3), -bound, bound)
        before = flow.copy()
        for y in range(height):
            for x in range(width):
                for i, slope in enumerate((slope_x, slope_y)):
                    fall = p[i, y, x] + q[i, y, x] - (data[:, y, x] * slope[:, y, x]).sum()
                    fall -= (p[i, y, x - 1] if x else 0) + (q[i, y - 1, x] if y else 0)
                    flow[i, y, x] += fall / (4 + np.abs(slope[:, y, x]).sum())
        ahead = 2 * flow - before
    return start[0] + np.clip(flow - start[0], -1, 1), p, q, data


@pytest.mark.parametrize(("terms", "bounds"), [("gradient", [0.4] * 2), ("brightness", [0.2]), ("both", [0.4, 0.4, 0.15])])  # fmt: skip
def test_iterations_are_those_of_the_paper(terms, bounds):
    fields, start = problem(5, 6, len(bounds))
    found = solved(fields, start, FlowSpec(tvl1_iterations=4, **TERMS[terms]))
    for field, expected in zip(found, loops(fields, start, 4, bounds), strict=True):
        np.testing.assert_allclose(field, expected, atol=1e-12)


def test_a_warping_moves_no_farther_than_a_pixel():
    (*slopes, constant), start = problem(5, 6, 2)
    fields = (*slopes, 100 + constant)
    found = solved(fields, start, FlowSpec(tvl1_iterations=30, **TERMS["gradient"]))[0]
    assert np.abs(found - start[0]).max() == pytest.approx(1)
    np.testing.assert_allclose(found, loops(fields, start, 30, [0.4] * 2)[0], atol=1e-12)


def operators(height, width):
    """Matrices of the forward differences along x and y, zero in the last column and row."""
    along = [np.diag(np.r_[-np.ones(n - 1), 0]) + np.diag(np.ones(n - 1), 1) for n in (width, height)]
    return np.kron(np.eye(height), along[0]), np.kron(along[1], np.eye(width))


def energy(flow, fields, bound):
    """What is minimized, of flow (2, H, W); and the lengths and residuals that it consists of."""
    slope_x, slope_y, constant = fields
    slopes = [d @ component.ravel() for d in operators(*flow.shape[1:]) for component in flow]
    length = np.linalg.norm(slopes, axis=0)
    residual = constant + slope_x * flow[0] + slope_y * flow[1]
    return length.sum() + bound * np.abs(residual).sum(), length, residual


def reweighted(fields, bound):
    """The minimum by iteratively reweighted least squares: each norm bounded by a parabola, which shrinks slowly."""
    slope_x, slope_y, constant = fields
    rows, data = operators(*constant.shape[1:]), [np.hstack([np.diag(a.ravel()), np.diag(b.ravel())]) for a, b in zip(slope_x, slope_y, strict=True)]  # fmt: skip
    flow = np.zeros((2, *constant.shape[1:]))
    for smooth in np.geomspace(1, 1e-7, 300):
        _, length, residual = energy(flow, fields, bound)
        w = 1 / np.sqrt(length**2 + smooth**2)
        one = sum(d.T @ (w[:, None] * d) for d in rows)
        matrix, right = np.kron(np.eye(2), one), np.zeros(flow.size)
        for a, r, c in zip(data, residual, constant, strict=True):
            b = bound / np.sqrt(r.ravel() ** 2 + smooth**2)
            matrix, right = matrix + a.T @ (b[:, None] * a), right - a.T @ (b * c.ravel())
        flow = np.linalg.solve(matrix, right).reshape(flow.shape)
    return energy(flow, fields, bound)[0]


def test_iterations_reach_the_minimum(monkeypatch):
    monkeypatch.setattr(tvl1_torch, "UPDATE_PX", 1e9)
    fields, start = problem(5, 6, 2)
    least = reweighted(fields, 0.4)
    excess = [energy(solved(fields, start, FlowSpec(tvl1_iterations=n, **TERMS["gradient"]))[0], fields, 0.4)[0] / least - 1 for n in (16, 200, 5000)]  # fmt: skip
    assert excess[0] < 0.2 and excess[1] < excess[0] and abs(excess[2]) < 1e-5
    flow, dual_x, dual_y, data = solved(fields, start, FlowSpec(tvl1_iterations=5000, **TERMS["gradient"]))
    slope_x, slope_y, constant = fields
    along_x, along_y = operators(*constant.shape[1:])
    for i, slope in enumerate((slope_x, slope_y)):  # the duals are feasible, so their value is a bound from below
        balance = dual_x[i].ravel() @ along_x + dual_y[i].ravel() @ along_y + (data * slope).sum(0).ravel()
        assert np.abs(balance).max() < 1e-4
    assert (data * constant).sum() == pytest.approx(least, rel=1e-4)


def derivative(image, x, y, along_x):
    height, width = image.shape
    at = (lambda k: image[y, np.clip(x + k, 0, width - 1)]) if along_x else (lambda k: image[np.clip(y + k, 0, height - 1), x])  # fmt: skip
    return (at(-2) - 8 * at(-1) + 8 * at(1) - at(2)) / 12


@pytest.mark.parametrize("terms", TERMS)
def test_the_linear_model_is_the_mean_slope_of_both_images(terms, monkeypatch):
    seen = []
    monkeypatch.setattr(tvl1_torch, "_solve", lambda state, *fields: seen.extend(fields))
    rng, spec = np.random.default_rng(5), FlowSpec(tvl1_warps=1, **TERMS[terms])
    first, second = rng.uniform(0, 255, (2, 7, 8))
    flow = rng.normal(0, 1.5, (2, 7, 8))
    grid = [[(x, y) for x in range(8)] for y in range(7)]

    def channels(image):
        steep = [np.array([[derivative(image, x, y, along_x) for x, y in row] for row in grid]) for along_x in (True, False)]  # fmt: skip
        return {"gradient": steep, "brightness": [image], "both": [*steep, image]}[terms]

    images = [torch.from_numpy(image)[None, None] for image in (first, second)]
    state = tvl1_torch._State.zero(torch.from_numpy(flow)[None], len(channels(first)))
    tvl1_torch._improve(state, *images, spec, scale=1.0, coarse=False)
    slope_x, slope_y, constant = (field[0].numpy() for field in seen[:3])
    moving = torch.from_numpy(np.stack(channels(second)))[None]
    warped, inside = (field[0].numpy() for field in warp.warp(moving, torch.from_numpy(flow)[None]))
    for c, still in enumerate(channels(first)):
        for x, y in (point for row in grid for point in row):
            a, b = (inside[0, y, x] * (derivative(still, x, y, k) + derivative(warped[c], x, y, k)) / 2 for k in (True, False))  # fmt: skip
            share = 1 / np.sqrt(1 + (a**2 + b**2) / 9)  # steep slopes count by the distance in pixels
            share /= 1 + ((warped[c, y, x] - still[y, x]) * share / 3 / 4) ** 2  # half at four pixels
            a, b = a * share, b * share
            assert (slope_x[c, y, x], slope_y[c, y, x]) == pytest.approx((a, b), abs=1e-9)
            expected = share * (warped[c, y, x] - still[y, x]) - a * flow[0, y, x] - b * flow[1, y, x]
            assert constant[c, y, x] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("terms", TERMS)
def test_trust_is_what_the_data_term_leaves(terms):
    spec, bounds = (
        FlowSpec(**TERMS[terms]),
        {"gradient": [0.4] * 2, "brightness": [0.2], "both": [0.4, 0.4, 0.15]}[terms],
    )
    fields, (flow, *_) = problem(5, 6, len(bounds))
    found = tvl1_torch._trust(*(torch.from_numpy(field)[None] for field in (flow, *fields)), spec)[0, 0].numpy()
    slope_x, slope_y, constant = fields
    cost = np.tensordot(bounds, np.abs(constant + slope_x * flow[0] + slope_y * flow[1]), 1)
    np.testing.assert_allclose(found, 0.05 + 0.95 / (1 + (cost / 0.6) ** 2))
    assert cost.min() < 0.3 < 0.6 < cost.max()


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.05])
def test_neighbors_of_the_median_stand_on_rings(scale):
    spacing, offsets = max(1, 3 * np.sqrt(scale)), median_offsets(scale)
    radii = np.linalg.norm(offsets, axis=1)
    assert set(offsets) == {(-x, y) for x, y in offsets} == {(x, -y) for x, y in offsets}
    assert offsets[0] == (0, 0) and len(offsets) == len(set(offsets)) == len(MEDIAN_FACTORS) == 23
    np.testing.assert_allclose(radii, np.repeat([0, 1, 2, 3], [1, 6, 8, 8]) * spacing, atol=0.75)  # whole pixels
    np.testing.assert_allclose(MEDIAN_FACTORS, np.repeat(np.exp(-(np.arange(4) ** 2) / 18), [1, 6, 8, 8]))


def test_levels_with_few_pixels_or_a_small_share_of_them_are_coarse():
    assert [is_coarse(size, (256, 340)) for size in [(256, 340), (159, 211), (98, 131), (61, 81), (38, 50)]] == [False] * 3 + [True, True]  # fmt: skip
    assert [is_coarse((h, w), (h, w)) for h, w in [(1, 2047), (1, 2048), (45, 45), (45, 46)]] == [True, False, True, False]  # fmt: skip


def test_weighted_medians_follow_every_warping_of_a_coarse_level_and_the_last_of_others():
    spec = FlowSpec(tvl1_warps=3, tvl1_coarse_warps=2)
    assert medians(spec, coarse=False) == [False, False, True]
    assert medians(spec, coarse=True) == [True, True]


def test_plain_torch_in_single_precision_agrees_and_fills_in(monkeypatch):
    frames = moved(MOTIONS["sinusoid"])[0]
    monkeypatch.setattr(tvl1.importlib.util, "find_spec", lambda name: None)  # no numba
    difference = np.abs(estimate(frames, FlowSpec(), device="cpu")[0] - reference(*frames, FlowSpec()))
    assert 0 < difference.mean() <= 1e-4 and difference.max() <= 0.02


@pytest.mark.parametrize("motion", ["up", "subpixel", "zoom"])
def test_brightness_alone_finds_the_motion(motion):
    frames, truth = moved(MOTIONS[motion], 128, 160)
    assert error_px(estimate(frames, FlowSpec(**TERMS["brightness"]), device="cpu")[0], truth) < 0.1


def test_gradient_constancy_does_not_see_a_brighter_image():
    frames, truth = moved(MOTIONS["subpixel"], 128, 160)
    brighter = np.stack([np.clip(frames[0], 30, 200), np.clip(frames[1], 30, 200) + 40])
    assert error_px(estimate(brighter, FlowSpec(**TERMS["gradient"]), device="cpu")[0], truth) < 0.15
    assert (
        error_px(estimate(brighter, FlowSpec(), device="cpu")[0], truth) < 0.15
    )  # the gradient outvotes the gray value
    assert error_px(estimate(brighter, FlowSpec(**TERMS["brightness"]), device="cpu")[0], truth) > 0.5


def test_no_term_is_refused():
    with pytest.raises(
        ValueError, match="tvl1_gradient_weight and tvl1_brightness_weight are both 0; at least one must"
    ):
        FlowSpec(tvl1_gradient_weight=0.0, tvl1_brightness_weight=0.0)


def test_large_motion():
    frames = moving_texture(2, height=240, width=320, dx=30.0, dy=-12.0)[..., 0]
    flow = estimate(frames, FlowSpec(), device="cpu")[0]
    assert np.median(np.linalg.norm(flow[:, 40:-40, 40:-40] - np.array([30, -12])[:, None, None], axis=0)) < 0.1


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("size", [(16, 16), (37, 1), (1, 50), (31, 45), (64, 15)])
def test_any_content_is_finite_and_standing_still_is_exactly_zero(terms, size):
    noise = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    frames = np.stack([noise, noise, np.zeros(size, np.uint8), np.full(size, 255, np.uint8), 255 * (noise > 128), noise.T.reshape(size)]).astype(np.uint8)  # fmt: skip
    flow = estimate(frames, FlowSpec(**TERMS[terms]), device="cpu")
    assert np.isfinite(flow).all() and not flow[0].any() and np.abs(flow).max() < 4 * max(size)


def test_full_high_definition_within_bounds():
    frames = moving_texture(2, height=1080, width=1920, dx=5.0, dy=2.0)[..., 0]
    tracemalloc.start()
    flow = estimate(frames, FlowSpec(tvl1_warps=1, tvl1_iterations=8), device="cpu")[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.median(np.linalg.norm(flow - np.array([5, 2])[:, None, None], axis=0)) < 0.1
    assert peak < 260 * 1080 * 1920  # bytes a pixel: no whole image for every neighbor or iteration


def test_memory_does_not_grow_with_the_clip():
    frames, peaks = moving_texture(25, height=96, width=120)[..., 0], []
    for count in (5, 25):
        tracemalloc.start()
        flow = estimate(frames[:count], FlowSpec(tvl1_warps=1, tvl1_iterations=2), device="cpu")
        peaks.append(tracemalloc.get_traced_memory()[1] - 2 * flow.nbytes)
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_levels_are_blurred_by_their_ratio_and_more_below_half_the_size():
    sizes = [(240, 320), (149, 198), (92, 123), (57, 76)]
    ratios = [max(x / y for x, y in zip(*pair, strict=True)) for pair in itertools.pairwise(sizes)]
    plain = [0.6 * math.sqrt(ratio * ratio - 1) for ratio in ratios]
    assert shrinking_sigmas_px(sizes) == pytest.approx([plain[0], plain[1], 1.25 * plain[2]])


@pytest.mark.parametrize(("sigma_px", "radius"), [(0.5, 2), (1.0, 3), (2.0, 6)])
def test_taps_are_a_gaussian_up_to_three_sigmas(sigma_px, radius):
    taps = [math.exp(-k * k / (2 * sigma_px * sigma_px)) for k in range(-radius, radius + 1)]
    assert gaussian_taps(sigma_px) == pytest.approx([tap / sum(taps) for tap in taps])
    assert gaussian_taps(0) == [1.0]


def test_a_strip_is_never_enlarged():
    assert pyramid_sizes(5, 200, step=0.5, min_side=12) == [(5, 200), (5, 100), (5, 50)]
