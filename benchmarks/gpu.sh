#!/usr/bin/env bash
# All that a machine with a GPU can show in one go: the CUDA tests, TV-L1's rate beside the CPU's, and the doctor's report.
# Needs torch, torchvision, h5py, OpenCV and pytest; neither luigi nor dask nor OpenCV's contrib modules.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD FAIL_WITHOUT_CUDA=1
python3 -m pytest -m needs_cuda tests/test_flow.py tests/test_flow_raft.py tests/test_flow_opencv.py tests/test_training.py
python3 - <<'PY'
import time

import numpy as np
import torch

from pipeline.flow import estimate
from pipeline.specs import FlowSpec

print(torch.cuda.get_device_name())
frames = np.random.default_rng(0).integers(0, 256, (129, 256, 340), np.uint8)
for device, pairs in (("cuda", 128), ("cpu", 4)):
    estimate(frames[:3], FlowSpec(), device=device)  # start the device, fill the caches
    rates = []
    for _ in range(3):
        begun = time.perf_counter()
        estimate(frames[: pairs + 1], FlowSpec(), device=device)
        rates.append(pairs / (time.perf_counter() - begun))
    print(f"tvl1, 340 x 256, {device}: {sorted(rates)[1]:.1f} pairs/s (lowest {min(rates):.1f}, highest {max(rates):.1f})")
PY
python3 -m pipeline doctor
