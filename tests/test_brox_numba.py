"""The compiled Brox flow against its definition in double precision, and its loops against plain equations."""

import cv2
import numpy as np
import pytest
import torch
from brox_equations import euler_lagrange, one_step
from conftest import middlebury
from motions import MOTIONS, moved

from pipeline.flow import brox_model, brox_numba, brox_torch
from pipeline.flow import brox_rows as rows
from pipeline.specs import FlowSpec

SPEC = FlowSpec(method="brox")
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize(("height", "width"), [(6, 7), (5, 6), (4, 9)])
def test_one_step_solves_the_euler_lagrange_equations(height, width):
    spec, _, fields = one_step(height, width)
    np.testing.assert_allclose(compiled_step(*fields, spec), euler_lagrange(*fields, spec), atol=1e-6)


def compiled_step(first, warped, inside, flow, spec):
    """The same step by the compiled loops, in double precision."""
    height, width = first.shape
    state, half_width = np.zeros((height, rows.FIELDS, width)), (width + 1) // 2
    state[:, :2] = flow.transpose(1, 0, 2)
    still, mean = np.zeros((2, 2, height, width))
    derivative = np.array([1, -8, 0, 8, -1]) / 12
    rows.gradient(first, derivative, still)
    brox_numba._set_smoothness(state, first, spec.brox_smoothness)
    scales = brox_model.STEEP**2, 1 / brox_model.FAR_PX**2
    rows.constrain(state, warped, first, still, inside, mean, derivative, *scales)
    parts = np.full((2, height, rows.PARTS, half_width), np.nan)
    unknowns = np.zeros((2, height + 2, 2, half_width + 2))
    rows.solve(state, parts, unknowns, spec.brox_sweeps, brox_numba._numbers(spec, np.float64))
    return state[:, :2].transpose(1, 0, 2)


def test_trust_is_what_the_constraints_leave():
    a, b, c = np.random.default_rng(3).normal(0, 1, (3, 3, 5, 6))
    flow = np.random.default_rng(4).normal(0, 1, (2, 5, 6))
    state, found = np.zeros((5, rows.FIELDS, 6)), np.empty((5, 6))
    for first, of in ((rows.FLOW, flow), (rows.A, a), (rows.B, b), (rows.C, c)):
        state[:, first : first + len(of)] = of.transpose(1, 0, 2)
    rows.trust(state, 2.0, 1 / 3, 0.05, found)
    distance = np.abs(a * flow[0] + b * flow[1] + c)
    cost = distance[0] + 2 * (distance[1] + distance[2])
    np.testing.assert_allclose(found, 0.05 + 0.95 / (1 + (cost / 3) ** 2))
    assert cost.min() < 3 < cost.max()


def apart_from_the_definition(frames, spec=SPEC):
    """How far the compiled flow of each pair is from that of plain torch with all levels in double precision, px."""
    first, second = (torch.from_numpy(of).double() for of in (frames[:-1], frames[1:]))
    exact = brox_torch.flow_between(first, second, spec)
    assert exact.dtype == torch.float64
    return np.abs(brox_numba.flow_between(frames[:-1], frames[1:], spec) - exact.numpy())


@pytest.mark.parametrize("motion", MOTIONS)
def test_compiled_agrees_with_the_definition(motion):
    frames, _ = moved(MOTIONS[motion])
    apart = apart_from_the_definition(frames)
    assert apart.mean() <= 1e-4 and apart.max() <= 0.02


@pytest.mark.parametrize("size", [(61, 83), (14, 60), (60, 14), (17, 13), (16, 16)])
@pytest.mark.parametrize(
    "settings",
    [{}, {"brox_warps": 1, "brox_sweeps": 1}, {"brox_scale_step": 0.5, "brox_gradient_weight": 0.0}],
    ids=["defaults", "one sweep", "no gradient"],
)
def test_compiled_agrees_whatever_the_settings_and_sizes(size, settings):
    frames, _ = moved(MOTIONS["subpixel"], *size)
    apart = apart_from_the_definition(frames, FlowSpec(method="brox", **settings))
    assert apart.mean() <= 1e-4 and apart.max() <= 0.02


@pytest.mark.parametrize("name", ["RubberWhale", "Hydrangea"])
def test_compiled_agrees_on_real_images(shared, name):
    frames = middlebury(shared, name)[0]
    gray = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) if f.ndim == 3 else f for f in frames])[:, ::2, ::2].copy()
    apart = apart_from_the_definition(gray)
    assert apart.mean() <= 2e-5 and apart.max() <= 0.005
