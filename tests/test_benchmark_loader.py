"""The loader's benchmark runs, counts its files, and compares decoders."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from stores import smooth_flow, write_flow

from pipeline.video import jpeg


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The bench, which is in no package; it writes below tmp_path."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(importlib.import_module("common"), "ROOT", tmp_path)
    return importlib.import_module("loader")


def test_it_runs(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sizes = ["--clips", "9", "--fields", "12", "--batch", "2", "--items", "6", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["loader.py", *sizes])
    bench.main()
    found = json.loads((tmp_path / "data/benchmarks/loader.json").read_text())
    assert len(found["rounds"]) == 2 and all(rate > 0 for one in found["rounds"] for rate in one.values())
    assert (found["sizes"]["files"], found["sizes"]["hdf5_files"]) == (9 * 12 * 2, 3)  # two shards and their index
    assert "| JPEG files for each HDF5 file | 72 |" in capsys.readouterr().out


def test_a_store_of_small_pictures_is_refused(bench, tmp_path, monkeypatch, capsys):
    index = write_flow(tmp_path, smooth_flow(3))
    monkeypatch.setattr(sys, "argv", ["loader.py", "--store", str(index)])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--store holds clips of 64 x 48; crops are 224 x 224" in capsys.readouterr().err


def test_the_default_set_shows_a_thousandth_of_the_files(bench):
    hdf5_files = bench.CLIPS // bench.CLIPS_A_SHARD + 1
    assert 2 * bench.CLIPS * bench.FIELDS / hdf5_files > 1000


def test_decoders_are_compared_plane_by_plane(bench, tmp_path, capsys):
    ramp = np.add.outer(np.arange(32), 2 * np.arange(40)).astype(np.uint8)
    planes = [np.frombuffer(jpeg.encode(ramp + k, quality=95), np.uint8).copy() for k in range(4)]
    found = bench.by_torchvision(planes, 2, device="cpu")
    assert len(found["torchvision"]) == len(found["ours"]) == 2 and found["difference"] <= 1
    bench.report_nvjpeg(found, 4, [10.0, 20.0], workers=0)
    assert json.loads((tmp_path / "data/benchmarks/loader-nvjpeg.json").read_text())["loader"] == [200, 400]
    assert "| largest difference of a decoded byte |" in capsys.readouterr().out
