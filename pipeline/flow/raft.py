"""RAFT, a trained network, from torchvision; on the CPU and on CUDA."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import optical_flow

from pipeline.flow import weights
from pipeline.flow.device import in_batches
from pipeline.specs import FlowSpec
from pipeline.system import downloads
from pipeline.system.errors import UserError
from pipeline.system.tensors import read_tensors, true_float32

CELL_PX = 8  # the network works on cells of this side
MIN_SIDE_PX = 128  # its coarsest correlations need two cells per side
MEMORY_BYTES = 4 << 30  # approximate memory of one batch on CUDA
PIXEL_BYTES = 1200  # memory of an image pair per pixel: feature maps and the flow of every update
CELL_PAIR_BYTES = 6  # memory of an image pair per pair of cells: correlations and their pyramid
MOST_CELLS = 65_535  # of all pairs of a batch


def between(
    first: np.ndarray | Tensor, second: np.ndarray | Tensor, spec: FlowSpec, *, device: str
) -> np.ndarray | Tensor:
    """Flow from each first image to its second image.

    Args:
        first, second: (N, H, W, 3) uint8, RGB; numpy arrays, or, for CUDA, tensors on the device.
        spec: its method names the network; also reads `raft_weights`, `raft_updates`, and `batch_pairs`, which on CUDA
            changes the rounding of the result.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        (N, 2, H, W) float32, pixels; channel 0 is x (right positive), 1 is y (down positive). A numpy array from the
        CPU, a torch tensor on the device from CUDA.

    Raises:
        FileNotFoundError, ValueError: as for `load`.

    Source: Teed and Deng, RAFT: recurrent all pairs field transforms for optical flow, ECCV 2020, with torchvision's
    networks and weights. Frames are extended by repeating their border pixels to whole cells and at least the smallest
    size that the network takes; the flow is cropped back.
    """
    network = _on_device(spec, weights.find(spec).stat().st_mtime_ns, device)
    pairs = _pairs_at_once(*first.shape[1:3], device, spec.batch_pairs)

    def compute(*frames: Tensor) -> Tensor:
        return _flow(network, *map(_images, frames), spec.raft_updates)

    return in_batches(compute, first, second, pairs=pairs, device=device)


def _pairs_at_once(height: int, width: int, device: str, batch_pairs: int) -> int:
    """Number of pairs in a batch: on CUDA by the memory of one pair, since correlations grow with the size squared.

    Each cell of each pair is an image to cuDNN's grid sampler, which takes MOST_CELLS at a time (PyTorch issue 88380).

    On the CPU it is one, which is just as fast. The rounding of convolutions depends on the batch size, and the CPU
    must always give the same bytes.
    """
    if device == "cpu":
        return 1
    height, width = (max(MIN_SIDE_PX, side) for side in (height, width))
    cells = height * width / CELL_PX**2
    fit = batch_pairs or int(MEMORY_BYTES / (PIXEL_BYTES * height * width + CELL_PAIR_BYTES * cells**2))
    return max(1, min(fit, MOST_CELLS // (-(-height // CELL_PX) * -(-width // CELL_PX))))


def load(spec: FlowSpec) -> nn.Module:
    """The network with its weights, on the CPU, in evaluation mode. Files are read with weights_only=True.

    Raises:
        FileNotFoundError: no such file, or it cannot be downloaded.
        ValueError: the file is damaged, or holds other weights.
    """
    path = weights.find(spec)
    if spec.weights_file is None:
        downloads.check_content(path)
    state = _read(path)
    with torch.random.fork_rng(devices=[]):  # random weights are overwritten; keep torch's global random state
        network = getattr(optical_flow, spec.method)(weights=None)
    _refuse_mismatch(network.state_dict(), state, path, spec.method)
    network.load_state_dict(state)
    return network.eval()


@functools.lru_cache(maxsize=2)
def _on_device(spec: FlowSpec, changed_ns: int, device: str) -> nn.Module:
    """The network on the device, cached for the next batch; a replaced file (`changed_ns`) is read again."""
    return load(spec).to(device)


def _read(path: Path) -> dict[str, Tensor]:
    state = read_tensors(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no named tensors; RAFT's weights are a state_dict of torchvision's network")
    return state


def _refuse_mismatch(wanted: dict[str, Tensor], found: dict[str, Tensor], path: Path, method: str) -> None:
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in wanted]
    faults += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"the weights in {path} do not fit {method}: {', '.join(faults[:3])}{more}")


def _images(frames: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32, -1..1."""
    return frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


@true_float32()
@torch.inference_mode()
def _flow(network: nn.Module, first: Tensor, second: Tensor, updates: int) -> Tensor:
    """Flow (N, 2, H, W) between images (N, 3, H, W) of any size."""
    height, width = first.shape[-2:]
    top, bottom = border_px(height)
    left, right = border_px(width)
    padded = [functional.pad(images, (left, right, top, bottom), mode="replicate") for images in (first, second)]
    return network(*padded, num_flow_updates=updates)[-1][..., top : top + height, left : left + width]


def border_px(side: int) -> tuple[int, int]:
    """Padding of a side, before and after, to whole cells, at least MIN_SIDE_PX: 250 gives (3, 3), 1 gives (63, 64)."""
    missing = -(-max(side, MIN_SIDE_PX) // CELL_PX) * CELL_PX - side
    return missing // 2, missing - missing // 2
