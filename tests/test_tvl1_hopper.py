"""What Triton makes of TV-L1's kernels for a Hopper GPU, on any machine: the compiler and the assembler need no GPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

THREADS, REGISTERS = 2048, 65536
"""Of a multiprocessor of compute capability 9.0, at most."""

SCRIPT = """
import json, re, subprocess, sys
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from pipeline.flow import tvl1_kernels, tvl1_triton
from pipeline.specs import FlowSpec

launched = []

class Utils:
    get_device_properties = staticmethod(lambda device: {"max_shared_mem": 232448})
    load_binary = staticmethod(lambda name, binary, shared, device: (1, (name, hash(binary)), 32, 0, 1024))
    unload_module = staticmethod(lambda module: None)

class Launcher:
    def __init__(self, source, metadata):
        pass

    def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
        told = [str(a.dtype) if torch.is_tensor(a) else a for a in arguments]
        launched.append([[x, y, z], stream, function, packed, told])

class Hopper:  # as much of a driver as compiling takes, and launching nothing
    utils = Utils
    launcher_cls = Launcher
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)  # memory that nothing wrote is NaN every time, not whatever was there
triton.runtime.driver.set_active(Hopper())
dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
found = {}

def compiled(kernel, grid):
    def instead_of_a_launch(*arguments, **constants):
        precision = str(arguments[0].dtype).removeprefix("torch.")
        for field in arguments:  # nothing is computed: what torch computes from the results must be finite
            if torch.is_tensor(field) and field.is_floating_point():
                field.zero_()
        if kernel is tvl1_kernels.weighted_median and precision == "float64":
            return  # it takes long to assemble
        made = kernel.warmup(*arguments, grid=grid, **constants)
        if made.hash not in found:
            Path(sys.argv[1], "cubin").write_bytes(made.asm["cubin"])
            said = subprocess.run([dump, "--dump-resource-usage", Path(sys.argv[1], "cubin")], capture_output=True)
            numbers = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL|SHARED):(\\d+)", said.stdout.decode())}
            threads = 32 * made.metadata.num_warps
            found[made.hash] = {"kernel": kernel.__name__, "precision": precision, "threads": threads, **numbers}
    return instead_of_a_launch

JITFunction.__getitem__ = compiled
images = torch.zeros(2, 256, 340, dtype=torch.uint8)
tvl1_triton.flow_between(images[:1], images[1:], FlowSpec())
del JITFunction.__getitem__  # from here on kernels are launched
images = torch.zeros(2 * 1 * 33 * 70 + 1)
aligned, other = images[:-1].view(2, 1, 33, 70), images[1:].view(2, 1, 33, 70)

def launches(*calls):
    launched.clear()
    for images in calls:
        tvl1_triton._blur(images, 0.8)
        tvl1_triton._resize(images, (20, 40))
        tvl1_triton._resize(images.double(), (20, 40), FLOW=True)
    return list(launched)

given = aligned, other, aligned.double()
same, asked = launches(*given), []
searched = JITFunction.run
JITFunction.run = lambda kernel, *a, **k: asked.append(kernel.__name__) or searched(kernel, *a, **k)
again = launches(*given)
launches(torch.zeros(2, 1, 40, 80))
needless = list(asked)
tvl1_triton._COMPILED.clear()
third = launches(*given)
told = {"same": same, "again": again, "third": third, "needless": needless, "asked": len(asked)}
print(json.dumps({"kernels": list(found.values()), "launches": told}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    folder = tmp_path_factory.mktemp("hopper")
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "", "TRITON_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-c", SCRIPT, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture
def kernels(found):
    """Every kernel of a default run at 340 x 256, in both precisions, but for the median's double one."""
    return found["kernels"]


def test_every_kernel_compiles(kernels):
    names = {row["kernel"] for row in kernels}
    assert names == {
        *("blur", "resize", "warp", "describe", "linearize"),
        *("iterate", "median", "trust", "weighted_median"),
    }
    assert {row["precision"] for row in kernels if row["kernel"] == "iterate"} == {"float32", "float64"}


def test_nothing_is_kept_outside_registers(kernels):
    """A spilled register is read from memory, which is what bounds the speed."""
    assert not [row for row in kernels if row["STACK"] or row["LOCAL"] or row["SHARED"]]


def test_iterations_leave_room_for_threads(kernels):
    """Enough threads at once hide how long memory takes: in single precision, where the work is, all that there can be."""
    for row in kernels:
        if row["kernel"] == "iterate":
            at_once = REGISTERS // (row["REG"] * row["threads"]) * row["threads"]
            assert at_once >= (THREADS if row["precision"] == "float32" else THREADS // 2), row


def test_a_compiled_kernel_is_launched_as_triton_would_launch_it(found):
    """Whatever the types and the alignment; what was compiled is not asked for again, nor for images of another size."""
    found = found["launches"]
    assert len(found["same"]) == 12 and found["again"] == found["third"] == found["same"]
    assert len({json.dumps(function) for _, _, function, *_ in found["same"]}) > 4
    assert found["needless"] == [] and found["asked"] >= 6
