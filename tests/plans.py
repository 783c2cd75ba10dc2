"""What the tests of plans share: a plan as JSON, and measurements by hand."""
# ruff: noqa: F811 (fixtures of other tests)

import json

import luigi
import pytest
from chains import snapshot

from pipeline.estimates import Cached, PairCost, StepCost, Videos
from tasks.plan import main

CHAIN = ["Catalog", "Frames", "Flow", *["TrainStream", "ScoreStream"] * 2, *["ScoreStream"] * 2, "Fuse", "Report"]


@pytest.fixture
def planned(config, tmp_path, capsys):
    """A function that plans as a new process would, and sees to it that not a file is written or touched."""

    def run(*arguments: str) -> dict:
        luigi.task_register.Register.clear_instance_cache()
        before = snapshot(tmp_path)
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        assert snapshot(tmp_path) == before
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def by_hand(monkeypatch):
    """Measurements by hand: a second a frame, a pair, a step; and what was asked for."""
    asked = []
    cached = Cached(4, 36.0, ())
    costs = {
        "measure.videos": Videos(4000, cached, 0.25, 1.0, 84.0),
        "measure.cached": cached,
        "measure.pair": PairCost(0.5, 0.5, 84.0),
        "measure_networks.network": StepCost(1.0, 0.0, 0.25, 1000, 3000, 128),
    }
    for name, found in costs.items():
        give = lambda *given, name=name, found=found, **named: asked.append((name, given, named)) or found
        monkeypatch.setattr(f"pipeline.estimates.{name}", give)
    monkeypatch.setattr("pipeline.catalog.reading_threads", lambda: 1)
    return asked


def states(found: dict) -> dict[str, str]:
    return {f"{row['stage']} {row['label']}": row["state"] for row in found["rows"]}


def row_of(found: dict, stage: str) -> dict:
    return next(row for row in found["rows"] if row["stage"] == stage)
