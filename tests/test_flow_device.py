"""What lies between a method and the device it computes on: batches, memory, the way there and back."""

import builtins
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import moving_texture

from pipeline import flow
from pipeline.flow import compiling, cuda_devices, device, estimate, estimate_on_device, may_use_cuda, pairs_to_time
from pipeline.flow.device import Download, in_halving_batches, pairs_at_once, pinned_array, plain_pairs_at_once
from pipeline.specs import FlowSpec

DIS, TVL1 = FlowSpec(method="dis_fast"), FlowSpec(tvl1_warps=2, tvl1_iterations=5)


def clips():
    return [moving_texture(count, dx=1.0 + count, seed=count)[..., 0] for count in (3, 2, 5)]


def with_gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("spec", [DIS, TVL1], ids=["dis", "tvl1"])
def test_clips_end_to_end_are_each_clip_alone(spec, direction):
    together = estimate_on_device(np.concatenate(clips()), spec, device="cpu", direction=direction, cuts=[3, 5])
    alone = [estimate(clip, spec, device="cpu", direction=direction) for clip in clips()]
    assert isinstance(together, np.ndarray) and together.tobytes() == np.concatenate(alone).tobytes()


def test_a_clip_of_one_frame_between_cuts_is_refused():
    frames = np.zeros((6, 20, 20), np.uint8)
    for cuts in ([1], [5], [2, 3], [4, 2], [0]):
        with pytest.raises(ValueError, match=r"cuts are \[.*\] in 6 frames; every clip needs at least 2"):
            estimate_on_device(frames, DIS, cuts=cuts)


FULL = torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("Triton Error [CUDA]: out of memory")


@pytest.mark.parametrize("full", FULL)
def test_batches_are_halved_until_they_fit(full):
    given = []

    def between(first, second):
        given.append(len(first))
        if len(first) > 3:
            raise full
        return torch.from_numpy(np.stack([first, second], 1).astype(np.float32))

    first = np.arange(10 * 6, dtype=np.uint8).reshape(10, 2, 3)
    flow = in_halving_batches(between, first, first + 1)
    assert given == [10, 5, 3, 3, 3, 1]
    assert np.array_equal(flow.numpy(), np.stack([first, first + 1], 1))


def test_full_memory_alone_is_ignored():
    for full in FULL:
        with device.ignoring_out_of_memory():
            raise full
    with pytest.raises(RuntimeError, match="a kernel failed"), device.ignoring_out_of_memory():
        raise RuntimeError("a kernel failed")


def test_a_pair_that_does_not_fit_and_other_errors_are_raised():
    def too_large(first, second):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(first, second):
        raise RuntimeError("a kernel failed")

    images = np.zeros((4, 2, 3), np.uint8)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        in_halving_batches(too_large, images, images)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        in_halving_batches(broken, images, images)


def test_the_batch_fits_into_a_third_of_the_free_memory(monkeypatch):
    pixels, each = 320 * 240, 320 * 240 * device.CUDA_BYTES_PER_PIXEL
    monkeypatch.setattr(device, "_free_bytes", lambda name: 3 * 7 * each)
    assert pairs_at_once(pixels, device="cuda:1") == 7
    assert pairs_at_once(pixels, device="cuda:1", batch_pairs=33) == 33
    monkeypatch.setattr(device, "_free_bytes", lambda name: 1 << 40)
    assert pairs_at_once(pixels, device="cuda") == 384  # no more: the device is full
    monkeypatch.setattr(device, "_free_bytes", lambda name: 1)
    assert pairs_at_once(pixels, device="cuda") == 1
    assert pairs_at_once(pixels, device="cpu", batch_pairs=33) == (2 << 20) // pixels
    assert pairs_at_once(1 << 30, device="cpu") == 1


@pytest.mark.parametrize("free_gib", [2, 14.5, 23, 47, 139])
def test_a_batch_that_was_planned_is_not_divided_since_its_images_take_memory_too(monkeypatch, free_gib):
    free = int(free_gib * 2**30)
    monkeypatch.setattr(device, "_free_bytes", lambda name: free)
    planned = pairs_at_once(256 * 340, device="cuda")
    free -= planned * 256 * 340 * (3 + 10)  # bytes: frames, both images, and flow and bytes of the batch before
    assert plain_pairs_at_once(256 * 340, device="cuda", batch_pairs=0) >= planned
    assert plain_pairs_at_once(256 * 340, device="cuda", batch_pairs=5) == 5


def test_what_times_a_method_is_some_batches_or_one_large_one(monkeypatch):
    found = []
    for pairs in (1, 112, 147, 338, 900):
        monkeypatch.setattr(flow, "pairs_of", lambda size, spec, *, device, pairs=pairs: pairs)
        found.append(pairs_to_time((256, 340), FlowSpec(), device="cuda"))
    assert found == [3, 3 * 112, 2 * 147, 338, 900]


def test_memory_that_torch_keeps_for_itself_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda name: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda name: 100)
    assert device._free_bytes("cuda:0") == 1200


def test_auto_means_every_gpu_and_a_name_means_one(monkeypatch):
    with_gpus(monkeypatch, 8)
    assert cuda_devices("tvl1", "auto") == tuple(f"cuda:{k}" for k in range(8))
    assert cuda_devices("tvl1", "cuda:3") == ("cuda:3",)
    assert cuda_devices("tvl1", "cuda") == ("cuda",)
    assert cuda_devices("tvl1", "cpu") == () == cuda_devices("dis_fast", "auto")
    with pytest.raises(ValueError, match="device is 'cuda:8', but torch sees 8 CUDA devices"):
        cuda_devices("tvl1", "cuda:8")
    with_gpus(monkeypatch, 0)
    assert cuda_devices("tvl1", "auto") == ()
    assert may_use_cuda("tvl1", "auto") and not may_use_cuda("tvl1", "cpu") and not may_use_cuda("dis_fast", "auto")


def test_arrays_on_the_cpu_are_there_at_once():
    array, tensor = np.arange(3), torch.arange(4)
    there = Download(array, tensor).wait()
    assert there[0] is array and isinstance(there[1], np.ndarray) and there[1].tolist() == [0, 1, 2, 3]
    assert pinned_array((2, 3), device="cpu").shape == (2, 3)


def test_tensors_give_the_flow_of_arrays(monkeypatch):
    """What a CUDA device is given, on the CPU."""
    from pipeline.flow import tvl1

    first, second = (np.concatenate([clip[k : k + 1] for clip in clips()]) for k in (0, 1))
    monkeypatch.setattr(tvl1, "has_numba", lambda: False)
    flow = tvl1.between(torch.from_numpy(first), torch.from_numpy(second), TVL1, device="cpu")
    assert flow.tobytes() == tvl1.between(first, second, TVL1, device="cpu").tobytes()


@pytest.mark.needs_cuda
def test_flow_stays_on_the_device_and_is_that_of_each_clip():
    frames = pinned_array((10, 48, 64), device="cuda")
    frames[:] = np.concatenate(clips())
    flow = estimate_on_device(frames, TVL1, device="cuda", cuts=[3, 5])
    assert flow.is_cuda and flow.dtype == torch.float32
    alone = np.concatenate([estimate(clip, TVL1, device="cuda") for clip in clips()])
    assert Download(flow).wait()[0].tobytes() == alone.tobytes()
    assert pairs_at_once(320 * 240, device="cuda") >= 1


@pytest.fixture
def broken_numba(monkeypatch):
    """A numba that is installed and refuses to be imported, as it does beside a numpy that is too new."""

    def refuse(name, *given, **named):
        if name == "numba":
            raise ImportError("Numba needs NumPy 2.3 or less")
        return real(name, *given, **named)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    compiling._numba_works.cache_clear()
    yield
    compiling._numba_works.cache_clear()


@pytest.mark.parametrize("spec", [TVL1, FlowSpec(method="brox", brox_warps=1, brox_sweeps=1)], ids=["tvl1", "brox"])
def test_a_numba_that_does_not_work_is_said_once_and_done_without(broken_numba, capsys, spec):
    frames = clips()[0]
    found = estimate(frames, spec, device="cpu")
    assert np.isfinite(found).all() and found.any()
    estimate(frames, spec, device="cpu")
    assert capsys.readouterr().err.count("numba does not work, so what it would compile is computed more slowly") == 1


def test_loops_are_not_left_to_python_where_numba_does_not_compile(monkeypatch, capsys):
    numba = pytest.importorskip("numba", reason="benchmarks/gpu.sh does not need it")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    compiling._numba_works.cache_clear()
    try:
        found = estimate(clips()[0], TVL1, device="cpu")
    finally:
        compiling._numba_works.cache_clear()
    assert np.isfinite(found).all() and found.any()
    assert "NUMBA_DISABLE_JIT is set, so what numba would compile is computed more slowly" in capsys.readouterr().err


def test_threads_that_ask_at_the_same_time_have_it_computed_once():
    begun, done = [], threading.Barrier(4)

    @compiling.computed_once
    def slow(name):
        begun.append(name)
        time.sleep(0.1)
        return name

    def ask():
        done.wait()
        return slow("a")

    with ThreadPoolExecutor(4) as threads:
        found = [wait.result() for wait in [threads.submit(ask) for _ in range(4)]]
    assert found == ["a"] * 4 and begun == ["a"] and slow("b") == "b"
    slow.cache_clear()
    assert slow("a") == "a" and begun == ["a", "b", "a"]


@pytest.mark.parametrize("method", ["tvl1", "brox"])
def test_frames_that_must_not_be_written_are_read_without_a_warning(monkeypatch, recwarn, method):
    monkeypatch.setattr("pipeline.flow.tvl1.has_numba", lambda: False)  # torch reads them
    frames = moving_texture(2, height=24, width=32)
    expected = estimate(frames, FlowSpec(method=method), device="cpu")
    frames.flags.writeable = False
    np.testing.assert_array_equal(estimate(frames, FlowSpec(method=method), device="cpu"), expected)
    assert not [str(warning.message) for warning in recwarn if "not writable" in str(warning.message)]
