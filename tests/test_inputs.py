"""Batches of views against arithmetic in float64, one view at a time."""

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from pipeline.dataset import EvalBatch, EvalItem, stack_items, stack_test_items
from pipeline.dataset.inputs import ViewBatch, join_views, stack_views, to_inputs
from pipeline.transforms import View

CPU = torch.device("cpu")


def views(*shape, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, shape).astype(dtype)
    return View(values, *(rng.normal(0, 0.1, shape[:-2]).astype(np.float32) for _ in range(2)))


def expected(view):
    flat = [
        [float(v) * float(scale) + float(offset) for v in plane.ravel()]
        for plane, scale, offset in zip(
            view.values.reshape(-1, *view.values.shape[-2:]), view.scale.ravel(), view.offset.ravel(), strict=True
        )
    ]
    return np.array(flat).reshape(view.values.shape)


@pytest.mark.parametrize("shape", [(6, 5, 4), (3, 6, 5, 4), (1, 5, 4), (2, 1, 1)])
def test_inputs_are_values_times_scale_plus_offset(shape):
    given = [views(*shape, seed=seed) for seed in range(4)]
    batch = stack_views(given)
    assert batch.values.dtype == torch.uint8 and batch.shape == (4, *shape) and len(batch) == 4
    made = to_inputs(batch, CPU)
    assert made.dtype == torch.float32 and made.shape == (4, *shape)
    np.testing.assert_allclose(made.numpy(), [expected(view) for view in given], atol=1e-5)
    assert made.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)
    in_floats = ViewBatch(batch.values.float(), batch.scale, batch.offset)
    assert torch.equal(to_inputs(in_floats, CPU), made)  # the way that a GPU goes


def test_a_batch_with_one_resized_view_is_of_floats():
    given = [views(2, 3, 3), views(2, 3, 3, dtype=np.float32, seed=1)]
    batch = stack_views(given)
    before = batch.values.clone()
    assert batch.values.dtype == torch.float32
    np.testing.assert_allclose(to_inputs(batch, CPU).numpy(), [expected(view) for view in given], atol=1e-5)
    assert torch.equal(batch.values, before)  # the batch itself is left alone


def test_parts_of_a_batch_and_crops_of_pictures():
    given = [views(5, 2, 3, 3, seed=seed) for seed in range(3)]
    joined = join_views(given)
    assert joined.shape == (15, 2, 3, 3)
    assert torch.equal(to_inputs(joined.chunk(3)[1], CPU), to_inputs(stack_views(given).chunk(3)[1], CPU)[0])


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 5, 3, 4, 4)])
def test_inputs_that_are_ready_are_only_moved(shape):
    ready = torch.randn(shape)
    moved = to_inputs(ready, CPU)
    assert torch.equal(moved, ready)
    assert moved.flatten(0, -4).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.needs_cuda
def test_a_gpu_gives_the_same_inputs():
    batch = stack_views([views(3, 20, 16, 16, seed=seed) for seed in range(4)])
    pinned = batch.pin_memory()
    assert isinstance(pinned, ViewBatch) and pinned.values.is_pinned()
    torch.testing.assert_close(to_inputs(pinned, torch.device("cuda")).cpu(), to_inputs(batch, CPU), rtol=0, atol=1e-5)


def test_torchs_loader_finds_every_tensor_to_pin(monkeypatch):
    """What its pinning thread does, with a page-locking that only counts (the real one needs a GPU)."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor.shape) or tensor)
    found = pin_memory(stack_items([(views(6, 4, 4), 1), (views(6, 4, 4, seed=1), 0)]))
    assert pinned == [(2, 6, 4, 4), (2, 6), (2, 6), (2,)] and isinstance(found[0], ViewBatch)
    pinned.clear()
    batch = pin_memory(stack_test_items([EvalItem(3, views(5, 6, 4, 4), ""), EvalItem(4, None, "bad JPEG")]))
    assert pinned == [(5, 6, 4, 4), (5, 6), (5, 6)]
    assert isinstance(batch, EvalBatch) and batch.numbers == [3] and batch.failed == {4: "bad JPEG"}
