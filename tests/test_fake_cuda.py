"""What runs on a GPU has all its tensors there, seen without one: torch's fake tensors have a device, and no content."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline import flow, quantize, training
from pipeline.dataset.inputs import ViewBatch
from pipeline.flow import device as flow_device
from pipeline.flow import tvl1, warp
from pipeline.flow.filters import median_offsets
from pipeline.specs import FlowSpec, StackSpec, StreamSpec
from pipeline.training import train_step
from pipeline.training.state import TrainingState

CUDA = torch.device("cuda:0")


@pytest.fixture
def fake_cuda(monkeypatch):
    """Tensors of CUDA that only say where they are: to mix them with those of a CPU is an error, as on a real GPU."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(flow, "method_device", lambda method, device: device)
    monkeypatch.setattr(flow_device, "_free_bytes", lambda device: 1 << 30)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def moved(network, device, **_):
    """`nn.Module.to`, which cannot exchange a parameter for a fake one."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(weight.detach().to(device), requires_grad=weight.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return network


RECIPES = {
    "paper": {"network": "cnn_m_2048", "crop_px": 224},
    "temporal": {"network": "resnet18", "stream": "temporal", "stack": StackSpec(length=3), "partial_bn": True},
    "snippets": {"network": "squeezenet1_1", "segments": 3, "accumulate": 2, "label_smoothing": 0.1},
    "heads": {"network": "small", "with_dataset": "x", "with_how": "heads"},
    "float32": {"network": "mobilenet_v3_small", "precision": "float32", "optimizer": "adamw", "clip_norm": 1.0},
}


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_training_steps_stay_on_the_device(fake_cuda, monkeypatch, recipe):
    spec = StreamSpec(**{"batch": 4, "steps": 3, "milestones": (2,), "resize_px": 0, "crop_px": 64, **recipe})
    now = TrainingState(spec, 3, CUDA, other_classes=2 if spec.with_how else 0)
    losses = []
    noted = lambda loss: losses.append(loss) or SimpleNamespace(item=lambda: 1.0)
    monkeypatch.setattr(training, "mean_over_processes", noted)
    learning = [weight for weight in now.network.parameters() if weight.requires_grad]

    def backward(loss):  # the real one asks the driver
        losses.append(loss)
        for weight in learning:
            weight.grad = torch.zeros_like(weight)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    channels = 2 * spec.stack.length if spec.stack else 3
    shape = (spec.items_per_step, *([spec.segments] if spec.segments > 1 else []), channels)
    values = torch.zeros(*shape, spec.crop_px, spec.crop_px, dtype=torch.uint8)
    for now.step in range(2):
        train_step(
            now, ViewBatch(values, torch.ones(shape), torch.zeros(shape)), torch.zeros(shape[0], dtype=torch.int64)
        )
    assert len(losses) == 2 * (1 + spec.accumulate) and {loss.device for loss in losses} == {CUDA}
    assert {state.device for of in now.optimizer.state.values() for state in of.values() if state.ndim} == {CUDA}


@pytest.mark.parametrize(
    ("method", "enlarge", "direction"), [("tvl1", 1, "forward"), ("tvl1", 2, "backward"), ("brox", 2, "forward")]
)
def test_flow_and_its_bytes_stay_on_the_device(fake_cuda, monkeypatch, method, enlarge, direction):
    """Every operation, but few of each: a fake one takes as long as a real one on thousands of pixels."""
    monkeypatch.setattr(tvl1, "triton_works", lambda device: False)
    monkeypatch.setattr(warp, "MEDIAN_FACTORS", warp.MEDIAN_FACTORS[:4])
    monkeypatch.setattr(warp, "median_offsets", lambda scale: median_offsets(scale)[:4])
    frames = np.zeros((5, 24, 32, 3), np.uint8)
    few = {"tvl1_scale_step": 0.5, "tvl1_coarse_warps": 1, "tvl1_iterations": 1}
    few |= {"brox_scale_step": 0.5, "brox_warps": 2, "brox_iterations": 1, "brox_sweeps": 1}
    spec = FlowSpec(method=method, enlarge=enlarge, batch_pairs=2, **few)
    found = flow.estimate_on_device(frames, spec, device="cuda:0", direction=direction, cuts=[2])
    assert (found.device, found.shape, found.dtype) == (CUDA, (3, 2, 24, 32), torch.float32)
    made = [
        quantize.to_bytes(found, check=False),
        *quantize.minmax_to_bytes(found, check=False),
        quantize.all_finite(found),
    ]
    assert {array.device for array in made} == {CUDA}


@pytest.mark.parametrize(("method", "least"), [("tvl1", 50), ("brox", 3)])
def test_triton_gets_what_is_on_the_device(fake_cuda, monkeypatch, method, least):
    tvl1_triton = pytest.importorskip("pipeline.flow.tvl1_triton")
    launched = []

    def launch(kernel, like, *fields, **constants):
        tensors = [field for field in (like, *fields) if isinstance(field, torch.Tensor)]
        launched.append({tensor.device for tensor in tensors})

    monkeypatch.setattr(tvl1_triton, "_launch", launch)
    monkeypatch.setattr(tvl1_triton, "_where", lambda mask: torch.arange(len(mask), device=mask.device))
    monkeypatch.setattr(tvl1, "triton_works", lambda device: True)
    for cache in (tvl1_triton._taps, tvl1_triton._offsets):  # fake tensors must not stay in them
        monkeypatch.setattr(tvl1_triton, cache.__name__, cache.__wrapped__)
    spec = FlowSpec(method=method, brox_scale_step=0.5, brox_warps=1, brox_iterations=1, brox_sweeps=1)
    found = flow.estimate_on_device(np.zeros((3, 64, 80), np.uint8), spec, device="cuda:0")
    assert (found.device, found.shape) == (CUDA, (2, 2, 64, 80))
    assert len(launched) >= least and all(devices == {CUDA} for devices in launched)
