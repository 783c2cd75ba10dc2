"""The life of Luigi's command: what it says of failed tasks, how signals end it, and what is said again at the end."""

from __future__ import annotations

import atexit
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback

import luigi
from luigi.retcodes import run_with_retcodes

from pipeline.system.console import plain
from pipeline.system.errors import UserError
from pipeline.system.files import nameless_file
from pipeline.system.progress import last_said, say
from tasks import checks
from tasks.mistakes import error_line, line_unless_bug, mistake_of_command

_FORKED = threading.Event()  # tasks run in their own processes, whose last message is not known here
_FAILURES = nameless_file()  # a line each; shared with Luigi's workers, which are forked


def _is_no_mistake(record: logging.LogRecord) -> bool:
    """Keeps tracebacks out of Luigi's log for errors that are not bugs; one line reports such an error.

    If a task failed, its failure handler prints the line; if the error ends the program or a handler of ours, it is
    printed here.
    """
    error = record.exc_info[1] if record.exc_info else None
    if not error or not (line := line_unless_bug(error)):
        return True
    if record.msg.startswith(("Uncaught exception", "Error in event callback")):
        say(f"error: {line}")
    return False


def _say_or_show(kind: type[BaseException], error: BaseException, trace) -> None:
    """Replaces `sys.excepthook`: prints a signal, Ctrl-C or a mistake in the command without a traceback."""
    if isinstance(error, Ended):
        _say_again()
        say(f"ended by {error}; run the same command to resume")
        os.kill(os.getpid(), error.number)  # so that the exit status shows which signal ended it
    elif isinstance(error, KeyboardInterrupt):
        say("interrupted; run the same command to resume")
    elif mistake := mistake_of_command(error):
        say(f"error: {mistake}")
    else:
        sys.__excepthook__(kind, error, trace)


class Ended(KeyboardInterrupt):
    """A signal asked the command to end (a closed terminal, a job out of time); handled like Ctrl-C."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def _end_as_after_ctrl_c() -> None:
    """Make SIGTERM and SIGHUP raise `Ended` in this process once native code returns; a later second one kills it.

    The processes that Luigi forks (`--workers 2`) ignore Ctrl-C; this process ends them.
    """

    def end(number: int, frame) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Ended(number)

    def as_a_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in taken:
            signal.signal(number, signal.SIG_DFL)

    # under nohup, SIGHUP is ignored already
    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    os.register_at_fork(after_in_child=as_a_child, after_in_parent=_FORKED.set)


def say_failure(line: str) -> None:
    """Say that a task failed, and repeat it at the end of the command if other messages followed."""
    os.write(_FAILURES, f"{plain(line)}\n".encode())
    say(line)


def _named(task: luigi.Task) -> str:
    """Name of a task in messages, which distinguishes it from others of the same command."""
    try:
        title, seed = task.title, task.seed
    except Exception:  # not a stage; or what is wrong is what its title is made of
        return type(task).__name__
    return title if seed in ("", -1) else f"{title}, seed {seed},"


@luigi.Task.event_handler(luigi.Event.FAILURE)
def _say_what_failed(task: luigi.Task, error: BaseException) -> None:
    say_failure(f"{_named(task)} FAILED: {error_line(error, getattr(task, 'folder', None))}")


@luigi.Task.event_handler(luigi.Event.PROCESS_FAILURE)
def _say_what_died(task: luigi.Task, message: str) -> None:
    say_failure(
        f"{_named(task)} FAILED: its process has died, perhaps for lack of memory ({message}); the same command goes on"
    )


@luigi.Task.event_handler(luigi.Event.TIMEOUT)
def _say_what_took_too_long(task: luigi.Task, message: str) -> None:
    say_failure(
        f"{_named(task)} FAILED: it took longer than [worker] timeout, or its worker_timeout, allows "
        f"({message}); the same command goes on"
    )


@luigi.Task.event_handler(luigi.Event.DEPENDENCY_PRESENT)
def _say_present(task: luigi.Task) -> None:
    if hasattr(task, "say_present"):
        task.say_present()


def _say_again() -> None:
    lines = os.pread(_FAILURES, os.fstat(_FAILURES).st_size, 0).decode().splitlines()
    os.ftruncate(_FAILURES, 0)
    if lines and (_FORKED.is_set() or last_said() != lines[-1]):
        say("\n".join(["what failed:", *lines]))


def install() -> None:
    """From now on report mistakes in one line: in Luigi's log and, under its command, at the end of the program.

    Raises:
        SystemExit: the command has a flag that its task does not have.
    """
    logging.getLogger("luigi-interface").addFilter(_is_no_mistake)
    if any(frame.f_code is run_with_retcodes.__code__ for frame, _ in traceback.walk_stack(None)):
        sys.excepthook = _say_or_show
        # Luigi's workers must know the flags. By default they are forked no more (Python 3.14; macOS before that), and
        # would run their tasks with the settings of luigi.cfg alone
        multiprocessing.set_start_method("fork", force=True)
        atexit.register(_say_again)
        if threading.current_thread() is threading.main_thread():
            _end_as_after_ctrl_c()
        _refuse_unknown_flags()


def _refuse_unknown_flags() -> None:
    """End the command as argparse does for an unknown flag, but with the name of the flag that was meant.

    A module of the user's that imports this one may define tasks, with flags of their own, that are not known yet.
    """
    words = sys.argv[1:]
    if "--module=tasks" not in words and ("--module", "tasks") not in itertools.pairwise(words):
        return
    try:
        checks.check_flags(words)
    except UserError as error:
        say(f"error: {error}")
        raise SystemExit(2) from None
