"""How mistakes are reported: as one line to the user of a command, as an exception to a Python caller.

An error that our code raised on purpose is a mistake of the user or a fault of the machine, whose message suffices; any
other is a bug, which needs its traceback.
"""

from __future__ import annotations

import contextlib
import dis
import errno
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from luigi.parameter import ChoiceParameter, ParameterException
from luigi.task_register import TaskClassException

from pipeline.specs.base import unknown_name
from pipeline.system import files
from pipeline.system.console import one_line
from pipeline.system.errors import DamagedFile, MachineFault, StageFailed, WorkerDied, is_out_of_memory
from tasks import settings

_RAISE = dis.opmap["RAISE_VARARGS"]
_OURS = Path(__file__).parents[1]
_NOT_BUGS = (WorkerDied, DamagedFile, MachineFault)
_OF_LUIGI = "Task finished running, but complete() is still returning false"
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
def one_line_errors() -> Iterator[None]:
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
    said = _of_luigis_setting(error) or one_line(str(error)) or type(error).__name__
    number = getattr(error, "errno", None)
    if number in files.NO_SPACE:  # HDF5 says the same in six lines
        said = "no space left" if number == errno.ENOSPC else os.strerror(number)
    elif _OF_LUIGI in said:
        said = (
            "it ended, but what it reads or what it made has been changed meanwhile, by another run or by hand; run "
            "the same command again"
        )
    elif _OF_TORCH in said:  # which does not say why
        said = f"{said}, perhaps for lack of space"
    text = ", ".join([said, *getattr(error, "__notes__", [])])
    if number == errno.EDQUOT:  # the disk's free space would mislead
        return f"{text} (free some, and run the same command again)"
    if number == errno.EMFILE:
        return f"{text} (`ulimit -n` shows how many a process may open, and raises it)"
    if number == errno.EFBIG or not _is_full(error):
        return text
    where = Path(getattr(error, "filename", None) or folder or ".")
    return f"{text} ({files.free_space_text(where)}; free some, and run the same command again)"


def _is_full(error: BaseException | None) -> bool:
    """Whether a disk is full, or may be."""
    no_space = os.strerror(errno.ENOSPC)
    return getattr(error, "errno", None) == errno.ENOSPC or any(words in str(error) for words in (no_space, _OF_TORCH))


def _is_plain(error: BaseException | None) -> bool:
    """Whether the message suffices: a fault of files or the machine, or an error our code raised on purpose."""
    if isinstance(error, OSError) or _is_full(error) or _OF_LUIGI in str(error):
        return True
    if isinstance(error, _NOT_BUGS) or (error is not None and is_out_of_memory(error)):
        return True
    if isinstance(error, StageFailed) and isinstance(error.__cause__, Exception):  # what a worker raised
        return _is_plain(error.__cause__)
    return isinstance(error, (ValueError, StageFailed)) and _was_raised_on_purpose(error)


def _was_raised_on_purpose(error: BaseException) -> bool:
    """Whether one of our `raise` statements raised it: numpy or `zip` may also raise a ValueError in our lines.

    The instruction at which the traceback ends shows it.
    """
    end = error.__traceback__
    if end is None:
        return False
    while end.tb_next:
        end = end.tb_next
    code = end.tb_frame.f_code
    ours = any(Path(code.co_filename).is_relative_to(_OURS / folder) for folder in ("pipeline", "tasks"))
    return ours and code.co_code[end.tb_lasti] == _RAISE


def mistake_of_command(error: BaseException | None) -> str:
    """What is wrong with a task or parameter on the command line, in one line; "" for any other error."""
    if isinstance(error, (ParameterException, TaskClassException)):
        return re.sub(r"\[args=.*?\]:", "", one_line(str(error)))
    if isinstance(error, ValueError):
        if mistake := _of_luigis_setting(error):
            return mistake
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name == "_get_task_kwargs":  # Luigi's, whose message does not name the parameter
                name, text = (frame.f_locals.get(local, "?") for local in ("param_name", "attr"))
                flag, parameter = f"--{name.replace('_', '-')}", frame.f_locals.get("param_obj")
                if isinstance(parameter, ChoiceParameter):  # whose message has the choices in any order
                    return unknown_name(f"{flag} {text!r}", text, parameter._choices)
                return f"{flag} is {text!r}: {error}"
    return ""


def _of_luigis_setting(error: BaseException) -> str:
    """What is wrong with the value of a setting in one of Luigi's own sections; "" for any other error."""
    found = re.match(r"(\w+)\[args=.*\]: Error when parsing the default value of '(\w+)'", one_line(str(error)))
    return f"[{found[1]}] {found[2]}, in luigi.cfg or as a flag: {one_line(str(error.__cause__))}" if found else ""


def line_unless_bug(error: BaseException) -> str:
    """The error in one line if it is not a bug, else ""."""
    return mistake_of_command(error) or (error_line(error) if isinstance(error, Refused) or _is_plain(error) else "")
