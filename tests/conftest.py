"""What all tests share: the folder of real data, the GPU rule, one thread in cv2, no leaked random state."""

import functools
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# before torch is imported: tests run side by side, so no thread may wait by spinning
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder that holds `data/weizmann` and the like; tests that need it skip without it."""
    folder = Path(os.environ.get("TWOSTREAM_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data is not at {folder} (set TWOSTREAM_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _one_thread_and_own_random_state():
    threads, state = cv2.getNumThreads(), np.random.get_state()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)
    np.random.set_state(state)


@pytest.fixture
def hears_ctrl_c():
    """This process hears Ctrl-C, even if it was started in the background, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def one_torch_thread():
    """Torch with one thread, as in workers."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# files whose tests take longest, of which the last one to be begun would keep one process at work alone
LONGEST = (
    "test_flow.py",
    "test_tvl1_triton.py",
    "test_launch.py",
    "test_processes.py",
    "test_tasks_changes.py",
    "test_tasks.py",
    "test_preprocess.py",
    "test_fake_cuda.py",
    "test_layers.py",
    "test_tvl1_hopper.py",
    "test_benchmark_training.py",
    "test_repeat.py",
    "test_whole_batch.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first. Skip GPU tests without a GPU, unless FAIL_WITHOUT_CUDA says that there must be one."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
    marked = [item for item in items if item.get_closest_marker("needs_cuda")]
    if not marked or os.environ.get("FAIL_WITHOUT_CUDA"):
        return
    from pipeline.system.gpus import cuda_count

    if not cuda_count():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def write_video(path: Path, frames: np.ndarray, *, fps: float = 25.0) -> Path:
    """Write (T, H, W, 3) uint8 RGB frames as a Motion-JPEG AVI; sides should be even."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, frames.shape[2:0:-1])
    for frame in frames:
        writer.write(frame[..., ::-1].copy())
    writer.release()
    return path


def moving_texture(
    frames: int, *, height: int = 48, width: int = 64, dx: float = 2.0, dy: float = 0.0, seed: int = 0
) -> np.ndarray:
    """(T, H, W, 3) uint8: a smooth random texture that moves by (dx, dy) pixels a frame."""
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 20, 235, cv2.NORM_MINMAX)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    shifted = [
        cv2.remap(texture, x - t * dx, y - t * dy, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP) for t in range(frames)
    ]
    return np.repeat(np.stack(shifted).clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """A folder of real videos, 2 classes x 4 groups: `<class>/<group>_<class>.avi`, 48 x 64 pixels, 12 to 15 frames."""
    folder = tmp_path_factory.mktemp("tiny")
    for i, (name, dx, dy) in enumerate([("right", 2.0, 0.0), ("down", 0.0, 2.0)]):
        for j, group in enumerate(["anna", "ben", "cleo", "dan"]):
            write_video(folder / name / f"{group}_{name}.avi", moving_texture(12 + j, dx=dx, dy=dy, seed=10 * i + j))
    return folder


@pytest.fixture
def frames(tmp_path) -> Path:
    """Index of a frames store of the dataset "demo": one clip of five frames, and one that failed."""
    from stores import write_frames

    return write_frames(tmp_path / "demo/frames/native-0123456789ab", {"a": moving_texture(5)}, failed={"b": "empty"})


@pytest.fixture
def flow(tmp_path) -> Path:
    """Index of a flow store of the dataset "demo": one clip of four fields."""
    from stores import write_flow

    return write_flow(tmp_path / "demo/flow/dis-0123456789ab", np.full((4, 2, 48, 64), 3, np.float32))


@pytest.fixture
def data(monkeypatch):
    """A function that installs a store of one kind and returns its catalog."""

    from fakes import two_classes, use_store

    def install(kind, **values):
        catalog, fake = two_classes(kind, **values)
        use_store(monkeypatch, fake)
        return catalog

    return install


def middlebury(shared: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two frames (2, H, W, 3) uint8 RGB, the true flow (2, H, W) between them, and (H, W) bool, where it is known."""
    folder = shared / "data" / "middlebury" / name
    frames = np.stack([cv2.imread(str(folder / f"frame1{k}.png"))[..., ::-1] for k in (0, 1)])
    raw = (folder / "flow10.flo").read_bytes()
    width, height = np.frombuffer(raw, np.int32, 2, offset=4)
    truth = np.frombuffer(raw, np.float32, offset=12).reshape(height, width, 2).transpose(2, 0, 1)
    return frames, truth, (np.abs(truth) < 1e9).all(0)


@pytest.fixture
def bare_config():
    """Luigi's configuration, empty; the project's own comes back afterwards."""
    from luigi.configuration import get_config  # not where only the library is tested, as on a machine without Luigi

    config = get_config()
    before = {section: dict(config.items(section)) for section in config.sections()}
    config.clear()
    yield config
    config.clear()
    config.defaults().clear()  # which `clear` leaves
    config.read_dict(before)


@pytest.fixture
def config(bare_config, tmp_path):
    """Settings for the four clips, artifacts in tmp_path."""
    import luigi
    from chains import TINY, write_four_clips

    bare_config.read_dict(
        {
            "run": {"dataset": "four", "artifacts": str(tmp_path / "artifacts"), "device": "cpu"},
            "dataset.four": write_four_clips(tmp_path),
            "frames": {"short_side_px": "0"},
            "flow": {"method": "dis_ultrafast"},
            "stack": {"length": "2"},
            "spatial": TINY,
            "temporal": TINY,
            "score": {"frames": "2", "crops": "2"},
            "cluster": {"kind": "inline"},
            "worker": {"check_complete_on_run": "true"},
            "retcode": {"task_failed": "30"},
        }
    )
    yield bare_config
    luigi.task_register.Register.clear_instance_cache()


@pytest.fixture
def overlay(tmp_path) -> dict[str, str]:
    """The four clips as a preset over the project's own luigi.cfg."""
    from chains import write_four_clips

    section = write_four_clips(tmp_path)
    lines = ["[run]", "dataset = four", f"artifacts = {tmp_path / 'artifacts'}", "[dataset.four]"]
    lines += [f"{name} = {value}" for name, value in section.items()]
    (tmp_path / "four.cfg").write_text("\n".join(lines))
    return {"LUIGI_CONFIG_PATH": str(tmp_path / "four.cfg")}


@pytest.fixture
def tiny(config, tiny_dataset):
    """The folder of four persons as a dataset."""
    section = {"layout": "folder", "videos": str(tiny_dataset), "group_pattern": r"/(?P<group>[a-z]+)_", "split": "dan"}
    config.read_dict({"dataset.tiny": {**section, "spatial_steps": "2", "temporal_steps": "2"}})
    return "tiny"


@pytest.fixture(scope="session")
def flow_index(tmp_path_factory):
    """A function that gives the index of a flow store of one clip, 11 fields of 48 x 64 in both directions."""
    from stores import smooth_flow, write_flow

    @functools.cache
    def written(minmax=False):
        place = tmp_path_factory.mktemp("flow")
        return write_flow(place, smooth_flow(11), backward=smooth_flow(11, seed=1), minmax=minmax)

    return written
