"""A log gets plain lines, now and then and at the end; never a bar."""

import contextlib
import itertools
import sys
import time
from pathlib import Path

import pytest

from pipeline.system.progress import Progress, duration_text, last_said, say


def test_a_log_gets_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr("pipeline.system.progress._LINE_SECONDS", 0.0)
    with Progress("flow", 4, "clips") as progress:
        progress.advance(2, "loss 1.5")
        progress.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "flow: 4 clips"  # at once: the first shard may take minutes
    assert lines[1].startswith("flow: 2/4 clips, ") and lines[1].endswith("s left loss 1.5")
    assert lines[3].startswith("flow: 4 clips in ") and lines[3].endswith(" clips/s)")
    assert not any("\r" in line for line in lines)


def test_lines_are_rare_and_an_error_ends_without_one(capsys):
    try:
        with Progress("flow", 4, "clips") as progress:
            progress.advance(1)
            raise KeyError
    except KeyError:
        pass
    assert capsys.readouterr().err == "flow: 4 clips\n"


@pytest.mark.parametrize("stream", [None, "closed", "full"])
def test_a_log_that_takes_nothing_does_not_end_the_work(monkeypatch, tmp_path, stream):
    with contextlib.suppress(OSError), (Path("/dev/full") if stream == "full" else tmp_path / "log").open("w") as log:
        if stream == "closed":
            log.close()
        monkeypatch.setattr(sys, "stderr", log if stream else None)
        monkeypatch.setattr("pipeline.system.progress._LINE_SECONDS", 0.0)
        with Progress("flow", 4, "clips") as progress:
            progress.advance(2)
            say("a message")
        assert progress.done == 2 and last_said().startswith("flow: 2 clips in ")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (60, "1 min 0 s"),
        (200.7, "3 min 21 s"),
        (3600, "1 h 0 min"),
        (18_700, "5 h 11 min"),
        (90_000, "1 day 1 h"),
        (6_487_300, "75 days 2 h"),
    ],
)
def test_times_in_words(seconds, words):
    assert duration_text(seconds) == words


def test_slow_work_is_reported_in_seconds_each(capsys, monkeypatch):
    clock = itertools.chain([0.0], itertools.repeat(80.0))
    monkeypatch.setattr("pipeline.system.progress.time.monotonic", lambda: next(clock))
    with Progress("training", 1001, "steps") as progress:
        progress.advance(1, "loss 2.461")
    assert capsys.readouterr().err.splitlines()[1] == "training: 1/1001 steps, 80.0 s each, 22 h 13 min left loss 2.461"


def test_a_message_cannot_steer_the_terminal(capsys):
    say("two\nlines, and a name: \x1b]0;owned\x07\udcff")
    assert capsys.readouterr().err == "two\nlines, and a name: \\x1b]0;owned\\x07\\udcff\n"


def test_a_long_silence_is_broken(capsys, monkeypatch):
    monkeypatch.setattr("pipeline.system.progress._SILENCE_SECONDS", 0.01)
    said, until = "", time.monotonic() + 30
    with Progress("flow", 22, "clips"):
        while said.count("\n") < 3 and time.monotonic() < until:
            said += capsys.readouterr().err
    assert said.startswith("flow: 22 clips\n" + 2 * "flow: 0/22 clips, waiting for the next for 0 s\n")


def test_the_time_of_a_bar_goes_on(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("pipeline.system.progress._BAR_SECONDS", 0.01)
    shown, until = "", time.monotonic() + 30
    with Progress("flow", 22, "clips"):
        while shown.count("0/22") < 3 and time.monotonic() < until:
            shown += capsys.readouterr().err
    assert shown.count("0/22") >= 3


def test_nothing_to_do_says_nothing(capsys):
    with Progress("flow", 0, "clips"):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("flow", 2, "clips") as progress:
        progress.advance(2, "loss 1")
        say("between")
    shown = capsys.readouterr().err
    assert "flow: 100%" in shown and "between\n" in shown and "2/2" in shown
