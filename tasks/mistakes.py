"""How mistakes are reported: as one line to the user of a command, as an exception to a Python caller."""

from __future__ import annotations

import atexit
import contextlib
import errno
import linecache
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import luigi
from luigi.parameter import ParameterException
from luigi.retcodes import run_with_retcodes
from luigi.task_register import TaskClassException

from pipeline.system import files
from pipeline.system.console import one_line, plain
from pipeline.system.errors import DamagedFile, MachineFault, StageFailed, WorkerDied
from pipeline.system.progress import last_said, say
from tasks import settings

_OURS = Path(__file__).parents[1]
_NOT_OURS = (WorkerDied, DamagedFile, MachineFault)
_FORKED = threading.Event()  # tasks run in their own processes, whose last message is not known here
_FAILURES = os.memfd_create("failures")  # a line each; shared with Luigi's workers, which are forked
_OF_TORCH = "enforce fail at inline_container"  # torch's message if a file of weights could not be written


class Refused(SystemExit):
    """A mistake that ends Luigi's command with one line instead of a traceback and a summary of tasks.

    Before it runs any task, Luigi asks all of them whether they are complete. An `Exception` raised there only becomes
    a log entry, and the run continues without that task; a `SystemExit` ends the run.
    """

    def __init__(self, error: Exception):
        super().__init__(f"error: {error_line(error)}")
        self.error = error
        """The exception that was raised where the mistake was found."""


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Turn a mistake into one line for the user of a command (`Refused`); a Python caller gets the exception."""
    try:
        yield
    except (ValueError, OSError) as error:
        if settings.from_command_line():
            raise Refused(error) from None
        raise


def error_line(error: BaseException, folder: Path | None = None) -> str:
    """The error's message with its notes (such as the path), and the free space if the disk may be full."""
    if isinstance(error, Refused):
        error = error.error
    said = one_line(str(error)) or type(error).__name__
    if getattr(error, "errno", None) == errno.ENOSPC:
        said = "no space left"  # HDF5 says the same in six lines
    elif _OF_TORCH in said:  # which does not say why
        said = f"{said}, perhaps for want of space"
    text = ", ".join([said, *getattr(error, "__notes__", [])])
    if not _is_full(error):
        return text
    where = Path(getattr(error, "filename", None) or folder or ".")
    return f"{text} ({files.free_space_text(where)}; free some, and run the same command again)"


def _is_full(error: BaseException | None) -> bool:
    """Whether a disk is full, or may be."""
    no_space = os.strerror(errno.ENOSPC)
    return getattr(error, "errno", None) == errno.ENOSPC or any(words in str(error) for words in (no_space, _OF_TORCH))


class _WithoutTraceback(logging.Filter):
    """Keeps tracebacks out of Luigi's log for errors that are not bugs; one line reports such an error.

    If a task failed, its failure handler prints the line; if the error ends the program, it is printed here.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not error or not (told := plainly(error)):
            return True
        if record.msg.startswith("Uncaught exception"):
            say(f"error: {told}")
        return False


def _is_plain(error: BaseException | None) -> bool:
    """Whether the message suffices: a fault of files or the machine, or an error our code raised on purpose."""
    if isinstance(error, OSError) or _is_full(error):
        return True
    if isinstance(error, _NOT_OURS) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    if isinstance(error, StageFailed) and isinstance(error.__cause__, Exception):  # what a worker raised
        return _is_plain(error.__cause__)
    return isinstance(error, (ValueError, StageFailed)) and _was_raised_on_purpose(error)


def _was_raised_on_purpose(error: BaseException) -> bool:
    """Whether one of our `raise` statements raised it: numpy or `zip` may also raise a ValueError in our lines."""
    if error.__traceback__ is None:
        return False
    *_, (innermost, line) = traceback.walk_tb(error.__traceback__)
    file = innermost.f_code.co_filename
    ours = any(Path(file).is_relative_to(_OURS / folder) for folder in ("pipeline", "tasks"))
    return ours and linecache.getline(file, line).lstrip().startswith("raise ")


def mistake_of_command(error: BaseException | None) -> str:
    """What is wrong with a task or parameter on the command line, in one line; "" for any other error."""
    if isinstance(error, (ParameterException, TaskClassException)):
        return re.sub(r"\[args=.*?\]:", "", one_line(str(error)))
    if isinstance(error, ValueError):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name == "_get_task_kwargs":  # Luigi's, whose message does not name the parameter
                name, text = (frame.f_locals.get(local, "?") for local in ("param_name", "attr"))
                return f"--{name.replace('_', '-')} is {text!r}: {error}"
    return ""


def plainly(error: BaseException) -> str:
    """The error in one line if it is not a bug, else ""."""
    return mistake_of_command(error) or (error_line(error) if isinstance(error, Refused) or _is_plain(error) else "")


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


@luigi.Task.event_handler(luigi.Event.FAILURE)
def _say_what_failed(task: luigi.Task, error: BaseException) -> None:
    say_failure(f"{type(task).__name__} FAILED: {error_line(error, getattr(task, 'folder', None))}")


@luigi.Task.event_handler(luigi.Event.PROCESS_FAILURE)
def _say_what_died(task: luigi.Task, message: str) -> None:
    say_failure(
        f"{type(task).__name__} FAILED: its process has died, perhaps for want of memory ({message}); the same command "
        "goes on"
    )


def _say_again() -> None:
    lines = os.pread(_FAILURES, os.fstat(_FAILURES).st_size, 0).decode().splitlines()
    os.ftruncate(_FAILURES, 0)
    if lines and (_FORKED.is_set() or last_said() != lines[-1]):
        say("\n".join(["what failed:", *lines]))


def install() -> None:
    """From now on report mistakes in one line: in Luigi's log and, under its command, at the end of the program."""
    logging.getLogger("luigi-interface").addFilter(_WithoutTraceback())
    if any(frame.f_code is run_with_retcodes.__code__ for frame, _ in traceback.walk_stack(None)):
        sys.excepthook = _say_or_show
        atexit.register(_say_again)
        if threading.current_thread() is threading.main_thread():
            _end_as_after_ctrl_c()
