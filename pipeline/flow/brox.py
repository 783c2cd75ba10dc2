"""Variational flow from brightness and gradient constancy, for many image pairs at once, on the CPU and on CUDA.

One model has two implementations: `brox_torch` defines it and runs anywhere, `brox_numba` is for the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.flow.compiling import compile_for_cpu, has_numba
from pipeline.flow.device import in_batches, plain_pairs_at_once
from pipeline.specs import FlowSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def between(
    first: np.ndarray | Tensor, second: np.ndarray | Tensor, spec: FlowSpec, *, device: str
) -> np.ndarray | Tensor:
    """Flow from each first image to its second image.

    Args:
        first, second: (N, H, W) uint8, gray; numpy arrays, or tensors on the device.
        spec: weights and iteration counts (`brox_*`), and `batch_pairs`, which does not change the result.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        (N, 2, H, W) float32, pixels, a numpy array from the CPU and a tensor on the device from CUDA; channel 0 is x
        (right positive), 1 is y (down positive). Equal images give exactly 0, and a pair gives the same bits alone as
        in a batch.

    Source: Brox, Bruhn, Papenberg, Weickert, High accuracy optical flow estimation based on a theory for warping,
    ECCV 2004: the energy, the warping and the two nested fixed point iterations. We differ in that
    - gray value and gradient are penalized separately (Bruhn, Weickert, Towards ultimate motion estimation, ICCV 2005),
    - every linearized constraint is divided by its slope, so a steep edge weighs no more than its distance in pixels
      (Zimmer, Bruhn, Weickert, Optic flow in harmony, IJCV 93(3), 2011), and its weight falls as that distance grows,
    - smoothness has less weight across edges of the first image (Werlberger et al., Anisotropic Huber-L1 optical
      flow, BMVC 2009; here regardless of the direction of the edge),
    - slopes are averaged over the first and the warped second image (Wedel et al., An improved algorithm for TV-L1
      optical flow, 2009),
    - the flow is median filtered after each warp (Wedel; Sun, Roth, Black, Secrets of optical flow estimation and their
      principles, CVPR 2010): here twice by 3 x 3, or, after the last warp of a level, by `warp.weighted_median`, where
      pixels that violate the constraints have little weight,
    - a pair that the coarsest levels do not explain, as under a flash, may start afresh (`filters.restart_level`),
    - iteration counts are fixed, and the unknowns are relaxed in red-black order.
    """
    if device == "cpu" and has_numba():
        from pipeline.flow import brox_numba

        compile_for_cpu("brox", brox_numba.flow_between)
        return brox_numba.flow_between(first, second, spec)
    from pipeline.flow import brox_torch

    pairs = plain_pairs_at_once(first.shape[1] * first.shape[2], device=device, batch_pairs=spec.batch_pairs)
    return in_batches(lambda a, b: brox_torch.flow_between(a, b, spec), first, second, pairs=pairs, device=device)
