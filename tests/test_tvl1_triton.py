"""TV-L1 in Triton against its definition: in Triton's interpreter anywhere, compiled where there is a CUDA device."""

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving_texture
from motions import MOTIONS, moved

from pipeline.flow import compiling, estimate, tvl1, tvl1_torch, warp
from pipeline.specs import FlowSpec

GRADIENT, BRIGHTNESS = {"tvl1_brightness_weight": 0.0}, {"tvl1_brightness_weight": 0.2, "tvl1_gradient_weight": 0.0}
CASES = {  # height, width, settings; all levels are coarse but one of "both precisions"
    "gradient": (20, 31, {**GRADIENT, "tvl1_coarse_warps": 2, "tvl1_iterations": 5}),
    "three terms": (15, 29, {"tvl1_warps": 1, "tvl1_coarse_warps": 1, "tvl1_iterations": 2}),
    "brightness": (14, 24, {**BRIGHTNESS, "tvl1_coarse_warps": 1, "tvl1_iterations": 5}),
    "a narrow strip": (9, 64, {"tvl1_scale_step": 0.5, "tvl1_coarse_warps": 1, "tvl1_iterations": 2}),
    "a column": (20, 1, {"tvl1_coarse_warps": 1, "tvl1_iterations": 1}),
    "both precisions": (68, 64, {"tvl1_scale_step": 0.3, "tvl1_coarse_warps": 1, "tvl1_iterations": 2}),
}
INTERPRET = """
import sys
import numpy as np, torch
from pipeline.flow import tvl1_triton, warp
from pipeline.specs import FlowSpec
from test_tvl1_triton import CASES
torch.set_num_threads(1)
cases, flows = np.load(sys.argv[1]), {}
def flow(name, rows, columns, first=0, last=None):
    tvl1_triton.TILE.update(ROWS=rows, COLUMNS=columns)
    tvl1_triton.MEDIAN_TILE.update(ROWS=rows, COLUMNS=columns)
    images, spec = torch.from_numpy(cases[name])[first:last], FlowSpec(**CASES[name][2])
    return tvl1_triton.flow_between(images[:-1], images[1:], spec).numpy()

for name, (height, _, _) in CASES.items():
    flows[name] = flow(name, 32 if height <= 32 else 128, 64)  # one program an image: the interpreter is slow by the program
flows["tiles, alone"] = flow("three terms", 16, 16, first=1)
images = torch.from_numpy(cases["three terms"])
still = tvl1_triton.flow_between(images[1:2], images[1:2], FlowSpec(tvl1_coarse_warps=1, tvl1_iterations=2))
parts = (torch.from_numpy(cases[name]) for name in ("median flow", "median image", "median trust"))
median = tvl1_triton.weighted_median(*parts, scale=0.6)
warp.MISMATCHED, warp.BETTER = -1.0, 9.0  # every pair starts afresh
flows["afresh"] = flow("both precisions", 128, 64)
np.savez(sys.argv[2], still=still.numpy(), median=median.numpy(), **flows)
"""


def reference(images, spec):
    """The definition in float64 of consecutive (T, H, W) uint8 images."""
    images = torch.from_numpy(images).double()
    return tvl1_torch.flow_between(images[:-1], images[1:], spec).numpy()


def on_cuda(frames, spec, device="cuda"):
    """(T - 1, 2, H, W) numpy, computed on the device."""
    return torch.as_tensor(estimate(frames, spec, device=device)).cpu().numpy()


def clip(height, width, settings):
    frames = 3 if settings.get("tvl1_warps") == 1 else 2  # more pairs take the interpreter longer
    return moving_texture(frames, height=height, width=width, dx=1.3, dy=-0.6, seed=height)[..., 0].copy()


def median_fields():
    """Flow, image and trust of two small pairs, in double precision."""
    rng = np.random.default_rng(0)
    shapes = {"flow": (2, 2, 11, 13), "image": (2, 1, 11, 13), "trust": (2, 1, 11, 13)}
    fields = {f"median {name}": rng.random(shape) for name, shape in shapes.items()}
    fields["median image"] *= 40
    return fields


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernels give for every case, run by Triton's interpreter in a process of its own."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    folder = tmp_path_factory.mktemp("interpreted")
    np.savez(folder / "images.npz", **{name: clip(*case) for name, case in CASES.items()}, **median_fields())
    here = Path(__file__).parent
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{here.parent}:{here}", "PATH": "", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", INTERPRET, folder / "images.npz", folder / "flows.npz"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / "flows.npz")


@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_the_definition(interpreted, case):
    height, width, settings = CASES[case]
    difference = np.abs(interpreted[case] - reference(clip(height, width, settings), FlowSpec(**settings)))
    assert difference.mean() <= 1e-5 and difference.max() <= 1e-3


def test_a_pair_that_starts_afresh_agrees_with_the_definition(interpreted, monkeypatch):
    height, width, settings = CASES["both precisions"]
    monkeypatch.setattr(warp, "MISMATCHED", -1.0)
    monkeypatch.setattr(warp, "BETTER", 9.0)
    difference = np.abs(interpreted["afresh"] - reference(clip(height, width, settings), FlowSpec(**settings)))
    assert difference.mean() <= 1e-5 and difference.max() <= 1e-3
    assert not np.array_equal(interpreted["afresh"], interpreted["both precisions"])


def test_only_pairs_that_the_flow_explains_badly_start_afresh_and_only_better_flow_is_kept(monkeypatch):
    tvl1_triton = pytest.importorskip("pipeline.flow.tvl1_triton")
    images = torch.from_numpy(moving_texture(2, height=48, width=64, dx=2, dy=0, seed=0)[..., 0].copy()).double()
    first, second = (image.expand(3, 1, 48, 64) for image in images)
    right, wrong = (torch.tensor(flow, dtype=torch.float64).view(2, 1, 1) for flow in ([2, 0], [-5, 4]))
    flows = torch.stack([flow.expand(2, 48, 64) for flow in (right, wrong, wrong)])
    state = tvl1_triton._State(flows.clone(), *(flows.new_zeros(3, planes, 48, 64) for planes in (4, 3)))

    def improve(afresh, images, spec, **_):
        assert len(afresh.flow) == 2 and len(images) == 4 and not any(map(torch.any, vars(afresh).values()))
        afresh.flow = torch.stack([flow.expand(2, 48, 64) for flow in (right, wrong)])
        afresh.duals, afresh.data = afresh.duals + 1, afresh.data + 1

    monkeypatch.setattr(tvl1_triton, "_improve", improve)
    tvl1_triton._start_afresh(state, torch.cat([first, second]), FlowSpec(), scale=1.0, coarse=True)
    assert torch.equal(state.flow, torch.stack([flow.expand(2, 48, 64) for flow in (right, right, wrong)]))
    assert [field.flatten(1).unique().tolist() for field in (state.duals[1], state.data[1])] == [[1], [1]]
    assert not state.duals[::2].any() and not state.data[::2].any()


def test_kernels_give_the_same_bits_whatever_the_tile_and_the_batch(interpreted):
    assert interpreted["tiles, alone"].tobytes() == interpreted["three terms"][1:].tobytes()


def test_kernels_give_exactly_zero_for_equal_images(interpreted):
    assert not interpreted["still"].any()


class FakeTriton:
    """Stands where the kernels would, on a machine that has none."""

    def __init__(self, error=None):
        self.error, self.calls = error, []

    def flow_between(self, first, second, spec):
        self.calls.append(tuple(first.shape))
        if self.error:
            raise self.error
        return torch.full((len(first), 2, *first.shape[1:]), 7.0)


def test_the_weighted_median_alone_is_that_of_the_definition(interpreted):
    """Brox takes it from here."""
    fields = [torch.from_numpy(field) for field in median_fields().values()]
    np.testing.assert_allclose(interpreted["median"], warp.weighted_median(*fields, scale=0.6).numpy(), atol=1e-12)


@pytest.fixture
def use_fake(monkeypatch):
    def use(fake):
        monkeypatch.setitem(sys.modules, "pipeline.flow.tvl1_triton", fake)
        monkeypatch.setattr("pipeline.flow.tvl1_triton", fake, raising=False)
        return fake

    tvl1.triton_works.cache_clear()
    yield use
    tvl1.triton_works.cache_clear()


def test_triton_that_works_is_used(use_fake, capsys):
    fake = use_fake(FakeTriton())
    assert tvl1._implementation("cpu:0") == fake.flow_between  # any name but "cpu" counts as a device of Triton's
    assert fake.calls == [(1, 80, 80)] and capsys.readouterr().err == ""
    tvl1._implementation("cpu:0")
    assert len(fake.calls) == 1


def test_waiting_for_the_compiler_is_reported(use_fake, monkeypatch, capsys):
    waited = threading.Event()
    monkeypatch.setattr(compiling, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(compiling, "say", lambda text: (print(text), waited.set()))
    fake = use_fake(FakeTriton())
    fake.flow_between = lambda first, *_: torch.full((1, 2, 80, 80), float(waited.wait(10)))
    assert tvl1._implementation("cpu:0") == fake.flow_between
    assert capsys.readouterr().out == "flow: Triton compiles its kernels, which may take a minute, once\n"


def test_triton_that_fails_is_said_once_and_plain_torch_computes(use_fake, capsys):
    use_fake(FakeTriton(RuntimeError("Failed to find C compiler")))
    assert tvl1._implementation("cpu:0") is tvl1._implementation("cpu:0") is tvl1_torch.flow_between
    said = capsys.readouterr().err
    assert said.count("flow: Triton fails on cpu:0, so plain torch is used, several times slower: RuntimeError") == 1
    assert "Failed to find C compiler" in said


def test_full_memory_is_no_failure_of_triton(use_fake):
    for full in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("Triton Error [CUDA]: out of memory")):
        use_fake(FakeTriton(full))
        with pytest.raises(RuntimeError, match="out of memory"):
            tvl1._implementation("cpu:0")


def test_no_triton_is_plain_torch(monkeypatch):
    monkeypatch.setattr(tvl1.importlib.util, "find_spec", lambda name: None)
    assert tvl1._implementation("cuda") is tvl1_torch.flow_between


def test_tensors_give_what_arrays_give(monkeypatch):
    monkeypatch.setattr(tvl1.importlib.util, "find_spec", lambda name: None)  # plain torch
    images, spec = clip(20, 24, {}), FlowSpec(tvl1_iterations=3)
    arrays = tvl1.between(images[:-1], images[1:], spec, device="cpu")
    tensors = tvl1.between(*(torch.from_numpy(of) for of in (images[:-1], images[1:])), spec, device="cpu")
    assert arrays.tobytes() == tensors.tobytes()


@pytest.mark.needs_cuda
@pytest.mark.parametrize("settings", [settings for _, _, settings in CASES.values()])
@pytest.mark.parametrize("motion", MOTIONS)
def test_compiled_kernels_agree_with_the_definition(motion, settings):
    frames, spec = moved(MOTIONS[motion])[0], FlowSpec(**settings)
    assert tvl1.triton_works("cuda")
    difference = np.abs(on_cuda(frames, spec) - reference(frames, spec))
    assert difference.mean() <= 1e-3 and difference.max() <= 0.02


@pytest.mark.needs_cuda
@pytest.mark.parametrize("size", [(16, 16), (61, 83), (240, 320), (40, 1), (300, 24)])
def test_a_pair_alone_is_the_pair_in_a_batch_on_cuda(size):
    frames = moving_texture(8, height=size[0], width=size[1], dx=0.7)[..., 0].copy()
    together = on_cuda(frames, FlowSpec(batch_pairs=7))
    for pairs in (1, 2, 3, 0):
        assert on_cuda(frames, FlowSpec(batch_pairs=pairs)).tobytes() == together.tobytes()


@pytest.mark.needs_cuda
def test_standing_still_is_exactly_zero_on_cuda():
    noise = np.random.default_rng(1).integers(0, 256, (1, 61, 83)).astype(np.uint8)
    assert not on_cuda(np.repeat(noise, 3, axis=0), FlowSpec()).any()


@pytest.mark.needs_cuda
def test_tensors_on_the_device_and_streams_give_the_same_bits():
    images = torch.from_numpy(moving_texture(6, height=120, width=160)[..., 0].copy()).cuda()
    expected = tvl1.between(images[:-1], images[1:], FlowSpec(), device="cuda")
    torch.cuda.synchronize()
    found = {}

    def work(name):
        with torch.cuda.stream(torch.cuda.Stream()):
            found[name] = [tvl1.between(images[:-1], images[1:], FlowSpec(), device="cuda") for _ in range(3)]
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(flow, expected) for flows in found.values() for flow in flows) and len(found) == 2


@pytest.mark.needs_cuda
def test_any_device_gives_the_same_bits():
    frames = moving_texture(3, height=61, width=83)[..., 0].copy()
    flows = [on_cuda(frames, FlowSpec(), f"cuda:{k}") for k in range(torch.cuda.device_count())]
    assert all(flow.tobytes() == flows[0].tobytes() for flow in flows)
