"""Mistakes of whoever typed a command are one line each, and no traceback."""

import subprocess
import sys

import pytest
from conftest import ROOT
from test_tasks import config, luigi_command, overlay  # noqa: F401 (fixtures)

from tasks import mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TrainStream"], "error: TrainStream requires the 'stream' parameter to be set\n"),
        (["PaperTable"], "error: PaperTable requires the 'table' parameter to be set\n"),
        (["PaperTable", "--table", "5"], "error: --table is '5': 5 is not a valid choice from {"),
        (["FullPipline"], "error: No task FullPipline. Did you mean: FullPipeline\n"),
        (["Flow", "--seed", "x"], "error: --seed is 'x': invalid literal for int() with base 10: 'x'\n"),
        (["Flow", "--changes", "{"], "error: --changes is '{': Expecting property name"),
    ],
)
def test_a_wrong_task_or_parameter_is_one_line(arguments, message):
    refused = luigi_command(*arguments, cwd=ROOT, PYTHONPATH=str(ROOT))
    assert refused.returncode != 0 and refused.stderr.startswith(message)
    assert refused.stderr.count("\n") == 1 and not refused.stdout


def test_an_interrupted_command_says_how_it_goes_on(capsys):
    mistakes._say_or_show(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"


def test_any_other_exception_keeps_its_traceback(capsys):
    try:
        raise ValueError("of the program")
    except ValueError as error:
        mistakes._say_or_show(ValueError, error, error.__traceback__)
    said = capsys.readouterr().err
    assert "Traceback" in said and "ValueError: of the program" in said


def test_other_programs_keep_their_hook():
    code = "import sys, tasks; sys.exit(sys.excepthook is not sys.__excepthook__)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
