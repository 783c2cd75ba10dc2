"""OpenCV's estimators beyond the known motions of test_flow.py: contrib's edges, and the CUDA ones with a fake OpenCV."""

import contextlib
import importlib.util
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import moving_texture

from pipeline.flow import check, estimate, methods, opencv, opencv_cuda
from pipeline.specs import FlowSpec

ROOT = Path(__file__).parents[1]
CUDA_METHODS = ("opencv_cuda_tvl1", "opencv_cuda_brox", "nvidia_of")


# --- contrib


def test_small_images_do_not_break_the_memory():
    """OpenCV's PCAFlow alone writes past its buffers below 56 x 72: it crashes, or crashes later."""
    code = """
import numpy, cv2
from pipeline.flow import estimate
from pipeline.specs import FlowSpec
rng = numpy.random.default_rng(0)
for size in [(1, 1), (1, 200), (200, 1), (16, 16), (55, 72), (56, 71), (33, 47), (24, 300)]:
    frames = rng.integers(0, 256, (4, *size), numpy.uint8)
    for method in ("pcaflow", "deepflow"):
        assert numpy.isfinite(estimate(frames, FlowSpec(method=method))).all()
    kept = [numpy.zeros(int(n)) for n in rng.integers(1, 3000, 50)]
print("whole")
"""
    command = [sys.executable, "-c", code]
    environment = {"PATH": "/usr/bin:/bin", "MALLOC_PERTURB_": "165", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


@pytest.mark.parametrize("method", ["deepflow", "pcaflow"])
def test_a_pair_alone_has_the_bits_of_the_pair_in_a_batch(method):
    frames = np.concatenate([moving_texture(3, height=60, width=80, seed=s, dx=2.0 * s)[..., 0] for s in (1, 2)])
    together = estimate(frames, FlowSpec(method=method))
    alone = [estimate(frames[t : t + 2], FlowSpec(method=method)) for t in reversed(range(5))]
    assert together.tobytes() == np.concatenate(alone[::-1]).tobytes()


@pytest.mark.parametrize(("method", "size"), [("dis_ultrafast", (64, 80)), ("dis_fast", (64, 80)), ("dis_medium", (40, 40)), ("dis_fast", (90, 1))])  # fmt: skip
def test_dis_keeps_nothing_of_a_pair(method, size):
    """OpenCV's, given small images, lowers its own finest scale, so the next pair would start from another one."""
    noise = np.random.default_rng(0).integers(0, 256, (4, *size), dtype=np.uint8)
    frames = np.stack([cv2.blur(image, (5, 5)) for image in noise])
    alone = np.concatenate([estimate(frames[t : t + 2], FlowSpec(method=method)) for t in range(3)])
    assert estimate(frames, FlowSpec(method=method)).tobytes() == alone.tobytes()
    assert alone.any()


def test_pcaflow_of_what_cannot_be_tracked_is_zero(monkeypatch):
    texture = moving_texture(2, height=60, width=80)[0, ..., 0]
    frames = np.stack([np.zeros_like(texture), np.zeros_like(texture), texture])
    assert not estimate(frames[:2], FlowSpec(method="pcaflow")).any()
    assert np.isfinite(estimate(frames, FlowSpec(method="pcaflow"))).all()

    with pytest.raises(cv2.error, match="Assertion failed"):  # every other error is an error
        opencv._pcaflow(cv2.optflow.createOptFlow_PCAFlow(), texture, texture[:50])


@pytest.mark.parametrize("method", ["deepflow", "pcaflow"])
def test_threads_do_not_change_a_bit(method):
    """OpenCV's PCAFlow alone gives other bits with two threads than with one."""
    frames, found = moving_texture(2, height=200, width=260, dx=3.0, dy=1.0)[..., 0], set()
    for threads in (1, 2, 4):
        cv2.setNumThreads(threads)
        found.add(estimate(frames, FlowSpec(method=method)).tobytes())
        assert cv2.getNumThreads() == threads
    assert len(found) == 1


def test_pcaflow_uses_no_opencl_and_leaves_its_switch_alone():
    for switch in (True, False):
        cv2.ocl.setUseOpenCL(switch)
        before, seen = cv2.ocl.useOpenCL(), []
        fake = SimpleNamespace(calc=lambda *images: seen.append(cv2.ocl.useOpenCL()))  # noqa: B023
        opencv._pcaflow(fake, None, None)
        assert seen == [False] and cv2.ocl.useOpenCL() == before


def test_two_pcaflows_at_once_leave_opencvs_threads_as_they_were():
    """Each sets their number to 1 and back; the second of two would take 1 for what it was."""
    cv2.setNumThreads(2)
    both, seen = threading.Barrier(2), []

    def calc(*images):
        seen.append(cv2.getNumThreads())
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # broken, because only one is let in

    fake = SimpleNamespace(calc=calc)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: opencv._pcaflow(fake, None, None), range(2)))
    assert (seen, both.broken, cv2.getNumThreads()) == ([1, 1], True, 2)


# --- what is missing


def test_methods_say_what_is_missing(monkeypatch):
    monkeypatch.delattr(cv2.optflow, "createOptFlow_PCAFlow")
    assert methods()["pcaflow"].startswith(
        "not available: this OpenCV has no contrib modules (cv2.optflow); pip uninst"
    )
    assert methods()["deepflow"] == "available"
    with pytest.raises(ValueError, match=r"\[flow\] method pcaflow is not available: this OpenCV has no contrib"):
        check(FlowSpec(method="pcaflow"))
    with pytest.raises(ValueError, match=r"\[flow\] method pcaflow is not available: this OpenCV has no contrib"):
        estimate(np.zeros((2, 8, 8), np.uint8), FlowSpec(method="pcaflow"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else find(name))
    assert methods()["dis_fast"] == "not available: cv2 is not installed; pip install opencv-contrib-python"


def test_a_package_that_cannot_be_imported_is_told_from_one_that_is_not_there(monkeypatch):
    def fail(method):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(opencv, "why_not", fail)
    why = r"cv2 is installed, but cannot be imported (libGL.so.1: cannot open shared object file); "
    assert methods()["dis_fast"] == f"not available: {why}`python -m pipeline doctor` says more"


@pytest.mark.parametrize("method", CUDA_METHODS)
def test_wheels_without_cuda_are_seen_through(monkeypatch, method):
    monkeypatch.setattr(cv2.cuda, "getCudaEnabledDeviceCount", lambda: 0)
    assert methods()[method].startswith(
        "not available: OpenCV sees no CUDA device (PyPI's wheels are built without CUDA)"
    )
    frames = np.zeros((2, 8, 8), np.uint8)
    with pytest.raises(
        ValueError, match="device is 'auto', but OpenCV sees 0 CUDA devices here; choose another device"
    ):
        estimate(frames, FlowSpec(method=method))
    with pytest.raises(
        ValueError, match=f"device is 'cpu', but method {method} computes on CUDA only; use device auto"
    ):
        estimate(frames, FlowSpec(method=method), device="cpu")
    with pytest.raises(ValueError, match=rf"\[flow\] method {method} is not available: OpenCV sees no CUDA device"):
        opencv_cuda.between(frames[:1], frames[1:], FlowSpec(method=method), device="cuda")


@pytest.mark.parametrize("answer", [-1, cv2.error("driver"), AttributeError("cuda")])
def test_no_device_is_counted_where_there_is_none(monkeypatch, answer):
    def count():
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(cv2.cuda, "getCudaEnabledDeviceCount", count)
    assert opencv_cuda.device_count() == 0


# --- CUDA, with a fake OpenCV


class GpuMat:
    def __init__(self, array=None):
        self.array = array

    def upload(self, array):
        assert array.flags.c_contiguous
        self.array = array.copy()

    def download(self):
        return self.array


class Dense:
    """An estimator whose flow at a pixel is (first, second): it shows what it was given."""

    @classmethod
    def create(cls):
        return cls()

    def calc(self, first, second, flow):
        assert flow is None
        return GpuMat(np.stack([first.array, second.array], axis=2).astype(np.float32))


class Hardware:
    """NVIDIA's, with vectors (100 + 3 * column, -(50 + 7 * row)) / 32 pixels in blocks of side `grid`."""

    grid, made, refuses, dtype = 1, [], False, np.int16

    @classmethod
    def create(cls, size, *, perfPreset, gpuId, **rest):
        if cls.refuses:
            raise cv2.error("NV_OF_ERR_OF_NOT_AVAILABLE:\n the device has none")
        made = cls()
        made.size, made.settings, made.freed = size, {"preset": perfPreset, "gpu": gpuId, **rest}, False
        Hardware.made.append(made)
        return made

    def calc(self, first, second, flow):
        assert first.array.shape == second.array.shape == self.size[::-1] and first.array.dtype == np.uint8
        rows, columns = (side // self.grid for side in self.size[::-1])
        y, x = np.mgrid[:rows, :columns]
        return GpuMat(np.stack([100 + 3 * x, -(50 + 7 * y)], axis=2).astype(self.dtype)), GpuMat()

    def collectGarbage(self):
        self.freed = True


class Older(Hardware):
    grid = 4


@pytest.fixture
def fake(monkeypatch):
    """An OpenCV with two CUDA devices; classes can be taken away."""
    cuda = SimpleNamespace(
        getCudaEnabledDeviceCount=lambda: 2,
        chosen=[],
        GpuMat=GpuMat,
        OpticalFlowDual_TVL1=Dense,
        BroxOpticalFlow=Dense,
        NvidiaOpticalFlow_2_0=type("Newer", (Hardware,), {}),
        NvidiaOpticalFlow_1_0=type("Older", (Older,), {}),
    )
    cuda.setDevice = cuda.chosen.append
    module = SimpleNamespace(cuda=cuda, error=cv2.error, resize=cv2.resize, INTER_LINEAR=cv2.INTER_LINEAR)
    monkeypatch.setattr(opencv_cuda, "cv2", module)
    Hardware.made.clear()
    return module


def test_with_devices_and_classes_all_are_available(fake):
    assert {methods()[name] for name in CUDA_METHODS} == {"available"}
    del fake.cuda.BroxOpticalFlow
    assert methods()["opencv_cuda_brox"] == (
        "not available: this OpenCV has no BroxOpticalFlow; build it with contrib's cudaoptflow"
    )


@pytest.mark.parametrize("size", [(40, 50), (3, 90), (1, 1)])
def test_dense_methods_get_their_images_and_device(fake, size):
    frames = np.random.default_rng(0).integers(0, 256, (3, *size), np.uint8)
    tvl1 = estimate(frames, FlowSpec(method="opencv_cuda_tvl1"), device="cuda:1")
    np.testing.assert_array_equal(tvl1, np.stack([frames[:-1], frames[1:]], axis=1))
    brox = estimate(frames, FlowSpec(method="opencv_cuda_brox"), direction="backward")
    np.testing.assert_allclose(brox, np.stack([frames[1:], frames[:-1]], axis=1) / 255, rtol=1e-6)
    assert fake.cuda.chosen == [1, 0] and brox.dtype == np.float32
    with pytest.raises(
        ValueError, match="device is 'cuda:2', but OpenCV sees 2 CUDA devices here; choose another device"
    ):
        estimate(frames, FlowSpec(method="opencv_cuda_tvl1"), device="cuda:2")


def interpolated(values, grid, side):
    """Values at the centers of blocks (grid - 1) / 2, ... -> at each of `side` pixels, constant beyond the last center."""
    centers = np.arange(len(values)) * grid + (grid - 1) / 2
    return np.interp(np.arange(side), centers, values)


@pytest.mark.parametrize("grid", [1, 2, 4])
@pytest.mark.parametrize("size", [(240, 320), (130, 161), (1, 300), (7, 5)])
def test_hardware_vectors_become_pixels(fake, size, grid):
    fake.cuda.NvidiaOpticalFlow_2_0.grid = grid
    flow = estimate(np.zeros((3, *size), np.uint8), FlowSpec(method="nvidia_of"), device="cuda:1")
    assert flow.shape == (2, 2, *size) and flow.dtype == np.float32
    whole = Hardware.made[0].size[::-1]
    assert all(side % 4 == 0 and side >= given for side, given in zip(whole, size, strict=True))
    x = interpolated((100 + 3 * np.arange(whole[1] // grid)) / 32, grid, whole[1])
    y = interpolated(-(50 + 7 * np.arange(whole[0] // grid)) / 32, grid, whole[0])
    for pair in flow:
        np.testing.assert_allclose(pair[0], np.broadcast_to(x[None, : size[1]], size), atol=1e-4)
        np.testing.assert_allclose(pair[1], np.broadcast_to(y[: size[0], None], size), atol=1e-4)
    assert len(Hardware.made) == 1 and Hardware.made[0].freed
    assert Hardware.made[0].settings == {"preset": 5, "gpu": 1, "outputGridSize": 1}


def test_fixed_point_by_example():
    vectors = np.array([[[32, -32], [1, -1]], [[-32768, 32767], [0, 48]]], np.int16)
    expected = [[[1, -1], [1 / 32, -1 / 32]], [[-1024, 1023.96875], [0, 1.5]]]
    np.testing.assert_array_equal(opencv_cuda.to_pixels(vectors, (2, 2)), expected)


def test_the_older_interface_serves_where_the_newer_does_not(fake):
    fake.cuda.NvidiaOpticalFlow_2_0.refuses = True
    flow = estimate(np.zeros((2, 128, 160), np.uint8), FlowSpec(method="nvidia_of"))
    assert Hardware.made[0].settings == {"preset": 5, "gpu": 0}
    assert flow[0, 0, 0, 0] == 100 / 32 and flow[0, 1, -1, -1] == -(50 + 7 * 31) / 32
    fake.cuda.NvidiaOpticalFlow_1_0.refuses = True
    message = (
        r"method nvidia_of is not available: the GPU or its driver refuses \(NV_OF_ERR_OF_NOT_AVAILABLE: the device"
    )
    with pytest.raises(ValueError, match=message):
        estimate(np.zeros((2, 128, 160), np.uint8), FlowSpec(method="nvidia_of"))


@pytest.mark.parametrize(("dtype", "grid"), [(np.float32, 1), (np.int16, 8), (np.int16, 3)])
def test_vectors_of_unknown_format_are_refused_and_the_hardware_is_freed(fake, dtype, grid):
    fake.cuda.NvidiaOpticalFlow_2_0.dtype, fake.cuda.NvidiaOpticalFlow_2_0.grid = dtype, grid
    with pytest.raises(ValueError, match=rf"optical flow hardware gave {np.dtype(dtype)} of shape \(.*expected int16"):
        estimate(np.zeros((2, 128, 160), np.uint8), FlowSpec(method="nvidia_of"))
    assert Hardware.made[0].freed


@pytest.mark.needs_cuda
@pytest.mark.parametrize("method", CUDA_METHODS)
def test_cuda_finds_a_known_motion(method):
    if methods()[method] != "available":
        pytest.skip(methods()[method])
    flow = estimate(moving_texture(2, height=240, width=320, dx=2.0, dy=-1.0), FlowSpec(method=method))
    inner = flow[0, :, 24:-24, 24:-24]
    np.testing.assert_allclose(np.median(inner, axis=(1, 2)), (2.0, -1.0), atol=0.2)
