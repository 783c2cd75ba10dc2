"""The benchmark of frames between: a picture half-way is where it should be, and the better motion is found better."""

import importlib
import json
import re
import sys

import numpy as np
import pytest
from conftest import ROOT, moving_texture, write_video


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("interpolation")


def test_the_frame_between_two_is_half_of_the_motion_from_each(bench):
    frames = moving_texture(3, dx=2, dy=-4)
    motion = np.stack([np.full((48, 64), 4, np.float32), np.full((48, 64), -8, np.float32)])
    inner = (slice(8, -8), slice(8, -8))
    found = bench.between(frames[0], frames[2], motion)
    assert np.abs(found - frames[1])[inner].max() < 1.5
    assert np.abs(bench.between(frames[0], frames[2], -motion) - frames[1])[inner].mean() > 10


def test_what_stands_still_is_left_out(bench, tmp_path):
    write_video(tmp_path / "a" / "still.avi", moving_texture(5, dx=0))
    write_video(tmp_path / "a" / "moves.avi", moving_texture(7, dx=2))
    write_video(tmp_path / "short.avi", moving_texture(2, dx=2))
    found = list(bench.triples(tmp_path, gap=4, count=3))
    assert len(found) == 3 and all(frames.shape == (3, 48, 64, 3) for frames in found)
    assert np.abs(found[0][0].astype(int)[:, 8:-8] - np.roll(found[0][1], -4, axis=1)[:, 8:-8]).mean() < 6


def test_it_runs_and_writes_its_errors(bench, tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "moves.avi", moving_texture(9, dx=2))
    written = {}
    monkeypatch.setattr(bench, "write", lambda title, record: written.update({title: record}))
    monkeypatch.setattr(bench.flow_speed, "has_opencv_tvl1", lambda: False)
    arguments = ["--videos", str(tmp_path), "--gaps", "2", "4", "--triples", "2"]
    monkeypatch.setattr(sys, "argv", ["interpolation.py", *arguments, "--methods", "dis_medium", "pcaflow"])
    bench.main()
    errors = json.loads(json.dumps(written))["interpolation"]["error"]
    assert list(errors) == ["2 frames apart", "4 frames apart"]
    for of_gap in errors.values():
        assert list(of_gap) == ["no motion", "dis_medium", "pcaflow"]
        assert np.mean(of_gap["dis_medium"]) < 0.7 * np.mean(of_gap["no motion"])
    assert "| dis_medium | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--gaps", "3"], "--gaps must be even and at least 2"), ([], "no video below .* has 3 frames in which")],
)
def test_mistakes_are_reported(bench, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["interpolation.py", "--videos", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as refused:
        bench.main()
    said = f"{refused.value}{capsys.readouterr().err}"
    assert re.search(message, said)
