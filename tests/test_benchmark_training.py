"""The training benchmark runs, on batches from the store and on ones that are on the device, on one process and two."""

import importlib
import json
import sys
from types import SimpleNamespace

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


def test_too_few_clips_are_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--clips", "8")
    assert "--clips is 8; it must be above 8, as one clip of each class is for validation" in capsys.readouterr().err


class _Clock:
    """Time that passes only by `sleep_until`, and batches made meanwhile: one each `every` seconds, at most 32 ahead."""

    def __init__(self, every: float):
        self.now, self._every, self._made_at, self._ready = 0.0, every, every, 0

    def sleep_until(self, then: float) -> None:
        self.now = then
        while self._made_at <= then and self._ready < 32:
            self._ready += 1
            self._made_at += self._every

    def __iter__(self):
        while True:
            if not self._ready:
                self.sleep_until(max(self._made_at, self.now))
            elif self._ready == 32:  # the loading processes had to stop
                self._made_at = self.now + self._every
            self._ready -= 1
            yield ()


@pytest.mark.parametrize("first_seconds", [0.08, 3.0])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.8, 0.9, 1.2])
def test_what_was_ready_after_the_first_step_does_not_hide_slow_loading(run, monkeypatch, share, first_seconds):
    module, clock = importlib.import_module("training"), _Clock(every=0.08 / share)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(module, "training_batches", lambda *_: iter(clock))
    monkeypatch.setattr(module, "processes", lambda *_: 16)
    monkeypatch.setattr(module, "ItemSampler", lambda *_: None)

    def train_step(state, *batch):
        clock.sleep_until(clock.now + (0.08 if state.step else first_seconds))

    monkeypatch.setattr(module, "train_step", train_step)
    state = SimpleNamespace(spec=SimpleNamespace(loader_workers=-1), device="cuda", step=0)
    found = module.from_store(state, None, 24)
    assert 0.08 / (found["waiting"] + found["stepping"]) == pytest.approx(min(share, 1), abs=0.005)
