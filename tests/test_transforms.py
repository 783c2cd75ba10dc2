"""Views against slicing and plain numpy arithmetic."""

import cv2
import numpy as np
import pytest

from pipeline.specs import StackSpec, StreamSpec
from pipeline.stacks.stored import Planes
from pipeline.transforms import EvalViews, TrainView, View, corner_crops, corner_sizes, jitter, resize
from pipeline.video import interpolation


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


def floats(flow):
    """A stack whose planes are pixels."""
    return Planes(flow, np.ones(len(flow)), np.zeros(len(flow)))


def drawn(*values):
    """The six numbers of a view: down, right, mirror, three colors."""
    return [*values, *[0.5] * (6 - len(values))]


def train_input(settings, picture, values):
    """The network's input of one random view."""
    return TrainView(settings)(picture if picture.dtype == np.uint8 else floats(picture), values).inputs()


@pytest.mark.parametrize(("down", "right", "top", "left"), [(0, 0, 0, 0), (0.5, 0.5, 4, 8), (0.999, 0.999, 8, 16)])
def test_train_crop_is_where_the_draw_says(down, right, top, left):
    picture, flow = frame(), stack()
    spatial = train_input(spec(), picture, drawn(down, right, 0.9))
    np.testing.assert_allclose(spatial, as_input(picture[top : top + 16, left : left + 16]), atol=1e-5)
    temporal = train_input(spec("temporal", flow_unit_px=2.0), flow, drawn(down, right, 0.9))
    np.testing.assert_allclose(temporal, flow[:, top : top + 16, left : left + 16] / 2, rtol=1e-6)
    assert spatial.dtype == temporal.dtype == np.float32


def test_train_flip_mirrors_and_negates_x_only():
    picture, flow = frame(16, 16), stack(16, 16)
    np.testing.assert_allclose(train_input(spec(), picture, drawn(0, 0, 0.1)), as_input(picture[:, ::-1]), atol=1e-5)
    made = train_input(spec("temporal", flow_unit_px=1.0), flow, drawn(0, 0, 0.1))
    np.testing.assert_array_equal(made, mirrored(flow))
    still = train_input(spec("temporal", flow_unit_px=1.0, flip=False), flow, drawn(0, 0, 0.1))
    np.testing.assert_array_equal(still, flow)


def test_every_crop_position_and_both_mirrors_occur():
    picture = np.zeros((18, 17, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.mgrid[:18, :17]
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        view = train_input(spec(), picture, rng.random(6))
        corner = view[:2, 0, [0, -1]] * 255 * np.array([[0.229], [0.224]]) + 255 * np.array([[0.485], [0.456]])
        seen.add((round(corner[0, 0]), *np.rint(corner[1]).astype(int).tolist()))
    assert seen == {(top, *ends) for top in range(3) for ends in [(0, 15), (15, 0), (1, 16), (16, 1)]}


def test_a_setting_never_changes_what_another_draws():
    picture = frame()
    plain, colored = (train_input(spec(jitter=j), picture, drawn(0.3, 0.4, 0.2, 0.9, 0.1, 0.6)) for j in (0.0, 0.001))
    np.testing.assert_allclose(plain, colored, atol=0.05)


def test_jitter_follows_its_definition():
    picture = frame(5, 6)
    weights = np.array([0.299, 0.587, 0.114])
    expected = picture * 1.3
    gray = (expected * weights).sum(-1).mean()
    expected = (expected - gray) * 0.8 + gray
    own = (expected * weights).sum(-1, keepdims=True)
    expected = np.clip(np.rint((expected - own) * 1.2 + own), 0, 255)
    assert abs(jitter(picture, np.array([1.3, 0.8, 1.2])).astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(jitter(picture, np.ones(3)), picture)
    gray_only = jitter(picture, np.array([1, 1, 0.0]))
    assert np.ptp(gray_only.astype(int), axis=-1).max() == 0


def test_jitter_reaches_the_spatial_stream_only():
    picture, flow = frame(16, 16), stack(16, 16)
    brighter = train_input(spec(jitter=0.5), picture, drawn(0, 0, 0.9, 1, 0.5, 0.5))
    expected = as_input(np.clip(np.rint(picture * 1.5), 0, 255))
    np.testing.assert_allclose(brighter, expected, atol=0.03)
    made = train_input(spec("temporal", flow_unit_px=1.0), flow, drawn(0, 0, 0.9, 1, 0.5, 0.5))
    np.testing.assert_array_equal(made, flow)


@pytest.mark.parametrize("crops", [1, 2, 5, 10])
@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_test_views_are_corners_center_and_mirrors(stream, crops):
    picture = frame() if stream == "spatial" else stack()
    places = [(4, 8)] if crops < 5 else [(0, 0), (0, 16), (8, 0), (8, 16), (4, 8)]
    windows = [(slice(top, top + 16), slice(left, left + 16)) for top, left in places]
    views = [picture[window] if stream == "spatial" else picture[:, *window] for window in windows]
    if crops in (2, 10):
        views += [view[:, ::-1] if stream == "spatial" else mirrored(view) for view in views]
    expected = [as_input(view) if stream == "spatial" else view / 4.0 for view in views]
    made = EvalViews(spec(stream), crops=crops)(picture if stream == "spatial" else floats(picture)).inputs()
    assert made.dtype == np.float32 and made.flags.c_contiguous
    np.testing.assert_allclose(made, np.stack(expected), atol=1e-5)


def test_other_numbers_of_crops_are_refused():
    with pytest.raises(ValueError, match="crops is 3; allowed: 1, 2, 5, 10"):
        EvalViews(spec(), crops=3)


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
    assert resize(floats(stack(height, width)), spec("temporal", resize_px=resize_px)).pixels().shape == (4, *expected)
    assert EvalViews(spec(resize_px=resize_px), crops=10)(frame(height, width)).values.shape == (10, 3, 16, 16)


def test_flow_values_are_scaled_with_the_grid():
    flow = np.stack([np.full((48, 64), value, np.float32) for value in (8, -4, 2, 1)])
    halved = resize(floats(flow), spec("temporal", resize_px=24)).pixels()
    np.testing.assert_allclose(halved, np.stack([np.full((24, 32), value) for value in (4, -2, 1, 0.5)]), rtol=1e-6)
    uneven = resize(floats(flow[:, :37, :53]), spec("temporal", resize_px=25)).pixels()  # 37 x 53 -> 25 x 36
    np.testing.assert_allclose(uneven[:, 0, 0], [8 * 36 / 53, -4 * 25 / 37, 2 * 36 / 53, 25 / 37], rtol=1e-5)


def test_resizing_averages_when_it_shrinks():
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[::2, ::2] = 200  # a quarter of the pixels: sampling without averaging would give 0, 100 or 200
    np.testing.assert_array_equal(resize(picture, spec(resize_px=24)), np.full((24, 32, 3), 50))
    enlarged = resize(frame(24, 32), spec(resize_px=48))
    linear = cv2.resize(frame(24, 32), dsize=(64, 48), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(enlarged, linear)


@pytest.mark.parametrize(("to", "averages"), [((20, 30), True), ((20, 31), False), ((21, 30), False), ((19, 29), True)])
def test_enlarging_either_side_is_bilinear(to, averages):
    assert interpolation((20, 30), to) == (cv2.INTER_AREA if averages else cv2.INTER_LINEAR)


def test_a_picture_of_the_right_size_is_not_touched():
    picture = frame()
    assert resize(picture, spec(resize_px=24)) is picture


def test_normalized_values_are_those_of_the_definition():
    picture = frame(16, 16)
    view = EvalViews(spec(), crops=1)(picture)
    np.testing.assert_allclose(view.inputs()[0], as_input(picture), atol=1e-6)
    assert view.values.dtype == np.uint8


def quantized(height, width, seed=0):
    """A stack as a store gives it, bytes with a factor and an offset a plane, and its pixels."""
    rng = np.random.default_rng(seed)
    q, scale, offset = rng.integers(0, 256, (4, height, width)), rng.uniform(0.05, 0.2, 4), rng.uniform(-20, 0, 4)
    pixels = q * scale[:, None, None] + offset[:, None, None]
    return Planes(q.astype(np.uint8), scale, offset), pixels


def plain_view(pixels, settings, values):
    """A random view of flow in pixels, in the order of the words: resize, crop, mirror, normalize; float64."""
    (height, width), side = pixels.shape[1:], settings.crop_px
    short = max(settings.resize_px or min(height, width), side)
    to = [max(short, round(length * short / min(height, width))) for length in (width, height)]
    how = cv2.INTER_AREA if short < min(height, width) else cv2.INTER_LINEAR
    if to != [width, height]:
        pixels = np.stack([cv2.resize(plane, to, interpolation=how) for plane in pixels])
        pixels[0::2] *= to[0] / width
        pixels[1::2] *= to[1] / height
    top, left = (int(v * (length - side + 1)) for v, length in zip(values[:2], pixels.shape[1:], strict=True))
    view = pixels[:, top : top + side, left : left + side]
    return (mirrored(view) if settings.flip and values[2] < 0.5 else view) / settings.flow_unit_px


@pytest.mark.parametrize("seed", range(30))
def test_bytes_give_what_pixels_would_have_given(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(14, 40, 2))
    settings = spec("temporal", resize_px=int(rng.choice([0, 16, 24])), flow_unit_px=float(rng.choice([1.0, 4.0])))
    picture, pixels = quantized(height, width, seed)
    values = rng.random(6)
    view = TrainView(settings)(picture, values)
    np.testing.assert_allclose(view.inputs(), plain_view(pixels, settings, values), atol=1e-5)
    resized = min(height, width) != max(settings.resize_px or min(height, width), 16)
    assert view.values.dtype == (np.float32 if resized else np.uint8)


# quarters of the way down and to the right: corners, center, middles of the edges, middles of the quadrants
TSN_PLACES = [*[(k, m) for k in (0, 2, 4) for m in (0, 2, 4)], (1, 1), (1, 3), (3, 1), (3, 3)]


def test_corner_crops_are_those_of_tsn():
    assert corner_sizes(256, 224) == [
        *[(256, 256), (256, 224), (224, 256), (224, 224), (224, 192)],
        *[(192, 224), (192, 192), (192, 168), (168, 192), (168, 168)],
    ]
    # a 340 x 256 frame, 224 high and 192 wide: steps of (256 - 224) // 4 = 8 down and (340 - 192) // 4 = 37 right
    places = {(box.top, box.left) for box in corner_crops(256, 340, 224, 192)}
    corners_center = {(0, 0), (0, 148), (32, 0), (32, 148), (16, 74)}
    edges = {(0, 74), (32, 74), (16, 0), (16, 148)}
    assert places == corners_center | edges | {(8, 37), (8, 111), (24, 37), (24, 111)}
    assert {(box.height, box.width) for box in corner_crops(256, 340, 224, 192)} == {(224, 192)}


def test_corner_cropping_takes_every_size_and_place_alike():
    settings, height, width = spec("temporal", cropping="corners", flip=False, flow_unit_px=1.0), 32, 48
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    picture = floats(np.stack([columns, rows, columns, rows]))
    expected, made = [], []
    for i, crop_height in enumerate((32, 28, 24, 21)):
        for j, crop_width in enumerate((32, 28, 24, 21)):
            for k, m in TSN_PLACES if abs(i - j) < 2 else []:
                top, left = k * ((height - crop_height) // 4), m * ((width - crop_width) // 4)
                # resizing keeps the mean of a ramp; the vectors shrink or grow with the grid
                x, y = (left + (crop_width - 1) / 2) * 16 / crop_width, (top + (crop_height - 1) / 2) * 16 / crop_height
                expected.append((round(x, 2), round(y, 2)))
    for size in range(10):
        for place in range(13):
            view = TrainView(settings)(picture, drawn((size + 0.5) / 10, (place + 0.5) / 13)).inputs()
            made.append(tuple(round(float(mean), 2) for mean in view[:2].mean((1, 2))))
    assert sorted(made) == sorted(expected)


def test_corner_cropping_of_frames_resizes_the_crop():
    picture = frame(32, 48)
    view = TrainView(spec(cropping="corners", flip=False))(picture, drawn(0.999, 0.999)).values
    part = picture[
        6 : 6 + 21, 18 : 18 + 21
    ]  # the smallest size, int(0.66 * 32), at the last inner place: 3 * (11 // 4)
    expected = cv2.resize(part, (16, 16), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(view, expected.transpose(2, 0, 1))


def test_views_of_several_pictures_stack():
    view = EvalViews(spec("temporal"), crops=10)(quantized(24, 32)[0])
    assert isinstance(view, View) and view.values.dtype == np.uint8
    assert view.values.shape == (10, 4, 16, 16) and view.scale.shape == view.offset.shape == (10, 4)


def test_the_largest_corner_crop_of_a_portrait_is_as_wide_as_it():
    picture = frame(48, 32)
    view = TrainView(spec(cropping="corners", flip=False))(picture, drawn(0, 0)).values
    expected = cv2.resize(picture[:32, :32], (16, 16), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(view, expected.transpose(2, 0, 1))


def test_a_corner_crop_within_two_pixels_of_the_networks_side_has_that_side():
    """int(0.875 * 258, 259, 260) is 225, 226, 227. Source: TSN's code, which leaves out the resizing then."""
    assert [corner_sizes(short, 224)[3] for short in (258, 259, 260)] == [(224, 224), (224, 224), (227, 227)]


@pytest.mark.parametrize(("channel", "gray"), [(0, 60), (1, 117), (2, 23)])  # 0.299, 0.587, 0.114 of 200
def test_the_gray_of_jitter_is_that_of_bt_601(channel, gray):
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[..., channel] = 200
    assert (jitter(picture, np.array([1, 1, 0.0])) == gray).all()


def test_jitter_rounds_to_the_nearest():
    picture = np.random.default_rng(0).integers(50, 200, (64, 64, 3)).astype(np.uint8)
    assert abs(jitter(picture, np.array([1.1, 1, 1])) - picture * 1.1).max() <= 0.501
