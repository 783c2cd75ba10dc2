"""Views against slicing and plain numpy arithmetic."""

import cv2
import numpy as np
import pytest

from pipeline.specs import StackSpec, StreamSpec
from pipeline.transforms import TestViews, TrainView, jitter, normalise, resize


def spec(stream="spatial", **values):
    stack = StackSpec(length=2) if stream == "temporal" else None
    return StreamSpec(stream=stream, stack=stack, **{"resize_px": 0, "crop_px": 16, **values})


def frame(height=24, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def stack(height=24, width=32, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (4, height, width)).astype(np.float32)


def as_input(view):
    """The definition of a spatial input, plane by plane."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return np.stack([(view[..., c] / 255.0 - mean[c]) / std[c] for c in range(3)]).astype(np.float32)


def mirrored(flow):
    """x negated, picture mirrored, channel by channel."""
    return np.stack([plane[:, ::-1] * (-1 if channel % 2 == 0 else 1) for channel, plane in enumerate(flow)])


class Drawn:
    """A generator that draws given numbers: down, right, mirror, three colours."""

    def __init__(self, *values):
        self.values = np.array([*values, *[0.5] * (6 - len(values))])

    def random(self, n):
        assert n == 6
        return self.values


@pytest.mark.parametrize(("down", "right", "top", "left"), [(0, 0, 0, 0), (0.5, 0.5, 4, 8), (0.999, 0.999, 8, 16)])
def test_train_crop_is_where_the_draw_says(down, right, top, left):
    picture, flow = frame(), stack()
    spatial = TrainView(spec())(picture, Drawn(down, right, 0.9))
    np.testing.assert_allclose(spatial, as_input(picture[top : top + 16, left : left + 16]), atol=1e-5)
    temporal = TrainView(spec("temporal", flow_unit_px=2.0))(flow, Drawn(down, right, 0.9))
    np.testing.assert_allclose(temporal, flow[:, top : top + 16, left : left + 16] / 2, rtol=1e-6)
    assert spatial.dtype == temporal.dtype == np.float32


def test_train_flip_mirrors_and_negates_x_only():
    picture, flow = frame(16, 16), stack(16, 16)
    np.testing.assert_allclose(TrainView(spec())(picture, Drawn(0, 0, 0.1)), as_input(picture[:, ::-1]), atol=1e-5)
    made = TrainView(spec("temporal", flow_unit_px=1.0))(flow, Drawn(0, 0, 0.1))
    np.testing.assert_array_equal(made, mirrored(flow))
    still = TrainView(spec("temporal", flow_unit_px=1.0, flip=False))(flow, Drawn(0, 0, 0.1))
    np.testing.assert_array_equal(still, flow)


def test_every_crop_position_and_both_mirrors_occur():
    picture = np.zeros((18, 17, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.mgrid[:18, :17]
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        view = TrainView(spec())(picture, rng)
        corner = view[:2, 0, [0, -1]] * 255 * np.array([[0.229], [0.224]]) + 255 * np.array([[0.485], [0.456]])
        seen.add((round(corner[0, 0]), *np.rint(corner[1]).astype(int).tolist()))
    assert seen == {(top, *ends) for top in range(3) for ends in [(0, 15), (15, 0), (1, 16), (16, 1)]}


def test_a_setting_never_changes_what_another_draws():
    picture = frame()
    plain, coloured = (TrainView(spec(jitter=j))(picture, np.random.default_rng(5)) for j in (0.0, 0.001))
    np.testing.assert_allclose(plain, coloured, atol=0.05)


def test_jitter_follows_its_definition():
    picture = frame(5, 6)
    weights = np.array([0.299, 0.587, 0.114])
    expected = picture * 1.3
    grey = (expected * weights).sum(-1).mean()
    expected = (expected - grey) * 0.8 + grey
    own = (expected * weights).sum(-1, keepdims=True)
    expected = np.clip(np.rint((expected - own) * 1.2 + own), 0, 255)
    assert abs(jitter(picture, np.array([1.3, 0.8, 1.2])).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(jitter(picture, np.ones(3)), picture)
    grey_only = jitter(picture, np.array([1, 1, 0.0]))
    assert np.ptp(grey_only.astype(int), axis=-1).max() == 0


def test_jitter_reaches_the_spatial_stream_only():
    picture, flow = frame(16, 16), stack(16, 16)
    drawn = Drawn(0, 0, 0.9, 1, 0.5, 0.5)
    brighter = TrainView(spec(jitter=0.5))(picture, drawn)
    expected = as_input(np.clip(np.rint(picture * 1.5), 0, 255))
    np.testing.assert_allclose(brighter, expected, atol=0.03)
    made = TrainView(spec("temporal", jitter=0.5, flow_unit_px=1.0))(flow, drawn)
    np.testing.assert_array_equal(made, flow)


@pytest.mark.parametrize("crops", [1, 2, 5, 10])
@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_test_views_are_corners_centre_and_mirrors(stream, crops):
    picture = frame() if stream == "spatial" else stack()
    places = [(4, 8)] if crops < 5 else [(0, 0), (0, 16), (8, 0), (8, 16), (4, 8)]
    windows = [(slice(top, top + 16), slice(left, left + 16)) for top, left in places]
    views = [picture[window] if stream == "spatial" else picture[:, *window] for window in windows]
    if crops in (2, 10):
        views += [view[:, ::-1] if stream == "spatial" else mirrored(view) for view in views]
    expected = [as_input(view) if stream == "spatial" else view / 4.0 for view in views]
    made = TestViews(spec(stream), crops=crops)(picture)
    assert made.dtype == np.float32 and made.flags.c_contiguous
    np.testing.assert_allclose(made, np.stack(expected), atol=1e-5)


def test_other_numbers_of_crops_are_refused():
    with pytest.raises(ValueError, match="crops is 3; allowed: 1, 2, 5, 10"):
        TestViews(spec(), crops=3)


@pytest.mark.parametrize(
    ("height", "width", "resize_px", "expected"),
    [
        (48, 64, 24, (24, 32)),
        (64, 48, 24, (32, 24)),
        (24, 32, 48, (48, 64)),
        (24, 32, 0, (24, 32)),
        (24, 32, 24, (24, 32)),
        (10, 30, 0, (16, 48)),
        (30, 10, 0, (48, 16)),
        (8, 8, 0, (16, 16)),
        (37, 53, 25, (25, 36)),
    ],
)
def test_short_side_is_resized_and_a_crop_always_fits(height, width, resize_px, expected):
    assert resize(frame(height, width), spec(resize_px=resize_px)).shape == (*expected, 3)
    assert resize(stack(height, width), spec("temporal", resize_px=resize_px)).shape == (4, *expected)
    assert TestViews(spec(resize_px=resize_px), crops=10)(frame(height, width)).shape == (10, 3, 16, 16)


def test_flow_values_are_scaled_with_the_grid():
    flow = np.stack([np.full((48, 64), value, np.float32) for value in (8, -4, 2, 1)])
    halved = resize(flow, spec("temporal", resize_px=24))
    np.testing.assert_allclose(halved, np.stack([np.full((24, 32), value) for value in (4, -2, 1, 0.5)]), rtol=1e-6)
    uneven = resize(flow[:, :37, :53], spec("temporal", resize_px=25))  # 37 x 53 -> 25 x 36
    np.testing.assert_allclose(uneven[:, 0, 0], [8 * 36 / 53, -4 * 25 / 37, 2 * 36 / 53, 25 / 37], rtol=1e-5)


def test_resizing_averages_when_it_shrinks():
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[::2, ::2] = 200  # a quarter of the pixels: sampling without averaging would give 0, 100 or 200
    np.testing.assert_array_equal(resize(picture, spec(resize_px=24)), np.full((24, 32, 3), 50))
    enlarged = resize(frame(24, 32), spec(resize_px=48))
    linear = cv2.resize(frame(24, 32), dsize=(64, 48), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(enlarged, linear)


def test_a_picture_of_the_right_size_is_not_touched():
    picture = frame()
    assert resize(picture, spec(resize_px=24)) is picture


def test_normalised_values_are_those_of_the_definition():
    picture = frame(16, 16)
    np.testing.assert_allclose(normalise(picture, spec()), as_input(picture), atol=1e-6)
