"""A log gets plain lines, now and then and at the end; never a bar."""

from pipeline.progress import Progress, say


def test_a_log_gets_plain_lines(capsys):
    with Progress("flow", 4, "clips", line_seconds=0.0) as progress:
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
