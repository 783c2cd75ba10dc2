"""The benchmark of memory layouts runs, and takes real training steps."""

import importlib
import json
import sys

from conftest import ROOT


def test_it_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("training_layouts")
    monkeypatch.setattr(importlib.import_module("common"), "ROOT", tmp_path)
    sizes = ["--batch", "1", "--steps", "1", "--precisions", "float32"]
    monkeypatch.setattr(sys, "argv", ["training_layouts.py", "--network", "small", "--device", "cpu", *sizes])
    module.main()
    (path,) = (tmp_path / "data/benchmarks").iterdir()
    found = json.loads(path.read_text())
    for layout in ("channels last", "channels first"):
        assert found[f"float32, {layout}, clips/s"][0] > 0
    assert "| float32, channels last, clips/s |" in capsys.readouterr().out
