"""TV-L1 optical flow of many image pairs at once, on the CPU and on CUDA.

One model has three implementations: `tvl1_torch` defines it and runs anywhere, `tvl1_numba` is for the CPU, and
`tvl1_triton` for CUDA. If numba or Triton is missing, `tvl1_torch` does the work, with the same constants. If either is
installed but fails, a message says so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.flow.compiling import compile_for_cpu, computed_once, has_numba, patience
from pipeline.flow.device import in_batches, plain_pairs_at_once
from pipeline.specs import FlowSpec
from pipeline.system.errors import is_out_of_memory
from pipeline.system.progress import say

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def between(
    first: np.ndarray | Tensor, second: np.ndarray | Tensor, spec: FlowSpec, *, device: str
) -> np.ndarray | Tensor:
    """Flow from each first image to its second image.

    On every pyramid level, several times: the second image is warped by the current flow u0, the constraints are
    linearized, and, with differences between adjacent pixels,

        min over u of  sum over x of  |grad u(x)|  +  sum over c of  b_c m_c(x) |r_c(x) + s_c(x) . (u(x) - u0(x))|

    is solved by a fixed number of primal-dual iterations, so no pair waits for another.
    - |grad u| is the length of the Jacobian, so edges of both components coincide.
    - c runs over both components of the image gradient and the gray value, each only if it has a weight b. r is the
      residual at u0. s is the mean of the slopes in the first and the warped second image.
    - m = 1 / sqrt(1 + |s|^2 / SATURATION^2), so the residual at a steep edge is measured in pixels and does not
      outweigh weak textures, whose residual is measured in gray values. m is then divided by 1 + (m r / (SATURATION
      FAR_PX))^2: a residual that would take more than a few pixels of motion is a change of light or an occlusion.
    - Points that lead out of the image have no data term.
    Then the flow is median filtered; after a level's last warping, by `warp.weighted_median`, where pixels with a
    remaining residual (occluded, or leading out of the image) have little weight. The coarse levels are computed in
    double precision, with more warpings, and the weighted median after each (`tvl1_model.is_coarse`). What they found
    may be dropped for a flow computed afresh from a finer level, if that explains the images better, as it does where a
    flash or a fade misled them (`filters.restart_level`).

    Args:
        first, second: (N, H, W) uint8, gray; numpy arrays, or, for CUDA, tensors on the device.
        spec: weights and iteration counts (`tvl1_*`), and `batch_pairs`, which does not change the result.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        (N, 2, H, W) float32, pixels; channel 0 is x (right positive), 1 is y (down positive). A numpy array from the
        CPU, a torch tensor on the device from CUDA. Equal images give exactly 0, and a pair gives the same bits alone
        as in a batch.

    Source: Zach, Pock, Bischof, A duality based approach for realtime TV-L1 optical flow, DAGM 2007 (the model);
    Chambolle, Pock, A first-order primal-dual algorithm, JMIV 2011, and Pock, Chambolle, Diagonal preconditioning,
    ICCV 2011 (the solver, which needs no coupling variable); Brox et al., ECCV 2004 (gradient constancy); Zimmer et
    al., IJCV 2011 (constraints divided by their slopes); Wedel et al., 2009 (median filter); Sun et al., CVPR 2010
    (weighted median).
    """
    if device == "cpu" and has_numba():
        from pipeline.flow import tvl1_numba

        compile_for_cpu("tvl1", tvl1_numba.flow_between)
        return tvl1_numba.flow_between(first, second, spec)
    flow_between = _implementation(device)
    pairs = plain_pairs_at_once(first.shape[1] * first.shape[2], device=device, batch_pairs=spec.batch_pairs)
    return in_batches(lambda a, b: flow_between(a, b, spec), first, second, pairs=pairs, device=device)


def _implementation(device: str) -> Callable[[Tensor, Tensor, FlowSpec], Tensor]:
    """The fastest implementation that works: maps (N, H, W) uint8 images on the device to (N, 2, H, W) flow there."""
    if triton_works(device):
        from pipeline.flow import tvl1_triton as implementation
    else:
        from pipeline.flow import tvl1_torch as implementation
    return implementation.flow_between


@computed_once
def triton_works(device: str) -> bool:
    """Whether Triton's kernels can be used on the device, tried once per process and device.

    Triton compiles at run time, which takes a suitable C compiler and driver. If it is installed but fails, a message
    says so.
    """
    if device == "cpu" or not importlib.util.find_spec("triton"):
        return False
    import torch

    try:
        with patience("flow: Triton compiles its kernels, which may take a minute, once"):
            from pipeline.flow import tvl1_triton

            image = torch.zeros(1, 80, 80, dtype=torch.uint8, device=device)  # has levels of either precision
            tvl1_triton.flow_between(image, image, FlowSpec()).cpu()  # `cpu` waits: a kernel fails after its launch
    except Exception as error:  # whatever a compiler, a linker or a driver may raise
        if is_out_of_memory(error):
            raise
        say(f"flow: Triton fails on {device}, so plain torch is used, several times slower: {error!r}")
        return False
    return True
