"""TV-L1 optical flow of many image pairs at once, on the CPU and on CUDA.

One model, three implementations: `tvl1_torch` defines it and runs anywhere, `tvl1_numba` is the CPU's, `tvl1_triton`
CUDA's. Where numba or Triton is missing the plain one does the work, with the same numbers.
"""

from __future__ import annotations

import importlib.util

from pipeline.specs import FlowSpec

PIXELS_AT_ONCE = {"cpu": 320 * 240, "cuda": 128 * 320 * 240}


def between(first, second, spec: FlowSpec, *, device: str):
    """Flow from each first image to its second image.

    On every level of a pyramid, several times: the second image is warped by the present flow, the constraints are
    made linear, and with fields of unit steps

        min over u of  sum over x of  w(x) |grad u(x)|  +  sum over c of  b_c |r_c(x) + s_c(x) . (u(x) - u0(x))|

    is solved by a fixed number of primal-dual iterations, so that no pair waits for another. |grad u| is the length of
    the Jacobian, so edges of both components fall together; c runs over both components of the image gradient and, if
    asked for, the gray value; s is the mean of the slopes in the first and the warped second image; w is smaller where
    the first image has an edge; points that lead out of the image have no data term. Then the flow is median filtered,
    after the last warping of a level by `warp.weighted_median`.

    Args:
        first, second: (N, H, W) uint8, gray; numpy arrays, or tensors on the device.
        spec: weights and numbers of iterations (`tvl1_*`), and `batch_pairs`, which does not change the result.
        device: "cpu", "cuda" or "cuda:N".

    Returns:
        (N, 2, H, W) float32, pixels; channel 0 is x (right positive), 1 is y (down positive). A numpy array from the
        CPU, a torch tensor on the device from CUDA. Equal images give exactly 0, and a pair gives the same bits alone
        as in a batch.

    Source: Zach, Pock, Bischof, A duality based approach for realtime TV-L1 optical flow, DAGM 2007 (the model);
    Chambolle, Pock, A first-order primal-dual algorithm, JMIV 2011, and Pock, Chambolle, Diagonal preconditioning,
    ICCV 2011 (the solver, which needs no coupling variable); Brox et al., ECCV 2004 (gradient constancy); Wedel et
    al., ICCV 2009 (smoothness by the image's edges, median filter); Sun et al., CVPR 2010 (weighted median).
    """
    if device == "cpu" and importlib.util.find_spec("numba"):
        from pipeline.flow import tvl1_numba

        return tvl1_numba.flow_between(first, second, spec)
    return _on_tensors(first, second, spec, device)


def _on_tensors(first, second, spec: FlowSpec, device: str):
    import torch

    from pipeline.flow import tvl1_torch

    count, height, width = first.shape
    flow = torch.empty(count, 2, height, width, device=device)
    pairs = spec.batch_pairs or max(1, PIXELS_AT_ONCE[flow.device.type] // (height * width))
    for start in range(0, count, pairs):
        batch = (torch.as_tensor(of[start : start + pairs]).to(device).unsqueeze(1).float() for of in (first, second))
        flow[start : start + pairs] = tvl1_torch.flow_between(*batch, spec)
    return flow if flow.is_cuda else flow.numpy()
