"""Child processes that leave Ctrl-C to this one and end with it, however it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection, resource_tracker

_LOOK_SECONDS = 1.0


@contextlib.contextmanager
def children_ignore_sigint() -> Iterator[None]:
    """Processes and threads started within the block, and those that they start, never receive Ctrl-C (SIGINT).

    A terminal sends it to all of them, so an interrupted stage would print a traceback for every worker. The caller
    receives it only at the end of the block, by when it can have made sure that what it started will end.
    """
    resource_tracker.ensure_running()  # started within the block, it would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # of this thread, hence of what it starts
    try:
        with _defer_sigint():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _defer_sigint() -> Iterator[None]:
    """Within the block only note a Ctrl-C (another thread may receive it while it is blocked here), then raise it."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():  # only that thread may set one
        yield
        return
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if heard:
            signal.raise_signal(signal.SIGINT)  # waits until this thread no longer blocks it


def status_of(code: str, *arguments: str, timeout: float | None = None) -> int:
    """Exit status of Python code in a process of its own, which may crash without harming this one, and ends with it.

    Raises:
        subprocess.TimeoutExpired: it took longer than `timeout` seconds, and was ended.
    """
    code = f"import sys; from pipeline.system.processes import end_with_parent; end_with_parent(); {code}"
    return subprocess.run([sys.executable, "-c", code, *arguments], timeout=timeout, capture_output=True).returncode


def end_with_parent() -> None:
    """Called in a child of a pool: end it when the process that it works for is gone, even if that was killed.

    The libraries do not ensure this: torch checks whether its processes' parent has changed, but that is the fork
    server, which lives as long as one of them does.
    """
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_after, args=[parent and parent.sentinel, os.getppid()], daemon=True).start()


def _end_after(sentinel: int | None, number: int) -> None:
    """Wait for the parent's end by its sentinel, or for joblib's processes, which have none, by its process id."""
    if sentinel is not None:
        connection.wait([sentinel])
    while sentinel is None and os.getppid() == number:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)
