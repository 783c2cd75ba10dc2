"""The flow benchmark: is the motion that it compares with true, and does it run?"""

import argparse
import importlib
import json
import os
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

SIZE = (96, 128)


@pytest.fixture
def bench(monkeypatch):
    """A function that imports a module of benchmarks/, which is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


@pytest.fixture
def scenes(bench):
    return bench("scenes")


def drawn(scenes, name, **values):
    if name in ("translation", "rotation", "zoom"):
        return scenes.pure(name, 3, size=SIZE, **values)
    return scenes.layered(3, reach_px=float(name), size=SIZE, **values)


def brought_back(pair):
    """The second frame, seen where the truth says that the points of the first have gone."""
    x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in pair.truth.shape[:0:-1]))
    return cv2.remap(pair.frames[1].astype(np.float32), x + pair.truth[0], y + pair.truth[1], cv2.INTER_CUBIC)


@pytest.mark.parametrize("kind", ["town", "wood"])
def test_streets_look_the_same_where_their_motion_leads(kind, bench):
    streets = bench("streets")
    pair = streets.street(kind, 3, reach_px=4.0, size=(96, 128))
    height, width = pair.known.shape
    first, second = (cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 1) for frame in pair.frames)
    to = (pair.truth + np.mgrid[:height, :width][::-1]).astype(np.float32)
    difference = np.abs(cv2.remap(second, *to, cv2.INTER_LINEAR) - first).mean(-1)
    covered = pair.known & ~pair.visible
    assert (
        np.median(difference[pair.visible]) < 2.5 and difference[covered].mean() > 4 * difference[pair.visible].mean()
    )
    assert np.median(np.abs(second - first).mean(-1)[pair.visible]) > 2 * np.median(difference[pair.visible])
    speed = np.linalg.norm(pair.truth, axis=0)
    assert np.quantile(speed, 0.98) <= 4.0 <= speed.max() and 0.4 < pair.known.mean() < 1
    again = streets.street(kind, 3, reach_px=4.0, size=(96, 128))
    assert again.frames.tobytes() == pair.frames.tobytes() and again.truth.tobytes() == pair.truth.tobytes()


@pytest.mark.parametrize("name", ["6", "25", "translation", "rotation", "zoom"])
def test_truth_brings_the_second_frame_onto_the_first(scenes, name):
    pair = drawn(scenes, name, noise=0.0)
    apart = np.abs(brought_back(pair) - pair.frames[0]).max(-1)
    # within a layer motion is affine, and its second differences are 0: where they are not there is an edge
    bend = np.zeros(SIZE)
    bend[:, 1:-1] += np.abs(np.diff(pair.truth, 2, axis=2)).max(0)
    bend[1:-1] += np.abs(np.diff(pair.truth, 2, axis=1)).max(0)
    inner = (pair.visible & (bend < 1e-3)).astype(np.uint8)
    inner = cv2.erode(inner, np.ones((9, 9)), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    assert inner.mean() > 0.3 and pair.known.all()
    assert apart[inner].max() < 4  # rounding, and what is lost by interpolation
    assert pair.frames.std() > 15


@pytest.mark.parametrize("reach_px", [6, 25])
def test_layers_hide_each_other_and_move_as_far_as_said(scenes, reach_px):
    pair = scenes.layered(3, reach_px=reach_px, size=SIZE, noise=0.0)
    length = np.linalg.norm(pair.truth, axis=0)
    assert 0.8 * reach_px < length.max() <= reach_px
    x, y = np.meshgrid(np.arange(128), np.arange(96))
    stays = (x + pair.truth[0] > 1) & (x + pair.truth[0] < 126) & (y + pair.truth[1] > 1) & (y + pair.truth[1] < 94)
    hidden = stays & ~pair.visible
    assert 0.005 < hidden.mean() < 0.3
    apart = np.abs(brought_back(pair) - pair.frames[0]).max(-1)
    assert apart[hidden].mean() > 10 * apart[pair.visible].mean()


def test_pure_motions_by_their_formulas(scenes):
    x, y = np.meshgrid(np.arange(128) - 63.5, np.arange(96) - 47.5)
    moved, turned, zoomed = (scenes.pure(name, 0, size=SIZE).truth for name in ("translation", "rotation", "zoom"))
    assert np.ptp(moved, axis=(1, 2)).max() == 0 and moved[:, 0, 0] == pytest.approx((5.3, -3.6))
    point = (x + 1j * y) * np.exp(0.05j)
    np.testing.assert_allclose(turned, [point.real - x, point.imag - y], atol=1e-5)
    np.testing.assert_allclose(zoomed, [0.05 * x, 0.05 * y], atol=1e-5)


def test_a_flash_lights_the_center_of_the_second_frame(scenes):
    pair = drawn(scenes, "translation")
    lit = scenes.flashed(pair, 60.0, reach=0.1)
    more = lit.frames[1].astype(int) - pair.frames[1]
    height, width = SIZE
    assert np.array_equal(lit.frames[0], pair.frames[0]) and lit.truth is pair.truth and lit.group.endswith(", flash")
    dark = pair.frames[1] < 195  # elsewhere it may saturate
    assert (abs(more[height // 2, width // 2] - 60) <= 0.5)[dark[height // 2, width // 2]].all()
    one_off = height // 2, width // 2 + round(0.1 * width)  # a standard deviation: exp(-1 / 2)
    assert (abs(more[one_off] - 60 * np.exp(-0.5)) <= 2)[dark[one_off]].all() and abs(more[0]).max() <= 1


def test_a_seed_is_a_scene(scenes):
    one, again, other = (scenes.layered(seed, reach_px=6.0, size=SIZE) for seed in (0, 0, 1))
    assert one.frames.tobytes() == again.frames.tobytes() and one.truth.tobytes() == again.truth.tobytes()
    assert one.frames.tobytes() != other.frames.tobytes()


def write_flo(path, rows):
    """`rows` of (u, v), by the format's description."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [value for row in rows for vector in row for value in vector]
    path.write_bytes(b"PIEH" + struct.pack("<ii", len(rows[0]), len(rows)) + struct.pack(f"<{len(values)}f", *values))


def write_images(*paths, size=(2, 3)):
    for value, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((*size, 3), (0, 0, 10 + value), np.uint8))  # BGR


ROWS = [[(1, 2), (3, 4), (5, 6)], [(-1, 0.5), (2e9, 2e9), (0, -7)]]


def test_middlebury_masks_what_is_unknown(scenes, tmp_path):
    folder = tmp_path / "Venus"
    write_flo(folder / "flow10.flo", ROWS)
    write_images(folder / "frame10.png", folder / "frame11.png")
    (pair,) = scenes.middlebury(tmp_path)
    assert pair.name == "Venus" and pair.frames[:, 0, 0].tolist() == [[10, 0, 0], [11, 0, 0]]
    assert pair.truth[:, 0, 2].tolist() == [5, 6] and pair.truth[:, 1, 0].tolist() == [-1, 0.5]
    assert pair.known.tolist() == [[True, True, True], [True, False, True]]
    assert scenes.middlebury(tmp_path / "nowhere") == []


def test_sintel_spreads_the_pairs_over_both_passes(scenes, tmp_path):
    training = tmp_path / "training"
    for scene in ("alley_1", "bamboo_2"):
        write_flo(training / "flow" / scene / "frame_0009.flo", ROWS)
        for render in ("clean", "final"):
            write_images(*(training / render / scene / f"frame_{k}.png" for k in ("0009", "0010")))
    found = scenes.sintel(tmp_path, 1)
    assert [(pair.group, pair.name) for pair in found] == [
        ("Sintel clean", "alley_1 0009"),
        ("Sintel final", "alley_1 0009"),
    ]
    assert len(scenes.sintel(tmp_path, 100)) == 4


def test_folders_that_are_something_else_are_refused(scenes, tmp_path):
    with pytest.raises(SystemExit, match=r"holds no training/flow/<scene>/frame_\*.flo"):
        scenes.sintel(tmp_path, 1)
    flo = tmp_path / "a" / "flow10.flo"
    write_flo(flo, ROWS)
    with pytest.raises(SystemExit, match="frame10.png is missing, or no image"):
        scenes.middlebury(tmp_path)
    write_images(flo.parent / "frame10.png", flo.parent / "frame11.png", size=(3, 3))
    with pytest.raises(SystemExit, match=r"is \(2, 3\), but its images are \(3, 3\)"):
        scenes.middlebury(tmp_path)
    flo.write_bytes(flo.read_bytes()[:-1])
    with pytest.raises(SystemExit, match="is no .flo file, or was cut off"):
        scenes.middlebury(tmp_path)
    flo.write_bytes(b"PI")
    with pytest.raises(SystemExit, match="is no .flo file, or was cut off"):
        scenes.middlebury(tmp_path)


@pytest.fixture
def run(bench, monkeypatch, tmp_path):
    """A function that runs the benchmark with these arguments and returns what it has written."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["flow.py", *arguments])
        monkeypatch.setattr(bench("common"), "ROOT", tmp_path)
        bench("flow").main()
        return json.loads((tmp_path / "data/benchmarks/flow-quick.json").read_text())

    return main


def test_quick_runs(run, capsys):
    found = run("--quick", "--methods", "tvl1", "brox", "dis_fast", "--devices", "cpu")
    assert {"tvl1, cpu", "brox, cpu", "dis_fast, cpu"} <= set(found["error"])
    easy = [row["all"] for row in found["error"]["tvl1, cpu"] if row["group"] == "translation"]
    assert len(easy) == 1 and 0 < easy[0] < 0.3
    assert {row["lane"] for row in found["agreement"]} == {"tvl1, cpu", "brox, cpu"}
    assert max(row["mean_px"] for row in found["agreement"]) < 0.01
    assert {"tvl1, cpu", "dis_fast, cpu"} <= {row["lane"] for row in found["speed"]}
    assert all(rate > 0 for row in found["speed"] for rate in row["pairs_per_second"])
    printed = capsys.readouterr().out
    assert "| method, device | layers, up to 6 px (1) | layers, up to 25 px (1) |" in printed
    assert "| 80 x 60 | dis_fast, cpu |" in printed


def test_no_benchmark_hides_a_package_that_numba_looks_for(monkeypatch):
    """Python finds what lies beside a script first: a `coverage.py` there would leave us without numba."""
    code = "from pipeline.flow.compiling import has_numba; print(has_numba())"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["benchmarks", os.environ.get("PYTHONPATH", "")]))
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout == "True\n", told.stderr


def test_without_contrib_there_is_a_word_for_it(run, monkeypatch, capsys):
    monkeypatch.setattr(cv2, "optflow", None)
    found = run("--quick", "--methods", "farneback", "deepflow")
    assert list(found["error"]) == ["farneback, cpu"] and found["agreement"] == []
    assert [row["ratio"] for row in found["speed"]] == [[]]
    printed = capsys.readouterr().out
    assert "OpenCV's DualTVL1 is left out: this OpenCV has no contrib modules" in printed
    assert "deepflow is not available: this OpenCV has no contrib modules" in printed


@pytest.mark.parametrize("option", ["--rounds", "--threads"])
def test_no_rounds_or_threads_are_refused_before_any_work(run, option, capsys):
    with pytest.raises(SystemExit):
        run("--methods", "farneback", option, "0")
    assert "error: --rounds and --threads must be at least 1" in capsys.readouterr().err


def test_nothing_to_measure_is_an_error(run):
    with pytest.raises(SystemExit, match="no method of farneback is available on cuda; `python -m pipeline doctor`"):
        run("--quick", "--methods", "farneback", "--devices", "cuda")


def test_every_method_takes_its_devices(bench, monkeypatch):
    module = bench("flow")
    monkeypatch.setattr(module.flow, "cuda_devices", lambda method, device: ("cuda:0", "cuda:1") * (method == "tvl1"))
    found = dict.fromkeys(module.FLOW_METHODS, "available")

    def lanes(*devices, enlarge=(1,)):
        arguments = argparse.Namespace(methods=["tvl1", "farneback"], devices=list(devices) or None, enlarge=enlarge)
        return [str(lane) for lane in module.choose(found, arguments)]

    assert lanes() == ["tvl1, cpu", "tvl1, cuda:0", "tvl1, cuda:1", "farneback, cpu"]
    assert lanes("cuda") == ["tvl1, cuda:0", "tvl1, cuda:1"]
    assert lanes("cuda:1", "cpu") == ["tvl1, cpu", "tvl1, cuda:1", "farneback, cpu"]
    assert lanes("cuda:1", enlarge=(1, 2)) == ["tvl1, cuda:1", "tvl1 enlarged 2 x, cuda:1"]


def test_enlarged_frames_are_measured_beside_the_others(run):
    found = run("--quick", "--methods", "dis_fast", "--devices", "cpu", "--enlarge", "1", "2")
    as_is, enlarged = (found["error"][name] for name in ("dis_fast, cpu", "dis_fast enlarged 2 x, cpu"))
    assert all(0 < row["all"] != other["all"] for row, other in zip(enlarged, as_is, strict=True))
    assert {"dis_fast, cpu", "dis_fast enlarged 2 x, cpu"} <= {row["lane"] for row in found["speed"]}


@pytest.mark.needs_cuda
def test_quick_runs_on_cuda(run):
    found = run("--quick", "--methods", "tvl1", "--devices", "cuda:0")
    assert {"tvl1, cuda:0", "tvl1, cuda:0, not fetched"} <= {row["lane"] for row in found["speed"]}
    assert all(row["peak_bytes"] for row in found["speed"] if "cuda" in row["lane"])
    assert max(row["mean_px"] for row in found["agreement"]) < 0.01


def write_stereo(folder, *, shift_px):
    """Both scenes in one size: a plane that moves left by `shift_px`, a square of 40 px before it by 24 px more."""
    rng = np.random.default_rng(5)
    near, far = (cv2.GaussianBlur(rng.uniform(0, 255, (64, 400)), (0, 0), 3).astype(np.uint8) for _ in range(2))
    disparity = np.full((64, 200), shift_px, np.uint8)
    disparity[16:56, 96:136] += 24
    left, right = (np.ascontiguousarray(far[:, start : start + 200]) for start in (100, 100 + shift_px))
    left[16:56, 96:136] = near[16:56, 96:136]
    right[16:56, 72 - shift_px : 112 - shift_px] = near[16:56, 96:136]
    disparity[:, :8] = 0
    for name in ("aloeL.jpg", "motorcycle_left.png"):
        cv2.imwrite(str(folder / name), left)
    for name in ("aloeR.jpg", "motorcycle_right.png"):
        cv2.imwrite(str(folder / name), right)
    cv2.imwrite(str(folder / "aloeGT.png"), disparity)
    np.savez(folder / "motorcycle_disp.npz", np.where(disparity, disparity, np.inf).astype(np.float32))


def test_stereo_moves_points_by_their_disparity(bench, tmp_path):
    write_stereo(tmp_path, shift_px=34)
    pairs = bench("stereo").stereo(tmp_path)
    assert [(pair.group, pair.name, pair.known.shape) for pair in pairs] == [
        ("stereo, up to 30 px", "aloe", (16, 27)),
        ("stereo, up to 30 px", "motorcycle", (32, 85)),
        ("stereo, up to 15 px", "aloe", (8, 13)),
        ("stereo, up to 15 px", "motorcycle", (16, 42)),
    ]
    pair = pairs[1]  # half the size, without the 30 columns on the left; plane 4 px, square 28 px to the left, halved
    inside = np.zeros(pair.known.shape, bool)
    inside[8:28, 33:53] = True
    assert pair.known.all() and not pair.truth[1].any()
    assert set(pair.truth[0][inside]) == {-14} and set(pair.truth[0][~inside]) == {-2}
    covered = np.zeros(pair.known.shape, bool)
    covered[8:28, 21:33] = True  # the plane that the square comes to lie on
    covered[:, :2] = True  # leaves the frame
    assert (pair.visible == ~covered).all()
    difference = np.abs(brought_back(pair) - pair.frames[0]).mean(-1)
    assert np.median(difference[pair.visible]) < 1 and difference[covered[:, 2:].nonzero()].mean() > 5


def test_unknown_disparities_stay_unknown(bench, tmp_path):
    write_stereo(tmp_path, shift_px=34)
    stereo = bench("stereo")
    for name in ("aloeGT.png", "motorcycle_disp.npz"):
        disparity = stereo.read_disparity(tmp_path / name)
        assert np.isnan(disparity[:, :8]).all() and (disparity[:, 8:96] == 34).all() and disparity[20, 100] == 58
    image = np.zeros((8, 16, 3), np.uint8)
    disparity = np.full((8, 16), 4, np.float32)
    disparity[:, :5] = np.nan
    pair = stereo.pair("group", "name", [image, image], disparity, 0, 4)
    assert pair.known.tolist() == [[False, True, True, True]] * 2 and set(pair.truth[0][pair.known]) == {-1}


def test_stereo_folders_that_lack_something_are_refused(bench, tmp_path):
    stereo = bench("stereo")
    with pytest.raises(SystemExit, match="aloeL.jpg is missing, or no image"):
        stereo.stereo(tmp_path)
    write_stereo(tmp_path, shift_px=34)
    cv2.imwrite(str(tmp_path / "aloeL.jpg"), np.zeros((8, 8), np.uint8))
    with pytest.raises(SystemExit, match="aloe in .*: images and disparity are not of one size"):
        stereo.stereo(tmp_path)
    (tmp_path / "aloeGT.png").unlink()
    with pytest.raises(SystemExit, match=r"aloeGT.png is missing; benchmarks/stereo.py says where to get it"):
        stereo.stereo(tmp_path)
