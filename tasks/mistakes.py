"""How mistakes are told: in one line to whoever typed a command, as an exception to whoever calls from Python."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from luigi.cmdline_parser import CmdlineParser
from luigi.parameter import ParameterException
from luigi.retcodes import run_with_retcodes
from luigi.task_register import TaskClassException

from pipeline.cluster import StageFailed
from pipeline.progress import say
from tasks import settings

_OURS = Path(__file__).parents[1]


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Whoever typed a command gets his mistake in one line; whoever calls from Python gets the exception."""
    try:
        yield
    except (ValueError, OSError) as error:
        if settings.from_command_line():
            raise SystemExit(f"error: {error}") from None
        raise


class _WithoutTraceback(logging.Filter):
    """Keeps from Luigi's log what our own code raised on purpose: the message is said in a line of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if mistake := mistake_of_command(error):
            say(f"error: {mistake}")
            return False
        if not isinstance(error, (ValueError, OSError, StageFailed)) or error.__traceback__ is None:
            return True
        *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
        return not Path(innermost.f_code.co_filename).is_relative_to(_OURS / "pipeline")


def mistake_of_command(error: BaseException | None) -> str:
    """What is wrong with a task or a parameter of the command line, in one line; "" for any other error."""
    if isinstance(error, (ParameterException, TaskClassException)):
        return re.sub(r"\[args=.*?\]:", "", " ".join(str(error).split()))
    if isinstance(error, ValueError):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code is CmdlineParser._get_task_kwargs.__code__:  # Luigi's message does not name the parameter
                name, text = (frame.f_locals.get(local, "?") for local in ("param_name", "attr"))
                return f"--{name.replace('_', '-')} is {text!r}: {error}"
    return ""


def _say_or_show(kind: type[BaseException], error: BaseException, trace) -> None:
    """In place of `sys.excepthook`: what is no fault of the program is said without its traceback."""
    if isinstance(error, KeyboardInterrupt):
        say("interrupted; the same command goes on")
    elif mistake := mistake_of_command(error):
        say(f"error: {mistake}")
    else:
        sys.__excepthook__(kind, error, trace)


def install() -> None:
    """Tell mistakes plainly from now on: in Luigi's log and, if its command runs, at the end of the program."""
    logging.getLogger("luigi-interface").addFilter(_WithoutTraceback())
    if any(frame.f_code is run_with_retcodes.__code__ for frame, _ in traceback.walk_stack(None)):
        sys.excepthook = _say_or_show
