"""Stacks of stored bytes against stacks of the pixels that they stand for."""

import numpy as np
import pytest

from pipeline import quantize
from pipeline.specs import StackSpec
from pipeline.stacks import bidirectional_stack, num_windows, window
from pipeline.stacks.stored import Planes, stored_stack
from pipeline.store import Record, create_shard, open_flow
from pipeline.video import jpeg


def stored(rng, count, height, width, scaling):
    """Fields as a store gives them, and their pixels by the formulas of docs/format.md, in float64."""
    q = rng.integers(0, 256, (count, 2, height, width)).astype(np.uint8)
    planes = list(q.reshape(-1, height, width))
    if scaling == "bound":
        bound = rng.uniform(5, 40)
        given = Planes(planes, np.full(2 * count, 2 * bound / 255), np.full(2 * count, -bound))
        return given, q * (2 * bound / 255) - bound
    low = rng.uniform(-20, 0, (count, 2))
    span = rng.uniform(0, 30, (count, 2)) * rng.integers(0, 2, (count, 2))  # a field may be the same everywhere
    given = Planes(planes, span.ravel() / 255, low.ravel())
    return given, low[..., None, None] + q * span[..., None, None] / 255


def by_hand(ahead, behind, spec):
    """Plain stacks: the fields in order, each component less its own mean."""
    planes = [plane for field in [*ahead, *behind] for plane in field]
    return np.stack([plane - plane.mean() if spec.subtract_mean else plane for plane in planes])


@pytest.mark.parametrize("seed", range(40))
def test_bytes_stand_for_the_stack_of_their_pixels(seed):
    rng = np.random.default_rng(seed)
    count, (height, width) = int(rng.integers(1, 14)), rng.integers(2, 9, 2)
    direction = str(rng.choice(["forward", "bidirectional"]))
    spec = StackSpec(
        length=int(rng.choice([2, 4, 10])), direction=direction, subtract_mean=bool(seed % 2), short="wrap"
    )
    scaling = str(rng.choice(["bound", "minmax"]))
    forward, forward_px = stored(rng, count, height, width, scaling)
    backward, backward_px = stored(rng, count, height, width, scaling)
    where = window(count, spec, int(rng.integers(num_windows(count, spec))))

    def read(fields, span):
        return None if span is None else Planes(*(part[2 * span[0] : 2 * span[1]] for part in fields))

    made = stored_stack(read(forward, where.forward), read(backward, where.backward), spec, where)
    expected = by_hand(forward_px[list(where.ahead)], backward_px[list(where.behind)], spec)
    assert made.planes[0].dtype == np.uint8 and made.pixels().dtype == np.float32
    np.testing.assert_allclose(made.pixels(), expected, atol=1e-5)


def test_a_trajectory_is_in_pixels():
    planes = [np.full((4, 5), byte, np.uint8) for byte in (140, 120)] * 3
    fields = Planes(planes, np.full(6, 0.1), np.full(6, -12.75))
    spec = StackSpec(length=3, kind="trajectory", subtract_mean=False)
    made = stored_stack(fields, None, spec, window(3, spec, 0))
    assert made.planes[0].dtype == np.float32
    np.testing.assert_allclose(made.pixels(), np.broadcast_to([[[1.25]], [[-0.75]]] * 3, (6, 4, 5)), atol=1e-5)


def test_a_trajectory_in_both_directions_is_that_of_the_pixels():
    rng = np.random.default_rng(4)
    (forward, forward_px), (backward, backward_px) = (stored(rng, 6, 7, 9, "bound") for _ in range(2))
    spec = StackSpec(length=4, kind="trajectory", direction="bidirectional", subtract_mean=False)
    where = window(6, spec, 1)  # around frame 3: fields 3 and 4 ahead, 2 and 1 behind
    read = [Planes(*(part[a:b] for part in fields)) for fields, a, b in ((forward, 6, 10), (backward, 2, 6))]
    expected = bidirectional_stack(forward_px, backward_px, 3, 4, kind="trajectory")
    np.testing.assert_allclose(stored_stack(*read, spec, where).pixels(), expected, atol=1e-3)


def test_other_fields_than_the_window_asks_for_are_refused():
    fields, _ = stored(np.random.default_rng(0), 4, 3, 3, "bound")
    spec = StackSpec(length=5)
    with pytest.raises(ValueError, match=r"forward holds 4 fields; the window asks for 5"):
        stored_stack(fields, None, spec, window(9, spec, 2))


@pytest.mark.parametrize("scaling", ["bound", "minmax"])
def test_a_store_gives_bytes_that_stand_for_its_flow(tmp_path, scaling):
    flow = np.random.default_rng(1).normal(0, 4, (5, 2, 8, 12)).astype(np.float32)
    flow[2, 1] = 1.5
    q, ranges = (quantize.to_bytes(flow, bound_px=20), None) if scaling == "bound" else quantize.minmax_to_bytes(flow)
    record = Record(id="c", class_name="x", label=0, group="g", frames=6, status="ok", reason="", crc32=0)
    with create_shard(tmp_path / "s.h5", "flow", {"digest": "d"}) as shard:
        writer = shard.clip("c")
        for plane in q.reshape(-1, 8, 12):
            writer.append(jpeg.encode(plane, quality=100))
        if ranges is not None:
            writer.append_range(ranges)
        crc32 = writer.finish({"height": 8, "width": 12, "scaling": scaling, "bound_px": 20.0})
        shard.record(record._replace(crc32=crc32))
    clip = open_flow(tmp_path / "s.h5")["c"]
    fields = Planes(*clip.stored_flow(1, 4))
    assert len(fields.planes) == 6 and fields.planes[0].dtype == np.uint8
    np.testing.assert_allclose(fields.pixels(), clip.flow(1, 4).reshape(6, 8, 12), atol=1e-5)
    with pytest.raises(ValueError, match="holds no backward flow; run the Flow stage"):
        clip.stored_flow(0, 1, backward=True)


def test_planes_that_are_floats_are_scaled_like_bytes():
    planes = Planes([np.full((2, 2), 3.0, np.float32)] * 2, np.array([2.0, 4.0]), np.array([1.0, -1.0]))
    assert planes.pixels()[:, 0, 0].tolist() == [7, 11]
