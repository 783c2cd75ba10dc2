"""One of the processes of a training: `python -m pipeline.training JOB`, started by `launch` or by torchrun.

JOB is the folder that `launch` has written. On one machine the pipeline starts these processes itself; docs/scaling.md
has the command for several machines.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from pipeline.system.errors import message_suffices, with_notes
from pipeline.training import train_here
from pipeline.training.launch import TrainingJob
from pipeline.training.parallel import process_group


def main(arguments: list[str] | None = None) -> int:
    """Train and return the exit status; an error is also written into JOB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path, help="folder of the job, which the first machine has written")
    parser.add_argument("--watched", action="store_true", help="end when standard input ends: the parent is gone")
    given = parser.parse_args(arguments)
    if "RANK" not in os.environ:
        parser.error("no RANK in the environment; start it with torchrun")
    if given.watched:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and ends this process
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        job = TrainingJob.read(given.job)
        with process_group(job.device, given.job / "meeting") as (world, device):
            train_here(job, world, device)
    except Exception as error:
        _report(error, given.job / f"error-{os.environ['RANK']}")
        return 1
    return 0


def _report(error: Exception, path: Path) -> None:
    """Write the error to the file, for the parent to tell; to standard error if the disk is full, or it is a bug."""
    text, is_told = with_notes(f"{type(error).__name__}: {error}", error), False
    with contextlib.suppress(OSError):
        path.write_bytes(text.encode(errors="backslashreplace"))
        is_told = True
    with contextlib.suppress(OSError):
        if not message_suffices(error):
            traceback.print_exception(error)
        elif not is_told:
            print(text, file=sys.stderr, flush=True)


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin: its lock, held by a thread, makes the interpreter abort at exit
        pass
    os.kill(os.getpid(), signal.SIGKILL)  # end at once: another run may already be writing into the folder


if __name__ == "__main__":
    status = main()
    if status:
        os._exit(status)  # no destructor may wait for the other processes
    sys.exit(status)
