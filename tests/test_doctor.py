"""The doctor: what is missing or broken becomes a line with its cure, and hours are what a calculator says."""

import importlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from pipeline import doctor
from pipeline.__main__ import main
from pipeline.dataset import encoded
from pipeline.doctor import machine
from pipeline.specs import FLOW_METHODS
from pipeline.system.packages import PACKAGES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def quick(monkeypatch):
    """No timing: 50 pairs a second on the CPU, 2,000 on a GPU, 5 ms for the images of a pair."""
    monkeypatch.setattr(doctor, "pairs_per_second", lambda method, device, seconds: 50.0 if device == "cpu" else 2000.0)
    monkeypatch.setattr(doctor, "code_seconds", lambda: 0.005)
    return monkeypatch


def without(monkeypatch, *names):
    """Make packages look as if they were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find(name))


def failing(monkeypatch, package, error):
    """Make a package raise when it is imported."""
    load = importlib.import_module

    def raising(name, *rest):
        if name == package:
            raise error
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", raising)


# --- the report


def test_the_report_is_json_and_a_sound_installation_exits_with_zero(quick, tmp_path, capsys):
    assert main(["doctor", "--json", "--artifacts", str(tmp_path / "not/yet")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["packages", "machine", "devices", "decoders", "flow", "broken", "advice"]
    assert found["packages"]["numpy"] == {"version": np.__version__, "problem": ""}
    assert tuple(found["flow"]) == FLOW_METHODS and found["broken"] == []
    assert all(set(row) == {"state", "device", "pairs_per_second", "ucf101_hours"} for row in found["flow"].values())
    assert found["machine"]["artifacts"] == str(tmp_path / "not/yet") and found["machine"]["disk_free"] > 0
    assert found["machine"]["memory_free"] > 1 << 20 and found["machine"]["cores"] >= 1
    assert set(found["devices"]) == {"torch", "opencv"} and found["decoders"]["ffmpeg"] == "works"
    cores = found["machine"]["cores"]
    assert found["flow"]["farneback"]["ucf101_hours"] == pytest.approx(2_456_655 * (1 / 50 + 0.005) / cores / 3600)


def test_the_text_ends_with_the_advice(quick, tmp_path, capsys):
    assert main(["doctor", "--artifacts", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("use --flow-method tvl1: the Flow stage of UCF-101 in about ")
    assert any(line.startswith("flow, dis_fast") and "50 pairs/s a core; UCF-101 in" in line for line in printed)
    assert any(line.startswith("decoder, ffmpeg      works") for line in printed)


def test_hours_by_hand():
    # 2,456,655 pairs at 10 a second are 245,665.5 seconds, or 68 h 14 min 25.5 s
    assert doctor.ucf101_hours(10.0, 1) == pytest.approx(68 + 14 / 60 + 25.5 / 3600)
    assert doctor.ucf101_hours(10.0, 8) == pytest.approx(doctor.ucf101_hours(80.0, 1))
    assert doctor.ucf101_hours(10.0, 1, code_seconds=0.3) == pytest.approx(4 * doctor.ucf101_hours(10.0, 1))


def test_a_core_also_decodes_and_encodes():
    cv2.setNumThreads(1)
    frame, ways = doctor._moving_texture(1)[0], [cv2.IMWRITE_JPEG_QUALITY, 95]
    begun = time.process_time()
    for _ in range(30):
        cv2.imencode(".jpg", frame, ways)
    a_plane = (time.process_time() - begun) / 30
    assert 1.2 * a_plane < doctor.code_seconds.__wrapped__() < 12 * a_plane  # two planes, and to decode a frame


@pytest.mark.parametrize(
    ("method", "lanes", "device", "hours"),
    [
        ("dis_fast", {"cpu": 4, "torch": 2, "opencv": 0}, "cpu", 2_456_655 * (1 / 50 + 0.005) / 4 / 3600),
        ("tvl1", {"cpu": 4, "torch": 2, "opencv": 0}, "cuda", 2_456_655 / (2000 * 2) / 3600),
        ("tvl1", {"cpu": 4, "torch": 0, "opencv": 3}, "cpu", 2_456_655 * (1 / 50 + 0.005) / 4 / 3600),
        ("nvidia_of", {"cpu": 4, "torch": 0, "opencv": 3}, "cuda", 2_456_655 / (2000 * 3) / 3600),
    ],
)
def test_a_method_is_counted_on_its_own_devices(quick, method, lanes, device, hours):
    row = doctor.flow_method(method, "available", lanes, 1.0)
    assert row["device"] == device and row["ucf101_hours"] == pytest.approx(hours)


def test_a_method_that_fails_when_it_is_tried_is_not_available(monkeypatch):
    def fail(method, device, seconds):
        raise ValueError("the driver\nrefuses")

    monkeypatch.setattr(doctor, "pairs_per_second", fail)
    row = doctor.flow_method("dis_fast", "available", {"cpu": 1, "torch": 0, "opencv": 0}, 1.0)
    assert row["state"] == "not available: ValueError: the driver refuses" and row["pairs_per_second"] is None


@pytest.mark.parametrize(
    ("device", "call_seconds", "rate"),
    [("cpu", 0.125, 8.0), ("cpu", 4.0, 0.25), ("cuda", 0.5, 60.0), ("cuda", 4.0, 7.5)],
)
def test_speed_by_a_clock_of_our_own(monkeypatch, device, call_seconds, rate):
    """On a GPU a call has three batches, here of 10 pairs, as many as a third of a gigabyte and a half allows."""
    now, calls, free = [0.0], [], 10 * 3 * 640 * 256 * 341
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)

    def estimate(frames, spec, *, device):
        assert cv2.getNumThreads() == 1 and torch.get_num_threads() == 1
        small = device == "cpu" and not calls  # the first call warms up
        assert frames.shape[1:] == ((64, 64) if small else (256, 341)) and spec.method == "tvl1"
        calls.append(len(frames) - 1)
        now[0] += call_seconds

    monkeypatch.setattr("pipeline.flow.estimate", estimate)
    monkeypatch.setattr(doctor.time, "perf_counter" if device == "cuda" else "process_time", lambda: now[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert doctor.pairs_per_second("tvl1", device=device, seconds=1.0) == pytest.approx(rate)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert set(calls) == {30 if device == "cuda" else 1} and now[0] <= max(2 * call_seconds, 1.0 + 2 * call_seconds)


def test_the_texture_moves_two_pixels_to_the_right():
    frames = doctor._moving_texture(5)
    assert frames.shape == (5, 256, 341) and frames.dtype == np.uint8
    for before, after in zip(frames, frames[1:], strict=False):
        np.testing.assert_array_equal(after[:, 2:], before[:, :-2])


def report(**flow_hours):
    """A sound report with these methods and hours."""
    rows = {name: {"state": "available", "ucf101_hours": hours} for name, hours in flow_hours.items()}
    packages = {name: {"version": "1", "problem": ""} for name in PACKAGES}
    return {"packages": packages, "decoders": {"ffmpeg": "works"}, "flow": rows, "broken": []}


def test_the_advice_is_the_most_accurate_within_a_day_or_else_the_quickest():
    assert "--flow-method tvl1: the Flow stage of UCF-101 in about 2.0 hours" in doctor._advice(
        report(dis_fast=1, tvl1=2, deepflow=25)
    )
    assert "--flow-method dis_fast: " in doctor._advice(report(dis_fast=30, tvl1=90))
    assert doctor._advice(report()) == "look again: no flow method works yet"


# --- what is missing


def test_missing_packages_are_named_with_the_command_and_are_no_failure(quick, tmp_path, capsys):
    without(quick, "luigi", "dask", "distributed")
    assert main(["doctor", "--json", "--artifacts", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["luigi"] == {"version": "", "problem": "missing: pip install luigi"}
    assert found["advice"].startswith("pip install dask distributed luigi; then use --flow-method ")


def test_it_runs_where_hardly_anything_is_installed(tmp_path):
    code = f"""
import sys
for name in ("luigi", "dask", "distributed", "h5py", "sklearn", "matplotlib", "torch", "torchvision"):
    sys.modules[name] = None
import cv2
del cv2.optflow
from pipeline import doctor
doctor.pairs_per_second = lambda method, device, seconds: 1000.0
from pipeline.__main__ import main
sys.exit(main(["doctor", "--artifacts", {str(tmp_path)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "h5py                 missing: pip install h5py" in done.stdout
    assert "flow, tvl1           not available: torch is not installed; pip install torch" in done.stdout
    assert "flow, pcaflow        not available: this OpenCV has no contrib modules" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(
        "pip install torch torchvision h5py dask distributed luigi scikit-learn"
    )


def test_without_opencv_there_is_still_a_report(quick, tmp_path):
    without(quick, "cv2")
    quick.setitem(sys.modules, "cv2", None)
    found = doctor.examine(tmp_path)
    assert found["packages"]["cv2"]["problem"] == "missing: pip install opencv-contrib-python"
    assert "cv2" in found["decoders"]["ffmpeg"] and found["broken"] == []
    assert found["flow"]["dis_fast"]["state"].startswith(
        "not available: cv2 is not installed; pip install opencv-contrib"
    )


# --- what is broken


def test_torch_and_torchvision_of_different_builds(quick, tmp_path, capsys):
    failing(quick, "torchvision", RuntimeError("operator torchvision::nms does not exist"))
    assert main(["doctor", "--artifacts", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert (
        "RuntimeError: operator torchvision::nms does not exist; torch and torchvision are of different builds: "
        in printed
    )
    assert "BROKEN: torchvision cannot be imported" in printed
    assert printed.splitlines()[-1].startswith("repair the installation first: torchvision cannot be imported")


def test_a_machine_without_a_screen(monkeypatch):
    failing(monkeypatch, "cv2", ImportError("libGL.so.1: cannot open shared object file"))
    assert "pip install --force-reinstall opencv-contrib-python-headless" in machine.packages()["cv2"]["problem"]


def test_two_opencvs_overwrite_each_other(monkeypatch):
    monkeypatch.setattr(machine, "version", lambda pip: "5.0")
    assert machine.packages()["cv2"]["problem"].startswith(
        "opencv-contrib-python and opencv-contrib-python-headless and "
    )
    monkeypatch.setattr(machine, "version", lambda pip: "5.0" if pip == "opencv-python" else "")
    assert machine.packages()["cv2"]["problem"] == ""


def test_a_decoder_that_decodes_nothing_is_a_broken_installation(quick, tmp_path):
    quick.setattr("pipeline.video.Video", lambda path: iter([]))
    found = doctor.examine(tmp_path)
    assert found["decoders"]["ffmpeg"] == "does not work: 0 of 5 frames decode"
    assert found["broken"] == ["videos cannot be decoded: ffmpeg does not work: 0 of 5 frames decode"]


def test_no_flow_at_all_is_a_broken_installation(quick, tmp_path):
    quick.setattr("pipeline.flow.methods", lambda: dict.fromkeys(FLOW_METHODS, "not available: x"))
    assert doctor.examine(tmp_path)["broken"] == ["no flow method works"]


def test_flow_that_cannot_be_imported_is_said(quick, tmp_path):
    def fail():
        raise ImportError("numpy.core failed")

    quick.setattr("pipeline.flow.methods", fail)
    state = doctor.examine(tmp_path)["flow"]["tvl1"]["state"]
    assert state == "not available: ImportError: numpy.core failed"


# --- devices and decoders


def test_devices_of_torch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert machine.devices()["torch"] == {"found": [], "why_not": "this torch is built for the CPU only"}
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.devices()["torch"]["why_not"] == "torch is built for CUDA, but finds no device"
    monkeypatch.setattr("pipeline.system.gpus._supported_by_driver", lambda: (12, 8))
    assert machine.devices()["torch"]["why_not"].startswith("the NVIDIA driver supports CUDA 12.8, but this torch was")
    monkeypatch.setattr("pipeline.system.gpus._supported_by_driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    about = SimpleNamespace(name="H200", total_memory=139 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    assert machine.devices()["torch"] == {"found": [{"name": "H200", "memory": 139 << 30}] * 2, "why_not": ""}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: 1 / 0)
    assert machine.devices()["torch"]["why_not"] == "torch: ZeroDivisionError: division by zero"


def test_devices_of_opencv_are_counted_not_guessed(monkeypatch):
    monkeypatch.setattr(cv2.cuda, "getCudaEnabledDeviceCount", lambda: 0)
    assert machine.devices()["opencv"]["why_not"].startswith("OpenCV is built without CUDA, as PyPI's wheels are")
    monkeypatch.setattr(cv2.cuda, "getCudaEnabledDeviceCount", lambda: 2)
    assert machine.devices()["opencv"] == {"found": [{"index": 0}, {"index": 1}], "why_not": ""}


def test_nvjpeg_is_tried_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(machine, "cuda_count", lambda: 0)
    assert machine.decoders()["nvjpeg"] == "does not work: RuntimeError: no CUDA device; only a training on one uses it"
    monkeypatch.setattr(machine, "cuda_count", lambda: 1)
    for found, outcome in ((5, "works"), (4, "does not work: 4 of 5 frames decode")):
        monkeypatch.setattr(encoded, "decode", lambda data, device, found=found: data[:found])
        assert machine.decoders()["nvjpeg"] == outcome


@pytest.mark.parametrize(("wanted", "busy"), [(1.9, False), (2.1, True)])
def test_a_machine_is_busy_if_more_wants_to_run_than_can(monkeypatch, wanted, busy):
    monkeypatch.setattr("os.getloadavg", lambda: (wanted, 0.0, 0.0))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3})
    assert machine.load() == {"load": wanted, "cores": 2, "busy": busy}
