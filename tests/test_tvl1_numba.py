"""The compiled TV-L1 against its definition, and its parts against plain ones."""

import os
import subprocess
import sys
import time

import cv2
import numba
import numpy as np
import pytest
import torch
from motions import MOTIONS, TERMS, moved, reference

from pipeline.flow import (
    compiled,
    compiling,
    estimate,
    median_numba,
    to_gray,
    tvl1_numba,
    tvl1_rows,
    warp,
    warp_numba,
)
from pipeline.flow.filters import MEDIAN_FACTORS, median_offsets
from pipeline.specs import FlowSpec

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_values_are_sorted_and_their_weights_go_with_them(precision):
    """But for the order of neighbors in pairs, which the mean restores."""
    rng, lanes = np.random.default_rng(0), median_numba._LANES
    values = rng.integers(0, 9, (24, lanes)).astype(precision)  # many are equal
    values[:, 0], values[:, 1] = np.arange(24), np.arange(24)[::-1]
    values[:, 2:50] = rng.permuted(np.arange(24)[:, None] < np.arange(48) // 2, axis=0)  # zeros and ones
    weights = rng.permuted(np.arange(24.0, dtype=precision)[:, None].repeat(lanes, 1), axis=0)
    table = np.stack([values, np.full_like(values, np.nan), weights])
    median_numba._sort(table.reshape(-1), np.uint64(lanes))
    pairs = (24 * table[0] + table[1])[1:23].reshape(11, 2, lanes)
    found = np.concatenate([24 * table[0, :1] + table[1, :1], np.sort(pairs, 1).reshape(22, lanes), 24 * table[0, 23:] + table[1, 23:]])  # fmt: skip
    np.testing.assert_array_equal(found // 24, np.sort(values, 0))
    np.testing.assert_array_equal(np.sort(found, 0), np.sort(24 * values + weights, 0))  # the same pairs
    np.testing.assert_array_equal(table[2], weights)


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_weighted_median_is_the_mean_of_the_middle_quantiles(scale):
    rng = np.random.default_rng(6)
    image, flow = rng.uniform(0, 60, (9, 11)), np.rint(rng.normal(0, 3, (2, 9, 11)))  # whole: many are equal
    trust = rng.uniform(0.05, 1, (9, 11))
    found = warp.weighted_median(*(torch.from_numpy(field)[None] for field in (flow, image[None], trust[None])), scale=scale)[0].numpy()  # fmt: skip
    compiled = {t: median_numba.weighted_median(*(a.astype(t) for a in (flow, image, trust)), scale=scale) for t in (np.float32, np.float64)}  # fmt: skip
    for y in range(9):
        for x in range(11):
            there = [(np.clip(y + dy, 0, 8), np.clip(x + dx, 0, 10)) for dx, dy in median_offsets(scale)]
            weights = np.array([f * trust[at] * (0.1 + 0.9 / (1 + ((image[at] - image[y, x]) / 16) ** 4)) for f, at in zip(MEDIAN_FACTORS, there, strict=True)])  # fmt: skip
            for component in range(2):
                values = np.array([flow[component][at] for at in there])
                order = np.argsort(values, kind="stable")
                until = np.cumsum(weights[order]) / weights.sum()
                quantiles = np.linspace(0.46, 0.54, 20001)[:-1] + 2e-6  # midpoints
                expected = values[order][np.searchsorted(until, quantiles)].mean()
                assert found[component, y, x] == pytest.approx(expected, abs=5e-3)
                for precision, tolerance in ((np.float32, 1e-4), (np.float64, 1e-9)):
                    assert compiled[precision][component, y, x] == pytest.approx(found[component, y, x], abs=tolerance)


@pytest.mark.parametrize("width", [15, 16, 17, 95, 96, 97, 200])
def test_weighted_median_of_rows_that_are_computed_in_parts(width):
    rng = np.random.default_rng(width)
    flow, image, trust = (
        rng.normal(0, 3, (2, 5, width)),
        rng.uniform(0, 60, (5, width)),
        rng.uniform(0.05, 1, (5, width)),
    )
    fields = (torch.from_numpy(field)[None] for field in (flow, image[None], trust[None]))
    expected = warp.weighted_median(*fields, scale=1.0)[0].numpy()
    np.testing.assert_allclose(median_numba.weighted_median(flow, image, trust, scale=1.0), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(7, 9), (1, 5), (6, 1)])
def test_median_of_nine(size):
    flow = np.random.default_rng(1).integers(0, 6, (2, *size)).astype(np.float32)
    padded = np.pad(flow, ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    np.testing.assert_array_equal(median_numba.median3(flow), np.median(windows, axis=(-2, -1)))


@pytest.mark.parametrize("sizes", [((9, 14), (13, 20)), ((5, 1), (9, 1)), ((8, 12), (5, 7)), ((1, 4), (1, 6))])
def test_resizing_is_torchs(sizes):
    """In the compiled one every field of the state at once, exact in double precision."""
    (height, width), to = sizes
    state = np.random.default_rng(2).normal(size=(height, 3, width))
    resized = np.full((to[0], 3, to[1]), np.nan)
    warp_numba.resize(state, resized, np.array([0, 2]))
    expected = warp.resize(torch.from_numpy(state.transpose(1, 0, 2).copy())[None], to)[0].numpy().transpose(1, 0, 2)
    np.testing.assert_allclose(resized[:, [0, 2]], expected[:, [0, 2]], atol=1e-12)
    assert np.isnan(resized[:, 1]).all()


@pytest.mark.parametrize("motion", MOTIONS)
def test_compiled_agrees_with_the_definition(motion):
    frames, _ = moved(MOTIONS[motion])
    difference = np.abs(tvl1_numba.flow_between(frames[:1], frames[1:], FlowSpec())[0] - reference(*frames, FlowSpec()))
    assert difference.mean() <= 1e-4 and difference.max() <= 0.02


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("settings", [{}, {"tvl1_warps": 1, "tvl1_coarse_warps": 1, "tvl1_iterations": 1}, {"tvl1_scale_step": 0.5, "tvl1_warps": 4}])  # fmt: skip
def test_compiled_agrees_whatever_the_settings(terms, settings):
    frames, _ = moved(MOTIONS["rotation"], 61, 83)
    spec = FlowSpec(**TERMS[terms], **settings)
    difference = np.abs(tvl1_numba.flow_between(frames[:1], frames[1:], spec)[0] - reference(*frames, spec))
    assert difference.mean() <= 1e-4 and difference.max() <= 0.02


@pytest.mark.parametrize("size", [(14, 200), (150, 9), (90, 1), (20, 384), (9, 385), (12, 400), (7, 1000)])
def test_compiled_agrees_on_narrow_strips(size):
    frames, _ = moved(MOTIONS["subpixel"], *size)
    difference = np.abs(tvl1_numba.flow_between(frames[:1], frames[1:], FlowSpec())[0] - reference(*frames, FlowSpec()))
    assert difference.mean() <= 1e-4 and difference.max() <= 0.02


@pytest.mark.parametrize("terms", TERMS)
def test_compiled_agrees_in_two_tiles_whatever_the_terms(terms):
    frames, spec = moved(MOTIONS["subpixel"], 9, 385)[0], FlowSpec(**TERMS[terms])
    difference = np.abs(tvl1_numba.flow_between(frames[:1], frames[1:], spec)[0] - reference(*frames, spec))
    assert difference.mean() <= 1e-4 and difference.max() <= 0.02


@pytest.mark.parametrize("name", ["RubberWhale", "Venus", "Hydrangea"])
def test_compiled_agrees_on_real_images(shared, name):
    files = [str(shared / "data" / "middlebury" / name / f"frame1{k}.png") for k in (0, 1)]
    frames = to_gray(np.stack([cv2.imread(file)[..., ::-1] for file in files]))
    difference = np.abs(tvl1_numba.flow_between(frames[:1], frames[1:], FlowSpec())[0] - reference(*frames, FlowSpec()))
    assert difference.mean() <= 2e-5 and difference.max() <= 0.005


@pytest.mark.parametrize("terms", TERMS)
def test_threads_and_company_do_not_change_a_bit(terms):
    frames = np.concatenate([moved(MOTIONS[name], 61, 83)[0] for name in ("rotation", "far", "zoom")])
    spec = FlowSpec(tvl1_iterations=6, **TERMS[terms])
    one = estimate(frames, spec, device="cpu")
    cv2.setNumThreads(2)
    assert estimate(frames, spec, device="cpu").tobytes() == one.tobytes()
    alone = [estimate(frames[k : k + 2], spec, device="cpu") for k in range(5)]
    assert np.concatenate(alone).tobytes() == one.tobytes()


def test_where_nothing_can_be_kept_each_process_compiles(monkeypatch):
    """Neither the code's folder nor the user's cache can be written: what numba then does."""

    def njit(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return numba.njit(**options)

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled.compiled(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize("size", [(9, 14), (1, 7), (6, 1)])
@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_the_second_image_is_warped_as_the_definition_does(size, precision):
    rng = np.random.default_rng(3)
    images, flow = rng.uniform(0, 255, (3, *size)), rng.normal(0, 6, (2, *size))
    flow[:, ::3, ::2] = np.rint(flow[:, ::3, ::2])  # whole pixels, as well
    flow[0, 0, 0], flow[1, -1, -1] = -1e6, 1e6
    expected = [field[0].numpy() for field in warp.warp(*(torch.from_numpy(of)[None] for of in (images, flow)))]
    state = np.zeros((size[0], tvl1_rows.DATA, size[1]), precision)
    state[:, tvl1_rows.FLOW : tvl1_rows.FLOW + 2] = flow.transpose(1, 0, 2)
    warped, inside = np.empty((3, *size), precision), np.empty(size, precision)
    warp_numba.warp(median_numba.padded(images.astype(precision), 1, 2), state, warped, inside)
    tolerance = 1e-9 if precision is np.float64 else 2e-3
    np.testing.assert_allclose(warped, expected[0], atol=tolerance)
    np.testing.assert_allclose(inside, expected[1][0], atol=tolerance)
    assert (inside == 0).any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts pages as Linux does")
def test_the_memory_of_a_pair_serves_the_next_one():
    code = """
import resource, numpy
from pipeline.flow import estimate
from pipeline.specs import FlowSpec
frames = numpy.random.default_rng(0).integers(0, 256, (2, 240, 320), numpy.uint8)
pages = []
for _ in range(6):
    estimate(frames, FlowSpec(tvl1_warps=1, tvl1_iterations=1), device="cpu")
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[-1] - pages[-4])
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept)
    assert int(done.stdout) < 300  # three pairs of 2,000 pages and more


def test_waiting_for_the_compiler_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(compiling, "_PATIENCE_S", 0.0)
    compiling.compile_for_cpu("tvl1", lambda *_: time.sleep(0.2))
    assert capsys.readouterr().err == "tvl1: numba compiles its loops (about twenty seconds, once) or loads them\n"
