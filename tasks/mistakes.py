"""How mistakes are reported: as one line to the user of a command, as an exception to a Python caller.

The type of an error tells a mistake of the user or a fault of the machine, whose message suffices, from a bug, which
needs its traceback; see `pipeline.system.errors`.
"""

from __future__ import annotations

import contextlib
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
from pipeline.system.errors import UNWRITTEN, DamagedFile, UserError, message_suffices, with_notes
from tasks import settings

_OF_LUIGI = "Task finished running, but complete() is still returning false"


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
    except (UserError, DamagedFile, OSError) as error:
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
    elif UNWRITTEN in said:  # which does not say why
        said = f"{said}, perhaps for lack of space"
    text = with_notes(said, error)
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
    return getattr(error, "errno", None) == errno.ENOSPC or any(words in str(error) for words in (no_space, UNWRITTEN))


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
    known = isinstance(error, Refused) or message_suffices(error) or _is_full(error) or _OF_LUIGI in str(error)
    return mistake_of_command(error) or (error_line(error) if known else "")
