#!/usr/bin/env bash
# All that a machine with a GPU can show in one go: the CUDA tests, TV-L1's rates, kernels and tiles, the doctor's report.
# Needs torch, torchvision, h5py, OpenCV and pytest; neither luigi nor dask nor OpenCV's contrib modules, and no install.
# Each step has its own time limit, and one that fails does not stop the next; the status is 1 if any failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD FAIL_WITHOUT_CUDA=1
failed=()

step() { # name, seconds, command...
    local name=$1 limit=$2
    shift 2
    printf '\n=== %s\n' "$name"
    timeout "$limit" "$@" || {
        printf '=== %s FAILED with status %d\n' "$name" $?
        failed+=("$name")
    }
}

python=${PYTHON:-python3}
step "device" 60 "$python" -c 'import torch, triton; print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)'
step "tests of TV-L1" 300 "$python" -m pytest -m needs_cuda tests/test_tvl1_triton.py
step "rates of TV-L1" 180 "$python" benchmarks/tvl1_gpu.py rates
step "kernels of TV-L1" 120 "$python" benchmarks/tvl1_gpu.py profile
step "other tests of flow" 400 "$python" -m pytest -m needs_cuda tests/test_flow*.py tests/test_brox.py
step "tests of the streams" 300 "$python" -m pytest -m needs_cuda tests/test_quantize.py tests/test_inputs.py tests/test_training.py
step "tests of the stages" 300 "$python" -m pytest -m needs_cuda tests/test_jobs.py tests/test_benchmark_flow.py
step "doctor" 240 "$python" -m pipeline doctor
step "tiles of TV-L1" 240 "$python" benchmarks/tvl1_gpu.py tiles

if ((${#failed[@]})); then
    printf '\nfailed:\n'
    printf '  %s\n' "${failed[@]}"
    exit 1
fi
