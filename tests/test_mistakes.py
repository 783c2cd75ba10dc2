"""Mistakes of whoever typed a command are one line each, and no traceback."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time

import luigi
import numpy as np
import pytest
import torch
from chains import build, fresh, luigi_command
from conftest import ROOT

from pipeline import quantize
from pipeline.specs import FlowSpec
from pipeline.system.errors import DamagedFile, MachineFault, StageFailed, UserError, WorkerDied
from tasks import Catalog, PaperTable, base, command, mistakes, session


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TrainStream"], "error: TrainStream requires the 'stream' parameter to be set\n"),
        (["PaperTable"], "error: PaperTable requires the 'table' parameter to be set\n"),
        (["PaperTable", "--table", "5"], "error: --table '5' does not exist; allowed: 1a, 1b, 2, 3, 4\n"),
        (
            ["ScoreVideos", "--fuse", "weigthed"],
            "error: --fuse 'weigthed' does not exist; did you mean 'weighted'? allowed: average, svm, weighted\n",
        ),
        (["Flow", "--data-videos", "my", "videos"], "error: 'videos' belongs to no flag; a value with spaces needs q"),
        (["Flow", "--data-videos=my", "videos", "--seed", "1"], "error: 'videos' belongs to no flag; a value with sp"),
        (["FullPipline"], "error: No task FullPipline. Did you mean: FullPipeline\n"),
        (
            ["Flow", "--parallel-scheduling"],
            "error: parallel_scheduling is not possible here: Luigi would wait forever",
        ),
        (["Flow", "--seed", "x"], "error: --seed is 'x': invalid literal for int() with base 10: 'x'\n"),
        (["Flow", "--changes", "{"], "error: --changes is '{': Expecting property name"),
        (
            ["Flow", "--workers", "two"],
            "error: [core] workers, in luigi.cfg or as a flag: invalid literal for int() with",
        ),
        (
            ["Flow", "--retcode-task-failed", "x"],
            "error: [retcode] task_failed, in luigi.cfg or as a flag: invalid lit",
        ),
    ],
)
def test_a_wrong_task_or_parameter_is_one_line(arguments, message):
    refused = luigi_command(*arguments, cwd=ROOT, PYTHONPATH=str(ROOT))
    assert refused.returncode != 0 and refused.stderr.startswith(message)
    assert refused.stderr.count("\n") == 1 and not refused.stdout


def test_a_wrong_value_of_luigis_own_is_one_line(tmp_path):
    """That of a worker's setting is read when the tasks have been made and asked what they need."""
    (tmp_path / "preset.cfg").write_text("[worker]\nkeep_alive = maybe\n")
    refused = luigi_command("Catalog", cwd=ROOT, PYTHONPATH=str(ROOT), LUIGI_CONFIG_PATH=str(tmp_path / "preset.cfg"))
    said = "error: [worker] keep_alive, in luigi.cfg or as a flag: cannot interpret 'maybe' as boolean\n"
    assert refused.returncode != 0 and refused.stderr == said and not refused.stdout


@pytest.mark.parametrize(
    ("error", "said", "full"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "[Errno 13] Permission denied: '/x/y'", False),
        (OSError(28, "Can't write data (file write failed: time = ...)"), "no space left", True),
        (RuntimeError("[enforce fail at inline_container.cc:672] ."), "] ., perhaps for lack of space", True),
        (
            StageFailed("shard x: [Errno 28] No space left on device"),
            "shard x: [Errno 28] No space left on device",
            True,
        ),
        (OSError(122, "Unable to create file (errno = 122, ...)"), "Disk quota exceeded", False),
        (OSError(27, "Can't write data (errno = 27, ...)"), "File too large", False),
        (RuntimeError(), "RuntimeError", False),
    ],
)
def test_a_message_holds_what_was_noted_and_the_room_of_a_full_disk(tmp_path, error, said, full):
    error.add_note("while writing it")
    told = mistakes.error_line(error, tmp_path / "none")
    room = f"MB are free on the disk of {tmp_path / 'none'}; free some, and run the same command again)"
    assert f"{said}, while writing it" in told and told.endswith(room) == full


def test_a_quota_is_no_full_disk(tmp_path):
    told = mistakes.error_line(OSError(122, "Disk quota exceeded"), tmp_path)
    assert told == "Disk quota exceeded (free some, and run the same command again)"


def test_too_many_open_files_are_reported_with_the_command_that_raises_their_number():
    told = mistakes.error_line(OSError(errno.EMFILE, "Too many open files", "a.h5"))
    assert told.endswith("open files: 'a.h5' (`ulimit -n` shows how many a process may open, and raises it)")


@pytest.mark.parametrize(
    ("error", "plain"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), True),
        (UserError("of ours"), True),
        (ValueError("of a library"), False),
        (RuntimeError("of a library"), False),
    ],
)
def test_what_luigi_logs_of_files_has_no_traceback(monkeypatch, caplog, capsys, error, plain):
    log = logging.getLogger("luigi-interface")
    monkeypatch.setattr(log, "handlers", [])  # those of a run before
    log.error("[pid 1] Worker failed", exc_info=error)
    assert len(caplog.records) == (not plain) and not capsys.readouterr().err
    for count, said in enumerate(("Uncaught exception in luigi", "Error in event callback for 'x'"), 2):
        log.error(said, exc_info=error)
        assert len(caplog.records) == count * (not plain)
        assert capsys.readouterr().err.startswith("error: " + str(error)) == plain


def test_a_folder_that_cannot_be_written_is_one_line(overlay, tmp_path):
    (tmp_path / "artifacts").write_text("a file")
    failed = luigi_command("Catalog", cwd=ROOT, PYTHONPATH=str(ROOT), **overlay)
    assert failed.returncode == 30 and "Traceback" not in failed.stderr
    assert (
        f"Catalog 1 FAILED: [run] artifacts is '{tmp_path / 'artifacts'}', where nothing can be written"
        in failed.stderr
    )


def test_a_folder_whose_file_system_has_no_locks_is_one_line(config, tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("tasks.settings.from_command_line", lambda: True)
    monkeypatch.setattr("pipeline.system.locks.fcntl.flock", refused)
    told = f"error: .run. artifacts is '{tmp_path}', whose file system has no locks .No locks available., which keep"
    with pytest.raises(SystemExit, match=told):
        session.use_artifacts(str(tmp_path), create=True)
    session.use_artifacts(str(tmp_path))  # to look at what is there


def test_an_interrupted_command_says_how_it_goes_on(capsys):
    command._say_or_show(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "interrupted; run the same command to resume\n"


def test_any_other_exception_keeps_its_traceback(capsys):
    try:
        raise ValueError("of the program")
    except ValueError as error:
        command._say_or_show(ValueError, error, error.__traceback__)
    said = capsys.readouterr().err
    assert "Traceback" in said and "ValueError: of the program" in said


def caught(function, *arguments) -> Exception:
    with pytest.raises(Exception) as found:  # noqa: B017, PT011
        function(*arguments)
    return found.value


def test_only_a_mistake_of_the_users_is_reported_without_traceback():
    """A function that got what it cannot take, of ours or of numpy, was called wrongly by the program."""
    of_the_user = caught(lambda: FlowSpec(bound_px=-1))
    of_ours, of_numpy = caught(quantize.to_bytes, np.zeros(2, int)), caught(np.zeros(3).reshape, 2)
    assert type(of_the_user) is UserError and mistakes.line_unless_bug(of_the_user) == str(of_the_user)
    for error in (of_ours, of_numpy):
        assert type(error) is ValueError and not mistakes.line_unless_bug(error)


@pytest.mark.parametrize(
    ("cause", "plain"),
    [
        *((error, True) for error in (None, OSError(5, "Input/output error"), WorkerDied("it died"))),
        *((error, True) for error in (MachineFault("no memory"), DamagedFile("damaged"), torch.OutOfMemoryError())),
        (MemoryError("Unable to allocate 12. GiB for an array with shape (3,)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        *((error, False) for error in (KeyError("x"), RecursionError(), NotImplementedError())),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
    ],
)
def test_a_stage_that_failed_for_a_fault_of_the_program_keeps_its_traceback(cause, plain):
    error = StageFailed("shard x could not be made")
    error.__cause__ = cause
    assert bool(mistakes.line_unless_bug(error)) == plain


def test_a_change_while_a_task_runs_is_reported_in_one_line(config, monkeypatch, caplog, capsys):
    def made(self):
        write_catalog(self)
        self.path.unlink()

    write_catalog = Catalog.make
    monkeypatch.setattr(Catalog, "make", made)
    assert not build(fresh(Catalog))
    assert "Catalog 1 FAILED: it ended, but what it reads or what it made has been changed" in capsys.readouterr().err
    assert "Traceback" not in caplog.text


def test_other_programs_keep_their_hook():
    code = "import sys, tasks; sys.exit(sys.excepthook is not sys.__excepthook__)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_is_read_to_find_whether_a_stage_is_done_is_reported_in_one_line(config, monkeypatch):
    def unreadable(self):
        raise PermissionError(13, "Permission denied", "weights.pth")

    monkeypatch.setattr(Catalog, "inputs_key", unreadable)
    with pytest.raises(PermissionError):
        fresh(Catalog).complete()
    monkeypatch.setattr("tasks.settings.from_command_line", lambda: True)
    with pytest.raises(SystemExit, match="error: .* Permission denied: 'weights.pth'"):
        fresh(Catalog).complete()


def test_a_folder_that_may_not_be_entered_is_reported_in_one_line(config, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self.path))

    monkeypatch.setattr(base.Artifact, "exists", refuse)
    monkeypatch.setattr("tasks.settings.from_command_line", lambda: True)
    with pytest.raises(SystemExit, match="error: .* Permission denied: '.*catalog.h5'"):
        fresh(Catalog).complete()


def test_a_folder_with_a_character_that_no_path_has_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr("tasks.settings.from_command_line", lambda: True)
    with pytest.raises(SystemExit, match=r"error: \[run\] artifacts is 'a\\x00b': embedded null byte"):
        session.use_artifacts("a\0b", create=True)


def test_a_damaged_table_is_reported_in_one_line(config, monkeypatch):
    of = fresh(PaperTable, table="1a")
    of.folder.mkdir(parents=True)
    of.path.write_text("{")
    monkeypatch.setattr("tasks.settings.from_command_line", lambda: True)
    with pytest.raises(SystemExit, match="error: .*table.json is damaged .*; delete it and run the same command again"):
        fresh(PaperTable, table="1a").complete()


ENDS = """
import os, signal, sys, time
from tasks import command
for number in (signal.SIGTERM, signal.SIGHUP):  # nohup ignores one
    signal.signal(number, signal.SIG_DFL)
command._end_as_after_ctrl_c()
sys.excepthook = command._say_or_show
signal.signal(signal.SIGINT, signal.default_int_handler)
ready, say = os.pipe()
child = os.fork()
if not child:
    os.write(say, b".")
    time.sleep(60)
os.read(ready, 1)
print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_command_is_reported_in_one_line(number):
    command = [sys.executable, "-c", ENDS]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    child = int(run.stdout.readline())
    os.kill(child, signal.SIGINT)  # the command hears that too, and would end it
    time.sleep(0.2)
    os.kill(child, number)  # ends it, and it says nothing
    run.send_signal(number)
    assert run.wait(60) == -number
    assert run.stderr.read() == f"ended by {number.name}; run the same command to resume\n"


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("pass", []),
        ("command.say('Other: done')", ["Other: done", "what failed:", "Flow FAILED: x"]),
        ("os.kill(os.getpid(), signal.SIGTERM)", ["ended by SIGTERM; run the same command to resume"]),
        ("command.say('Other'); os.kill(os.getpid(), signal.SIGTERM)", ["Other", "what failed:", "Flow FAILED: x", "ended by SIGTERM; run the same command to resume"]),
        ("os.fork() or (command.say('Other'), os._exit(0)); os.wait()", ["Other", "what failed:", "Flow FAILED: x"]),
        ("os.fork() or (command.say_failure('Fuse FAILED: y'), os._exit(0)); os.wait()", ["Fuse FAILED: y", "what failed:", "Flow FAILED: x", "Fuse FAILED: y"]),
    ],
)  # fmt: skip
def test_what_failed_is_said_again_at_the_end(rest, said):
    code = "import atexit, os, signal, sys; from tasks import command; atexit.register(command._say_again)\n"
    code += "command._end_as_after_ctrl_c(); sys.excepthook = command._say_or_show\n"
    code += f"command.say_failure('Flow FAILED: x'); {rest}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines() == ["Flow FAILED: x", *said]


def test_a_task_that_luigi_ends_for_its_time_is_reported(capsys):
    task = Catalog(dataset="demo")
    task.trigger_event(luigi.Event.TIMEOUT, task, "Task x timed out after 2 seconds and was terminated.")
    said = capsys.readouterr().err
    assert said.startswith("Catalog 1 FAILED: it took longer than [worker] timeout, or its") and "2 seconds" in said
    command._say_again()
    assert "what failed:" not in capsys.readouterr().err  # it was the last that was said


def test_the_death_of_a_task_process_is_reported(capsys):
    task = Catalog(dataset="demo")
    task.trigger_event(luigi.Event.PROCESS_FAILURE, task, "Task x died unexpectedly with exit code -9")
    said = capsys.readouterr().err
    assert (
        said.startswith("Catalog 1 FAILED: its process has died, perhaps for lack of memory (Task x died")
        and said.count("\n") == 1
    )
    command._say_again()
