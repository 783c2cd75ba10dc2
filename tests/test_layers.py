"""The layers: a module imports only from those above it, HDF5 and dask stay where they belong, imports stay light."""

import ast
import graphlib
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def layers() -> list[str]:
    """The first column of docs/design.md's table, read downwards: the way of the data, and the order of imports."""
    table = (ROOT / "docs/design.md").read_text().split("| module |")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [name.removesuffix(".py").removesuffix("/") for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


LAYERS = layers()


def modules() -> dict[Path, str]:
    """Every file of pipeline/ -> the layer it belongs to."""
    files = sorted((ROOT / "pipeline").rglob("*.py"))
    return {file: file.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py") for file in files}


def imported(file: Path) -> set[str]:
    """Dotted names of all that a file imports, at its top or inside functions; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_package_is_whole_and_asks_for_what_the_requirements_do():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {file.parent.relative_to(ROOT) for top in ("pipeline", "tasks") for file in (ROOT / top).rglob("*.py")}
    assert set(about["tool"]["setuptools"]["packages"]) == {".".join(folder.parts) for folder in folders}
    lines = [line.strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    wanted = {line for line in lines if line and not line.startswith(("#", "-e", "pytest", "ruff"))}
    assert set(about["project"]["dependencies"]) == wanted


def test_every_module_has_its_place():
    assert set(modules().values()) - {"__init__"} == set(LAYERS)


def test_every_file_of_a_folder_is_named_in_its_row():
    rows = {
        name: row
        for row in (ROOT / "docs/design.md").read_text().splitlines()
        for name in LAYERS
        if row.startswith(f"| `{name}/`")
    }
    for file, layer in modules().items():
        if layer in rows and not file.name.startswith("__"):
            assert f"`{file.name}`" in rows[layer], f"docs/design.md: the row of {layer}/ does not name {file.name}"


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_from_above(file):
    layer = modules()[file]
    above = LAYERS[: LAYERS.index(layer)] if layer in LAYERS else []
    used = {name.split(".")[1] for name in imported(file) if name.startswith("pipeline.")}
    below = {name for name in used if name in LAYERS} - set(above) - {layer}
    assert not below, f"{file} imports {sorted(below)}, which stand below it"


def test_no_imports_go_in_a_circle():
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in modules()}
    names = {name.removesuffix(".__init__"): file for name, file in names.items()}
    needs = {name: used_at_runtime(file) & (set(names) - {name}) for name, file in names.items()}
    order = list(graphlib.TopologicalSorter(needs).static_order())  # raises CycleError, which names the circle
    assert (
        order.index("pipeline.system.errors") < order.index("pipeline.store.container") < order.index("pipeline.store")
    )


def used_at_runtime(file: Path) -> set[str]:
    """Modules that a file imports, apart from those in `if TYPE_CHECKING`; `from folder import module` is that module."""
    tree = ast.parse(file.read_text())
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    pairs = [(node.module, f"{node.module}.{alias.name}") for node in found for alias in node.names]
    return {part if is_module(part) else whole for whole, part in pairs}


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_no_module_is_hidden_by_a_name_of_its_folder():
    """Such as a function `launch` in the `__init__.py` beside `launch.py`."""
    for found in pkgutil.walk_packages([str(ROOT / "pipeline")], "pipeline."):
        folder, _, name = found.name.rpartition(".")
        assert importlib.import_module(found.name) is getattr(sys.modules[folder], name), found.name


def test_no_test_module_imports_another():
    tests = sorted((ROOT / "tests").glob("*.py"))
    assert not [file for file in tests if any(name.startswith("test_") for name in imported(file))]


def test_luigi_stays_in_tasks():
    assert not [file for file in modules() if any(name.split(".")[0] in ("luigi", "tasks") for name in imported(file))]


def test_hdf5_lives_in_the_store():
    users = {layer for file, layer in modules().items() if "h5py" in imported(file)}
    assert users == {"store"}


def test_dask_lives_in_the_cluster():
    users = {layer for file, layer in modules().items() if {"dask", "distributed"} & imported(file)}
    assert users == {"cluster"}


def test_tasks_import_no_arithmetic():
    for file in (ROOT / "tasks").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(file)} & {
            "numpy",
            "torch",
            "cv2",
            "h5py",
            "dask",
            "sklearn",
        }


@pytest.mark.parametrize(
    "module", ["tasks", "pipeline.catalog", "pipeline.store", "pipeline.preprocess", "pipeline.scores"]
)
def test_importing_it_does_not_import_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_flow_needs_neither_dask_nor_luigi_nor_sklearn_nor_contrib():
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dask", "distributed", "luigi", "sklearn", "matplotlib", "h5py"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import cv2, numpy
del cv2.optflow
from pipeline.flow import estimate, methods
from pipeline.specs import FlowSpec
frames = numpy.random.default_rng(0).integers(0, 256, (2, 24, 24), numpy.uint8)
for method in ("tvl1", "dis_fast", "farneback"):
    assert methods()[method] == "available"
    assert estimate(frames, FlowSpec(method=method), device="cpu").shape == (1, 2, 24, 24)
try:
    estimate(frames, FlowSpec(method="deepflow"))
except ValueError as error:
    print(error)
print(methods()["pcaflow"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    why = "this OpenCV has no contrib modules (cv2.optflow); pip uninstall opencv-python opencv-python-headless, "
    why += "then pip install --force-reinstall opencv-contrib-python"
    assert done.stdout.splitlines() == [f"[flow] method deepflow is not available: {why}", f"not available: {why}"]
