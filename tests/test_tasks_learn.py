"""What a training says before it begins: settings that are hardly meant, and processes on a CPU."""

import pytest
from test_tasks import build, config, fresh  # noqa: F401 (a fixture)

from pipeline.checkpoint import load_checkpoint
from tasks import ScoreStream, TrainStream


def test_a_setting_that_is_hardly_meant_is_said_before_any_work(config, capsys):  # noqa: F811
    config.read_dict({"spatial": {"partial_bn": "true"}})
    task = fresh(TrainStream, stream="spatial")
    assert not task.complete() and not task.complete()
    said = capsys.readouterr().err
    assert said.count("[spatial] partial_bn is true and start is scratch") == 1


@pytest.mark.parametrize(("processes", "lines"), [("1", 0), ("0", 0), ("2", 1)])
def test_several_processes_on_a_cpu_are_said_to_share_the_normalisation(config, capsys, processes, lines):  # noqa: F811
    config.read_dict({"temporal": {"processes": processes}})
    fresh(TrainStream, stream="temporal")._say_shares()
    said = capsys.readouterr().err
    assert said.count("temporal: 2 processes on a CPU: batch normalisation, if small has any, is over") == lines


def test_damaged_weights_that_are_deleted_are_trained_anew(config):  # noqa: F811
    assert build(fresh(ScoreStream, stream="spatial", part="test"))
    path = fresh(TrainStream, stream="spatial").checkpoint
    path.write_bytes(path.read_bytes()[:1000])
    scored = fresh(ScoreStream, stream="spatial", part="test").path
    scored.unlink()
    assert not build(fresh(ScoreStream, stream="spatial", part="test"))
    with pytest.raises(ValueError, match="delete it and run the same command again, which trains anew"):
        load_checkpoint(path)
    path.unlink()
    assert not fresh(TrainStream, stream="spatial").complete()
    assert build(fresh(ScoreStream, stream="spatial", part="test")) and scored.is_file() and load_checkpoint(path)
