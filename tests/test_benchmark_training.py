"""The training benchmark runs, on batches from the store and on ones that are on the device, on one process and two."""

import importlib
import json
import sys

import pytest
import torch
from conftest import ROOT


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function that runs the benchmark, which is in no package, and returns what it has written."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    threads = torch.get_num_threads()

    def main(*arguments):
        module = importlib.import_module("training")
        monkeypatch.setattr(module, "COMPARED", 2)
        monkeypatch.setattr(module, "COMPARED_RATES", (("small", 1e-2),))  # CNN-M's 90 million weights take a minute
        monkeypatch.setattr(importlib.import_module("common"), "ROOT", tmp_path)
        monkeypatch.setattr(sys, "argv", ["training.py", *arguments])
        module.main()
        (path,) = (tmp_path / "data/benchmarks").iterdir()
        return json.loads(path.read_text())

    yield main
    torch.set_num_threads(threads)


def test_it_runs(run, capsys):
    sizes = ["--batch", "2", "--steps", "1", "--rounds", "2", "--clips", "10", "--loader-workers", "1"]
    found = run("--network", "small", "--device", "cpu", *sizes)
    assert found["spec"]["stream"] == "temporal" and found["spec"]["batch"] == 2
    assert len(found["rounds"]) == 2
    for stored, ready in found["rounds"]:
        assert stored["waiting"] > 0 and stored["stepping"] > 0 and ready > 0
    assert all(0 < share < 1 for share in found["waiting"])
    assert max(max(row[2:]) for row in found["differences"]) < 1e-5
    assert "| from the store : on the device, clips/s |" in capsys.readouterr().out
