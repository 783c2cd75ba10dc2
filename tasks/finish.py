"""Run a task and those that it lacks one after another, as Luigi would, except that failures stop nothing else."""

from __future__ import annotations

import traceback

import luigi

from pipeline.system.errors import StageFailed
from pipeline.system.progress import say
from tasks.mistakes import Refused, error_line, line_unless_bug


class NotMade(Exception):
    """A task failed, or cannot be run; the message names it."""

    def __init__(self, task: luigi.Task, error: BaseException):
        title, folder = (getattr(task, name, None) for name in ("title", "folder"))
        super().__init__(f"{title or type(task).__name__}: {error_line(error, folder)}")


def finish(task: luigi.Task, broken: dict[str, NotMade]) -> None:
    """Run a task after the tasks it lacks, as Luigi would; what failed for an earlier row is not tried again."""
    name = str(getattr(task, "folder", task.task_id))
    if name in broken:
        raise broken[name]
    try:
        if task.complete():
            return
        for before in luigi.task.flatten(task.requires()):
            finish(before, broken)
        task.run()
        if not task.complete():
            raise StageFailed("it is not complete after its run: what it reads has changed meanwhile")
    except NotMade:
        raise
    except (Exception, Refused) as error:
        if not line_unless_bug(error):  # a bug, which the message alone does not explain
            say("".join(traceback.format_exception(error)))
        broken[name] = NotMade(task, error)
        _forget_locals(error)
        raise broken[name] from error


def _forget_locals(error: BaseException | None) -> None:
    """Clear the frames that an error and its causes hold: else what failed, such as a network, stays in memory."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
