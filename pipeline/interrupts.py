"""Ctrl-C reaches all processes of a terminal at once; only the one that the user started reacts, and ends the rest."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Processes and threads that begin within the block never hear Ctrl-C (SIGINT), nor do those that they start.

    Without it a stage that is interrupted prints a traceback for every worker. In the calling thread a Ctrl-C waits
    until the end of the block.
    """
    resource_tracker.ensure_running()  # else multiprocessing starts it within the block, and unblocks SIGINT then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
