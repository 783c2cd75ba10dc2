"""RAFT with random weights: sizes, batches, colors, and every way in which weights can be wrong."""

import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving_texture
from torchvision.models import optical_flow

from pipeline.flow import check, estimate, methods, raft, takes_color, to_download, to_rgb, weights
from pipeline.specs import FLOW_METHODS, RAFT_WEIGHTS, FlowSpec
from pipeline.system import downloads

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Random weights of the small network."""
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(optical_flow.raft_small(weights=None).state_dict(), path)
    return path


@pytest.fixture
def spec(file) -> FlowSpec:
    return FlowSpec(method="raft_small", raft_weights=str(file), raft_updates=3)


def noise(count, height, width, *channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, *channels), dtype=np.uint8)


def by_torchvision(first, second, path, updates):
    """torchvision's own use of the network, on images of whole cells: (N, H, W, 3) -> (N, 2, H, W)."""
    network = optical_flow.raft_small(weights=None).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    prepare = optical_flow.Raft_Small_Weights.DEFAULT.transforms()
    images = [torch.from_numpy(frames).permute(0, 3, 1, 2) for frames in (first, second)]
    with torch.no_grad():
        return network(*prepare(*images), num_flow_updates=updates)[-1].numpy()


def test_whole_cells_are_what_torchvision_computes(spec, file):
    frames = noise(3, 128, 144, 3)
    flow = estimate(frames, spec, device="cpu")
    assert flow.dtype == np.float32
    np.testing.assert_allclose(flow, by_torchvision(frames[:-1], frames[1:], file, 3), atol=2e-4)
    back = estimate(frames, spec, device="cpu", direction="backward")
    np.testing.assert_allclose(back, by_torchvision(frames[1:], frames[:-1], file, 3), atol=2e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (7, 3), (128, 127), (131, 128), (130, 250)])
def test_other_sizes_are_padded_by_their_border_and_cut_back(spec, file, size):
    frames = noise(2, *size, 3)
    flow = estimate(frames, spec, device="cpu")
    whole = [max(128, (side + 7) // 8 * 8) for side in size]
    before = [(new - old) // 2 for new, old in zip(whole, size, strict=True)]
    rows, columns = (np.clip(np.arange(n) - b, 0, s - 1) for n, b, s in zip(whole, before, size, strict=True))
    padded = frames[:, rows][:, :, columns]
    truth = by_torchvision(padded[:1], padded[1:], file, 3)
    assert flow.shape == (1, 2, *size)
    y, x = before
    np.testing.assert_allclose(flow, truth[..., y : y + size[0], x : x + size[1]], atol=2e-4)


def test_border_px_by_example():
    assert [raft.border_px(side) for side in (250, 240, 1, 127, 129)] == [(3, 3), (0, 0), (63, 64), (0, 1), (3, 4)]


def test_on_the_cpu_a_pair_has_the_same_bytes_in_any_batch(spec):
    frames = moving_texture(4, height=90, width=130)
    together = estimate(frames, FlowSpec(**{**spec.as_dict(), "batch_pairs": 3}), device="cpu")
    alone = [estimate(frames[t : t + 2], spec, device="cpu") for t in range(3)]
    assert together.tobytes() == np.concatenate(alone).tobytes()


def test_batches_on_cuda_are_bounded_by_memory():
    assert raft._pairs_at_once(240, 320, "cpu", 5) == 1 and raft._pairs_at_once(240, 320, "cuda:0", 5) == 5
    assert raft._pairs_at_once(1080, 1920, "cuda:0", 0) == 1
    assert raft._pairs_at_once(256, 340, "cuda", 64) == 65_535 // (32 * 43)  # cells of a pair
    # 128 x 128: 1200 B a pixel and 6 B for each two of its 256 cells
    assert raft._pairs_at_once(5, 5, "cuda", 0) == (4 << 30) // (1200 * 128 * 128 + 6 * 256 * 256)


def test_gray_is_rgb_with_equal_channels(spec):
    gray = noise(2, 40, 50)
    rgb = np.stack([gray] * 3, axis=3)
    assert np.array_equal(to_rgb(gray), rgb) and to_rgb(rgb) is rgb
    assert np.array_equal(estimate(gray, spec, device="cpu"), estimate(rgb, spec, device="cpu"))
    assert [name for name in FLOW_METHODS if takes_color(name)] == ["raft_small", "raft_large"]


def test_color_matters(spec):
    rgb = noise(2, 40, 50, 3)
    assert not np.array_equal(estimate(rgb, spec, device="cpu"), estimate(rgb[..., ::-1].copy(), spec, device="cpu"))


def test_random_numbers_are_not_used_up(spec):
    before = torch.random.get_rng_state()
    raft.load(spec)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_file_at_the_same_path_is_read_again(tmp_path, file):
    path = tmp_path / "w.pth"
    path.write_bytes(file.read_bytes())
    spec, frames = FlowSpec(method="raft_small", raft_weights=str(path), raft_updates=1), noise(2, 16, 16, 3)
    old = estimate(frames, spec, device="cpu")
    torch.save({name: value / 2 for name, value in torch.load(path, weights_only=True).items()}, path)
    os.utime(path, (1, 1))
    assert not np.array_equal(estimate(frames, spec, device="cpu"), old)


# --- torchvision's weights


def test_names_and_files_are_torchvisions():
    for method, kind in (
        ("raft_small", optical_flow.Raft_Small_Weights),
        ("raft_large", optical_flow.Raft_Large_Weights),
    ):
        ours = {name: weights.url(method, name) for name in RAFT_WEIGHTS[method]}
        assert ours == {one.name: one.url for one in kind}
        assert FlowSpec(method=method).raft_weights == kind.DEFAULT.name


def test_the_folder_is_torch_hubs(monkeypatch, tmp_path):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert str(downloads.folder()) == str(Path(torch.hub.get_dir()) / "checkpoints")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert str(downloads.folder()) == str(Path(torch.hub.get_dir()) / "checkpoints")
    monkeypatch.setenv("TORCH_HOME", "~/torch home")
    assert str(downloads.folder()) == str(Path(torch.hub.get_dir()) / "checkpoints")


def named(monkeypatch, tmp_path, content: bytes) -> FlowSpec:
    """The small network's default weights as torch hub would keep them, with `content` taken for torchvision's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(RAFT_WEIGHTS["raft_small"], "C_T_V2", hashlib.sha256(content).hexdigest()[:8])
    return FlowSpec(method="raft_small", raft_updates=1)


def test_weights_that_are_there_are_not_downloaded(monkeypatch, tmp_path, file, spec):
    named_spec = named(monkeypatch, tmp_path, file.read_bytes())
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("downloads"))
    assert methods()["raft_small"].startswith("not available: its weights are not here yet; the first use downloads")
    path = downloads.path_of(weights.url("raft_small", "C_T_V2"))
    path.parent.mkdir(parents=True)
    path.write_bytes(file.read_bytes())
    assert methods()["raft_small"] == "available"
    check(named_spec, device="cpu")
    frames = noise(2, 16, 16, 3)
    given = FlowSpec(method="raft_small", raft_weights=str(file), raft_updates=1)
    assert np.array_equal(estimate(frames, named_spec, device="cpu"), estimate(frames, given, device="cpu"))


def test_weights_are_downloaded_once_and_checked_by_hash(monkeypatch, tmp_path, file):
    spec, fetched = named(monkeypatch, tmp_path, file.read_bytes()), []

    def download(url, path, hash_prefix, progress):
        fetched.append((url, hash_prefix))
        Path(path).write_bytes(file.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    check(spec)
    check(spec)
    digits = RAFT_WEIGHTS["raft_small"]["C_T_V2"]
    assert fetched == [(f"https://download.pytorch.org/models/raft_small_C_T_V2-{digits}.pth", digits)]
    (tmp_path / "hub/checkpoints" / f"raft_small_C_T_V2-{digits}.pth").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=rf"is damaged: its SHA-256 begins with \w{{8}}, not {digits}; delete it"):
        raft.load(spec)


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("invalid hash value")])
def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(monkeypatch, tmp_path, error):
    def refuse(*arguments, **settings):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    message = (
        rf"raft_large needs weights that cannot be downloaded \({error}\). Without a network put "
        r"https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth \(SHA-256 begins with ff5fadd5\) "
        rf"into {tmp_path}/hub/checkpoints, or name a file with \[flow\] raft_weights"
    )
    for use in (check, lambda spec: estimate(noise(2, 8, 8, 3), spec, device="cpu")):
        with pytest.raises(FileNotFoundError, match=message) as caught:
            use(FlowSpec(method="raft_large"))
        assert "\n" not in str(caught.value)


def test_without_torchvision_it_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchvision" else find(name))
    with pytest.raises(
        ValueError, match=r"\[flow\] method raft_large is not available: torchvision is not installed; pip"
    ):
        check(FlowSpec(method="raft_large"))


# --- a file


@pytest.mark.parametrize("name", ["C_T_SKHT_V2", "weights", "c_t_v2"])
def test_unknown_names_are_refused_with_the_settings(name):
    message = rf"\[flow\] raft_weights is '{name}'; allowed for raft_small: C_T_V2, C_T_V1, or the path of a file"
    with pytest.raises(ValueError, match=message):
        FlowSpec(method="raft_small", raft_weights=name)
    assert FlowSpec(method="tvl1", raft_weights=name).weights_file is None


def test_a_missing_file_is_refused(tmp_path):
    spec = FlowSpec(method="raft_small", raft_weights=str(tmp_path / "none.pth"))
    with pytest.raises(FileNotFoundError, match=r"\[flow\] raft_weights is '.*none.pth', and there is no such file"):
        check(spec)


def test_weights_of_another_architecture_are_refused_by_name(file):
    with pytest.raises(ValueError, match=r"do not fit raft_large: context_encoder\S+ is missing, .* and \d+ more"):
        raft.load(FlowSpec(method="raft_large", raft_weights=str(file)))


def test_weights_of_another_shape_or_name_are_refused_by_name(tmp_path, file):
    state = torch.load(file, weights_only=True)
    first = next(iter(state))
    for change, message in (
        ({first: state[first][:1]}, rf"do not fit raft_small: {first} is \(1, .*\), not \("),
        ({"extra": torch.zeros(1)}, "do not fit raft_small: extra is unknown$"),
    ):
        torch.save({**state, **change}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=message):
            raft.load(FlowSpec(method="raft_small", raft_weights=str(tmp_path / "w.pth")))


class Evil:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("content", ["cut", "text", "pickle"])
def test_a_damaged_or_harmful_file_is_refused(tmp_path, monkeypatch, file, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    path.write_bytes({"cut": file.read_bytes()[:9000], "text": b"hello", "pickle": b""}[content])
    if content == "pickle":
        torch.save({"weights": Evil()}, path)
    with pytest.raises(ValueError, match=r"w.pth cannot be loaded with weights_only=True \(\w+\): it is damaged"):
        raft.load(FlowSpec(method="raft_small", raft_weights="./w.pth"))
    assert not Path("harmed").exists()


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(ValueError, match="w.pth holds no named tensors; RAFT's weights are a state_dict"):
        raft.load(FlowSpec(method="raft_small", raft_weights=str(tmp_path / "w.pth")))


def test_the_digest_covers_what_raft_reads_and_nothing_of_other_methods():
    default = FlowSpec(method="raft_small")
    assert FlowSpec(method="raft_small", raft_weights="C_T_V2").digest() == default.digest()
    assert FlowSpec(method="raft_small", raft_weights="C_T_V1").digest() != default.digest()
    assert FlowSpec(method="raft_small", raft_updates=6).digest() != default.digest()
    assert FlowSpec(raft_weights="C_T_V1", raft_updates=6).digest() == FlowSpec().digest()


def test_paths_become_absolute_for_workers(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    spec = FlowSpec(method="raft_small", raft_weights="./w.pth")
    assert spec.with_absolute_paths().weights_file == tmp_path / "w.pth"
    assert FlowSpec(method="raft_small").with_absolute_paths() == FlowSpec(method="raft_small")


@pytest.mark.needs_cuda
def test_cuda_agrees_with_the_cpu(spec):
    frames = moving_texture(4, height=130, width=170)
    on_cpu = estimate(frames, spec, device="cpu")
    difference = np.abs(estimate(frames, spec, device="cuda") - on_cpu).mean()
    assert difference < 1e-3 * np.abs(on_cpu).mean()  # true float32; TF32 was seen to be 0.005 px off


def test_what_would_be_downloaded_is_known_without_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    named, own = FlowSpec(method="raft_large"), FlowSpec(method="raft_small", raft_weights="./own.pth")
    assert to_download(named) == "raft_large_C_T_SKHT_V2-ff5fadd5.pth"
    assert to_download(own) == to_download(FlowSpec(method="tvl1")) == ""
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints" / to_download(named)).write_bytes(b"")
    assert to_download(named) == ""
