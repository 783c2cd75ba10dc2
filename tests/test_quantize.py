import numpy as np
import pytest
import torch

from pipeline.quantize import all_finite, flip, minmax_to_bytes, minmax_to_pixels, to_bytes, to_pixels


def test_bytes_are_the_rounded_formula():
    flow = np.random.default_rng(0).normal(0, 12, (3, 2, 40, 50)).astype(np.float32)
    exact = (np.clip(flow.astype(np.float64), -20, 20) + 20) * 255 / 40
    settled = np.abs(exact - np.floor(exact) - 0.5) > 1e-4  # float32 may fall on either side of a tie
    assert settled.mean() > 0.99
    assert np.array_equal(to_bytes(flow)[settled], np.round(exact[settled]))


@pytest.mark.parametrize("bound_px", [0.3, 7.0, 20.0, 33.3, 1000.0])
def test_ends_and_zero(bound_px):
    flow = np.array([-2 * bound_px, -bound_px, 0.0, -0.0, bound_px, 9 * bound_px], np.float32)
    assert to_bytes(flow, bound_px=bound_px).tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_round_trip_is_within_half_a_step(dtype):
    flow = np.random.default_rng(1).uniform(-20, 20, (2, 2, 64, 64)).astype(dtype)
    back = to_pixels(to_bytes(flow))
    assert back.dtype == np.float32
    assert np.abs(back - flow).max() <= 20 / 255 + 1e-5


def test_every_byte_survives_pixels():
    q = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_bytes(to_pixels(q, bound_px=3.7), bound_px=3.7), q)
    assert to_pixels(q)[[0, 128, 255]] == pytest.approx([-20, 20 / 255, 20], abs=1e-6)


def test_minmax_round_trip_and_range():
    flow = np.random.default_rng(2).normal(0, 5, (4, 2, 30, 20)).astype(np.float32)
    flow[1] *= 100
    q, range_px = minmax_to_bytes(flow)
    assert q.shape == flow.shape and q.dtype == np.uint8 and range_px.shape == (4, 2, 2)
    assert range_px.dtype == np.float32
    for t in range(4):
        for channel in range(2):
            field = flow[t, channel]
            assert range_px[t, channel].tolist() == [field.min(), field.max()]
            assert (q[t, channel].min(), q[t, channel].max()) == (0, 255)
            error = np.abs(minmax_to_pixels(q, range_px)[t, channel] - field).max()
            assert error <= (field.max() - field.min()) / 510 * 1.0001


def test_minmax_restores_a_constant_field_exactly():
    flow = np.full((2, 5, 6), 3.25, np.float32)
    flow[1] = 0
    q, range_px = minmax_to_bytes(flow)
    assert np.array_equal(minmax_to_pixels(q, range_px), flow)


def test_minmax_of_a_hardly_visible_range_is_finite():
    flow = np.zeros((2, 3, 3), np.float32)
    flow[0, 0, 0] = 1e-45
    assert np.abs(minmax_to_pixels(*minmax_to_bytes(flow))).max() <= 1e-44


def test_minmax_of_a_range_that_float32_cannot_tell_ends_at_the_last_byte():
    """The largest value lies above the stored maximum; a byte of 374 would wrap around to 118."""
    flow = np.stack([np.linspace(10 + 4e-7, 10 + 1.4e-6, 16).reshape(4, 4)] * 2)
    for q, range_px in (minmax_to_bytes(flow), minmax_to_bytes(torch.from_numpy(flow))):
        assert float(range_px[0, 1]) < flow.max()
        assert np.diff(np.asarray(q)[0].ravel().astype(int)).min() >= 0 and q[0, -1, -1] == 255


def test_flip_mirrors_and_negates_x_only():
    flow = np.array([[[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]]], np.float32)
    assert flip(flow).tolist() == [[[[-3, -2, -1]], [[6, 5, 4]]]]


def test_flip_of_bytes_is_flip_of_pixels():
    q = np.random.default_rng(3).integers(0, 256, (3, 2, 8, 9)).astype(np.uint8)
    assert flip(q).dtype == np.uint8
    assert np.allclose(to_pixels(flip(q)), flip(to_pixels(q)), atol=1e-5)
    assert flip(q)[0, 0, 0, 0] == 255 - q[0, 0, 0, -1]


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_flip_of_a_stack_twice_is_nothing(dtype):
    stack = (np.random.default_rng(4).random((20, 6, 7)) * 255).astype(dtype)
    assert np.array_equal(flip(flip(stack)), stack)
    assert np.array_equal(flip(stack)[1::2], stack[1::2, :, ::-1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantize", [to_bytes, minmax_to_bytes])
def test_refuses_what_is_not_finite(quantize, value):
    flow = np.zeros((2, 4, 4), np.float32)
    flow[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"1 values that are NaN or infinite, the first at \(1, 2, 3\)"):
        quantize(flow)


def test_an_array_without_axes_is_quantized_as_any_other():
    found = to_bytes(np.array(20.0, np.float32))
    assert isinstance(found, np.ndarray) and (found.shape, found.dtype, int(found)) == ((), np.uint8, 255)


def test_refuses_wrong_types_and_shapes():
    flow, q = np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="flow is uint8; it must be floating"):
        to_bytes(q)
    for listed in ([0.0], np.float32(1)):
        with pytest.raises(
            ValueError, match=f"flow is a {type(listed).__name__}; it must be a numpy array or a tensor"
        ):
            to_bytes(listed)
    with pytest.raises(ValueError, match="q is float32; it must be uint8"):
        to_pixels(flow)
    with pytest.raises(ValueError, match="q is float32; it must be uint8"):
        minmax_to_pixels(flow, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="bound_px is 0; it must be above 0"):
        to_bytes(flow, bound_px=0)
    with pytest.raises(ValueError, match="bound_px is nan"):
        to_pixels(q, bound_px=np.nan)
    with pytest.raises(ValueError, match=r"flow has shape \(3, 4, 4\); it must be \(..., 2, H, W\)"):
        minmax_to_bytes(np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match=r"range_px has shape \(2,\); .* need \(2, 2\)"):
        minmax_to_pixels(q, np.zeros(2))
    with pytest.raises(ValueError, match="x and y in turn"):
        flip(np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match="flow is int64; it must be floating"):
        flip(np.zeros((2, 4, 4), np.int64))


# --- tensors


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bound_px", [0.3, 7.0, 20.0, 33.3])
def test_a_tensor_gives_the_bytes_of_the_array(dtype, bound_px):
    flow = np.random.default_rng(3).normal(0, bound_px, (5, 2, 37, 53)).astype(dtype)
    ties = (np.arange(-3, 300) + 0.5) * (bound_px / 127.5) - bound_px  # halfway between two bytes
    flow.ravel()[: ties.size] = ties
    flow.ravel()[400:404] = [0.0, -0.0, bound_px, -bound_px]
    q = to_bytes(torch.from_numpy(flow), bound_px=bound_px)
    assert q.dtype == torch.uint8 and np.array_equal(q.numpy(), to_bytes(flow, bound_px=bound_px))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_tensor_gives_the_minmax_bytes_and_ranges_of_the_array(dtype):
    flow = np.random.default_rng(4).normal(0, 5, (40, 2, 17, 23)).astype(dtype)
    flow[:20] *= np.linspace(0.01, 9, 20)[:, None, None, None].astype(dtype)
    flow[0], flow[1, 0] = 3.25, 0
    flow[2, 1] = 0
    flow[2, 1, 0, 0] = np.finfo(dtype).smallest_subnormal
    q, range_px = minmax_to_bytes(torch.from_numpy(flow))
    expected_q, expected_range = minmax_to_bytes(flow)
    assert np.array_equal(q.numpy(), expected_q)
    assert range_px.dtype == torch.float32 and np.array_equal(range_px.numpy(), expected_range)


def test_a_tensor_is_refused_in_the_same_words():
    flow = np.zeros((2, 2, 3, 4), np.float32)
    flow[1, 0, 2, 3] = flow[1, 1, 0, 0] = np.inf
    for bad in (flow, torch.from_numpy(flow)):
        for to_q in (to_bytes, minmax_to_bytes):
            with pytest.raises(
                ValueError, match=r"flow holds 2 values that are NaN or infinite, the first at \(1, 0, 2, 3\)"
            ):
                to_q(bad)
        assert not all_finite(bad)
        assert all_finite(bad[:1])
    assert to_bytes(bad, check=False)[0].eq(128).all()  # and the rest means nothing
    with pytest.raises(ValueError, match="flow is int64; it must be floating"):
        to_bytes(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"flow has shape \(3, 4, 4\); it must be \(..., 2, H, W\)"):
        minmax_to_bytes(torch.zeros(3, 4, 4))


@pytest.mark.needs_cuda
def test_cuda_gives_the_bytes_of_the_array():
    flow = np.random.default_rng(5).normal(0, 12, (64, 2, 120, 160)).astype(np.float32)
    on_gpu = torch.from_numpy(flow).cuda()
    assert np.array_equal(to_bytes(on_gpu).cpu().numpy(), to_bytes(flow))
    for found, expected in zip(minmax_to_bytes(on_gpu), minmax_to_bytes(flow), strict=True):
        assert np.array_equal(found.cpu().numpy(), expected)
