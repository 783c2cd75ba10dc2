"""TV-L1 on CUDA in Triton: the iterations of `tvl1_torch`, each a single pass over memory.

Memory traffic bounds the speed, so an iteration is one kernel that reads and writes every field once. The duals of the
left and upper neighbors, which the divergence needs, are recomputed rather than waited for. The extrapolated flow
follows from the last two flows, which rotate through three buffers; the step sizes follow from the slopes. Every pixel
is computed by the same instructions in any batch, so a pair gives the same bits alone as in a batch.

There are many short kernel launches (50 to 70 per pyramid level, and as many where flow is computed afresh), some 470
for images of 340 x 256, which cost the host 5 ms or more, so pass a hundred pairs or more at a time.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
import triton
from torch import Tensor

from pipeline.flow import image_kernels, warp
from pipeline.flow import tvl1_kernels as kernels
from pipeline.flow.filters import (
    MEDIAN_FACTORS,
    gaussian_taps,
    median_offsets,
    pyramid_sizes,
    restart_level,
    shrinking_sigmas_px,
)
from pipeline.flow.tvl1_model import MIN_SIDE_PX, PRESMOOTH_PX, box_of, is_coarse, medians
from pipeline.specs import FlowSpec

# pixels that one program computes, one per thread; the median of 23 values needs many registers per thread
TILE = {"ROWS": 8, "COLUMNS": 64, "num_warps": 16}
MEDIAN_TILE = {"ROWS": 2, "COLUMNS": 64, "num_warps": 4}


@torch.inference_mode()
def flow_between(first: Tensor, second: Tensor, spec: FlowSpec) -> Tensor:
    """Flow of each pair, coarse to fine.

    Args:
        first, second: (N, H, W) uint8 gray, on one CUDA device.
        spec: the `tvl1_*` settings.

    Returns:
        (N, 2, H, W) float32 on that device, pixels.
    """
    count, height, width = first.shape
    sizes = pyramid_sizes(height, width, step=spec.tvl1_scale_step, min_side=MIN_SIDE_PX)
    with torch.cuda.device_of(first):  # kernels are launched on the current device
        levels = _pyramid(torch.cat([first, second]), sizes)
        state = _State.zero(count, sizes[-1], spec, first.device)
        for number, size in reversed(list(enumerate(sizes))):
            coarse, scale = is_coarse(size, sizes[0]), spec.tvl1_scale_step**number
            precision = torch.float64 if coarse else torch.float32
            state, images = state.resized(size).to(precision), levels[number].to(precision)
            _improve(state, images, spec, scale=scale, coarse=coarse)
            if number == restart_level(sizes):
                _start_afresh(state, images, spec, scale=scale, coarse=coarse)
    return state.flow.float()


@torch.inference_mode()
def weighted_median(flow: Tensor, image: Tensor, trust: Tensor, *, scale: float) -> Tensor:
    """`warp.weighted_median` for tensors on a CUDA device, in one kernel; Brox uses it too."""
    filtered = torch.empty_like(flow, memory_format=torch.contiguous_format)
    flow, image, trust = flow.contiguous(), image.contiguous(), trust.contiguous()
    fields = (flow, flow, image, trust, filtered, _offsets(scale, flow.device))  # nothing to limit: start is the flow
    with torch.cuda.device_of(flow):
        _launch(kernels.weighted_median, trust, *fields, FACTORS=MEDIAN_FACTORS)
    return filtered


class _State:
    """State that passes from level to level: flow (N, 2, H, W), duals (N, 4, H, W) and data duals (N, C, H, W).

    The four duals belong to the forward differences of both components along x, then along y.
    """

    def __init__(self, flow: Tensor, duals: Tensor, data: Tensor):
        self.flow, self.duals, self.data = flow, duals, data

    @classmethod
    def zero(cls, count: int, size: tuple[int, int], spec: FlowSpec, device: torch.device) -> _State:
        planes = 2, 4, len(box_of(spec))
        return cls(*(torch.zeros(count, n, *size, dtype=torch.float64, device=device) for n in planes))

    def resized(self, size: tuple[int, int]) -> _State:
        """The state on a finer grid; see `tvl1_torch`."""
        if self.flow.shape[-2:] == size:
            return self
        flow, duals, data = _resize(self.flow, size, FLOW=True), _resize(self.duals, size), _resize(self.data, size)
        duals[:, :2, :, -1], duals[:, 2:, -1] = 0, 0
        return _State(flow, duals, data)

    def to(self, precision: torch.dtype) -> _State:
        """The state in this precision."""
        return _State(*(field.to(precision) for field in (self.flow, self.duals, self.data)))

    def replace(self, pairs: Tensor, other: _State, where: Tensor) -> None:
        """Take pair k of the other state for pair `pairs[k]` of this one where `where`, (n, 1, 1, 1) bool, is true."""
        for here, there in (self.flow, other.flow), (self.duals, other.duals), (self.data, other.data):
            here[pairs] = torch.where(where, there, here[pairs])


def _pyramid(images: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """(M, H, W) uint8 -> (M, 1, height, width) float64 at every size, finest first; see `warp.pyramid`."""
    levels = [_blur(images.unsqueeze(1), PRESMOOTH_PX)]
    for size, sigma_px in zip(sizes[1:], shrinking_sigmas_px(sizes), strict=True):
        levels.append(_resize(_blur(levels[-1], sigma_px), size))
    return levels


def _blur(images: Tensor, sigma_px: float) -> Tensor:
    taps = _taps(sigma_px, images.device)
    for along_x in (True, False):
        source, images = images.contiguous(), torch.empty_like(images, dtype=torch.float64)
        _launch(image_kernels.blur, images, source, images, taps, RADIUS=len(taps) // 2, ALONG_X=along_x)
    return images


@functools.lru_cache(256)  # each upload, even of a few numbers, makes the host wait for all the device's pending work
def _taps(sigma_px: float, device: torch.device) -> Tensor:
    return torch.tensor(gaussian_taps(sigma_px), dtype=torch.float64, device=device)


@functools.lru_cache(256)
def _offsets(scale: float, device: torch.device) -> Tensor:
    return torch.tensor(median_offsets(scale), dtype=torch.int32, device=device)


def _resize(images: Tensor, size: tuple[int, int], *, FLOW: bool = False) -> Tensor:
    """Resize (M, planes, H, W); with FLOW the planes are x and y, and the vectors are scaled with the grid."""
    resized, planes = images.new_empty(*images.shape[:2], *size), images.shape[1]
    _launch(image_kernels.resize, resized[:, :1], images, resized, *images.shape[-2:], PLANES=planes, FLOW=FLOW)
    return resized


def _improve(state: _State, images: Tensor, spec: FlowSpec, *, scale: float, coarse: bool) -> None:
    """Improve the flow at one size: warp, solve, filter, several times; `images` holds all first, then all second."""
    count, channels = len(state.flow), len(box_of(spec))
    terms = {"GRADIENT": spec.tvl1_gradient_weight, "BRIGHTNESS": spec.tvl1_brightness_weight}
    compared = images.new_empty(2 * count, channels, *images.shape[-2:])
    _launch(kernels.describe, images, images, compared, **terms)
    warped, inside = torch.empty_like(compared[:count]), torch.empty_like(images[:count])
    linear = images.new_empty(count, 3 * channels, *images.shape[-2:])
    for weighted in medians(spec, coarse=coarse):
        _launch(image_kernels.warp, inside, compared[count:], state.flow, warped, inside, CHANNELS=channels)
        _launch(kernels.linearize, inside, compared, warped, inside, state.flow, linear, CHANNELS=channels)
        solved = _solve(state, linear, spec, terms)
        filtered = torch.empty_like(solved)
        if weighted:
            trusted, offsets = inside, _offsets(scale, images.device)
            _launch(kernels.trust, trusted, solved, state.flow, linear, trusted, **terms)
            fields = (solved, state.flow, images, trusted, filtered, offsets)
            _launch(kernels.weighted_median, trusted, *fields, FACTORS=MEDIAN_FACTORS)
        else:
            _launch(kernels.median, inside, solved, state.flow, filtered)
        state.flow = filtered


def _start_afresh(state: _State, images: Tensor, spec: FlowSpec, *, scale: float, coarse: bool) -> None:
    """Compute the pairs that the flow explains badly from zero too, and keep what is better; see `restart_level`.

    In ordinary videos there are none, so the host waits for the device to name them, once in a batch, and saves an
    eighth of all launches.
    """
    first, second = images.chunk(2)
    found = warp.mismatch(first, second, state.flow)
    pairs = _where(found > warp.MISMATCHED)
    if not len(pairs):
        return
    first, second = first[pairs], second[pairs]
    afresh = _State.zero(len(pairs), state.flow.shape[-2:], spec, images.device).to(images.dtype)
    _improve(afresh, torch.cat([first, second]), spec, scale=scale, coarse=coarse)
    better = warp.mismatch(first, second, afresh.flow) < warp.BETTER * found[pairs]
    state.replace(pairs, afresh, better.view(-1, 1, 1, 1))


def _where(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)


def _solve(state: _State, linear: Tensor, spec: FlowSpec, terms: dict[str, float]) -> Tensor:
    """The flow after all primal-dual iterations of a warping, not yet limited to `UPDATE_PX`; updates the duals."""
    flow = before = state.flow
    spare = [torch.empty_like(flow) for _ in range(min(3, spec.tvl1_iterations))]
    duals, other = state.duals, torch.empty_like(state.duals)
    for k in range(spec.tvl1_iterations):
        after = spare[k % 3]
        fields = (flow, before, after, duals, other, state.data, linear)
        _launch(kernels.iterate, linear[:, :1], *fields, **terms)
        before, flow = flow, after
        duals, other = other, duals
    state.duals = duals
    return flow


_LAUNCHING = threading.Lock()  # two threads launching a kernel for the first time would both compile it
_COMPILED: dict[tuple, tuple[triton.compiler.CompiledKernel, list]] = {}  # and its last arguments, which are constant


def _launch(kernel: triton.JITFunction, over: Tensor, *arguments: Tensor | int, **constants: Any) -> None:
    """Run a kernel for every pixel of every image of (M, 1, H, W) `over`.

    Triton finds the compiled kernel anew for each launch, with Python's lock held, which takes longer than to launch
    it: the Flow stage's other threads would wait. So it is kept here, by all that Triton compiles for: the device, the
    constants, and each tensor's type and alignment (of sizes, see `image_kernels.SIZE`, only that they are numbers).
    """
    count, _, height, width = over.shape
    tile = MEDIAN_TILE if kernel is kernels.weighted_median else TILE
    tiles = -(-width // tile["COLUMNS"]) * -(-height // tile["ROWS"])  # triton.cdiv takes a microsecond
    grid = count * tiles, 1, 1
    kinds = [type(a) is int or (a.dtype, a.data_ptr() % 16 == 0) for a in arguments]
    key = kernel.fn, over.device, *constants.values(), *tile.values(), *kinds
    if known := _COMPILED.get(key):
        compiled, last = known
        compiled[grid](*arguments, height, width, *last)
        return
    with _LAUNCHING:
        compiled = kernel[grid](*arguments, height, width, **constants, **tile)
    # the interpreter compiles nothing; what is compiled for AMD's GPUs also depends on the sizes of tensors
    if compiled is not None and torch.version.hip is None:
        named = {**constants, **tile}
        _COMPILED[key] = compiled, [named[name] for name in kernel.arg_names[len(arguments) + 2 :]]
