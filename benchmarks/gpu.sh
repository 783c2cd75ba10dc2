#!/usr/bin/env bash
# All tests and benchmarks for a machine with a GPU, in groups of steps, most important first:
#
#     benchmarks/gpu.sh                  # everything
#     benchmarks/gpu.sh flow streams     # some groups
#
#     flow      TV-L1: its CUDA tests, its rates by batch, the Flow stage end to end against the flow alone
#     streams   training and what it waits for, the loader with 16 processes and nvJPEG, the streams' CUDA tests
#     methods   error and speed of our own flow methods and torchvision's, the doctor's report
#     tests     the other CUDA tests
#     kernels   TV-L1: time by kernel, a sweep of tile sizes; a training step by memory layout
#
# Needs torch, torchvision, h5py, OpenCV and pytest, but not luigi, dask, OpenCV's contrib modules or an installation.
# RAFT is skipped if its weights are missing (the step says where they belong).
# Each step has its own time limit (at most ten minutes in total for a group, the first two steps included). Ten seconds
# before, it is interrupted as by Ctrl-C, so that pytest says what has failed; most others print what they find at once.
# A failed step does not stop the next; the exit status is 1 if any failed. PYTHON names another interpreter. With
# FAIL_WITHOUT_CUDA set but empty, tests are skipped without a GPU instead of failing.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD FAIL_WITHOUT_CUDA=${FAIL_WITHOUT_CUDA-1}
groups="flow streams methods tests kernels"
wanted=" ${*:-$groups} "
for name in $wanted; do
    [[ " $groups " == *" $name "* ]] || {
        printf 'there is no group %s; there are: %s\n' "$name" "$groups" >&2
        exit 2
    }
done
failed=()

group() { # name: whether it is wanted
    [[ $wanted == *" $1 "* ]]
}

step() { # name, seconds, command...
    local name=$1 limit=$2
    shift 2
    printf '\n=== %s\n' "$name"
    timeout -s INT -k 10 $((limit - 10)) "$@" || {
        printf '=== %s FAILED with status %d\n' "$name" $?
        failed+=("$name")
    }
}

python=${PYTHON:-python3}
# what fails is shown even if another test hangs, and where that one hangs
cuda_tests=("$python" -m pytest -m needs_cuda --tb=short -o faulthandler_timeout=100 --continue-on-collection-errors)
versions='import torch, triton; print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)'
step "device" 40 "$python" -c "$versions"
step "shared memory" 15 df -h /dev/shm
if group flow; then
    step "tests of TV-L1" 220 "${cuda_tests[@]}" tests/test_tvl1_triton.py
    step "rates of TV-L1" 110 "$python" benchmarks/tvl1_gpu.py rates
    step "flow stage" 130 "$python" benchmarks/flow_stage.py
    step "flow stage, larger shards" 75 "$python" benchmarks/flow_stage.py --shard-clips 32 --runs 2
fi
if group streams; then
    # twice as many steps as loading processes: each makes whole batches, so waits come back after that many steps
    training=("$python" benchmarks/training.py --stream temporal --network cnn_m_2048 --batch 256 --steps 32)
    step "training, float32 as in the paper's presets" 120 "${training[@]}" --precision float32 --rounds 1
    step "training, float32, the CPU decodes" 105 "${training[@]}" --precision float32 --rounds 1 --gpu-decoding 0
    step "training, bf16" 80 "${training[@]}" --precision bf16 --rounds 2
    # enough items to keep 16 processes busy for seconds, not only while they start
    step "loader" 110 "$python" benchmarks/loader.py --workers 16 --clips 24 --items 4096 --rounds 2
    stream_tests=(tests/test_{quantize,inputs,encoded,feeding,loading,training,together,launch}.py)
    step "tests of the streams" 120 "${cuda_tests[@]}" "${stream_tests[@]}"
fi
if group methods; then
    methods=(tvl1 brox raft_small raft_large)
    step "flow methods" 300 "$python" benchmarks/flow.py --methods "${methods[@]}" --devices cuda --threads 8
    step "doctor" 240 "$python" -m pipeline doctor
fi
if group tests; then
    step "other tests of flow" 300 "${cuda_tests[@]}" tests/test_flow*.py tests/test_brox.py
    step "tests of the stages" 240 "${cuda_tests[@]}" tests/test_{jobs,preprocess,benchmark_flow}.py
fi
if group kernels; then
    step "kernels of TV-L1" 120 "$python" benchmarks/tvl1_gpu.py profile
    step "tiles of TV-L1" 240 "$python" benchmarks/tvl1_gpu.py tiles
    step "layouts of a training step" 120 "$python" benchmarks/training_layouts.py
fi

if ((${#failed[@]})); then
    printf '\nfailed:\n'
    printf '  %s\n' "${failed[@]}"
    exit 1
fi
