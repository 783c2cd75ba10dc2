"""What is compiled when it is first used, once per process; a line says what is waited for.

Neither torch nor numba is imported before it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.specs import FlowSpec
from pipeline.system.progress import say

_PATIENCE_S = 3.0  # seconds after which a first call says what it is waiting for


def computed_once(function: Callable) -> Callable:
    """`functools.cache` for threads: a second caller waits for the first instead of repeating the computation."""
    cached, lock = functools.cache(function), threading.RLock()

    @functools.wraps(function)
    def waiting(*arguments: Any) -> Any:
        with lock:
            return cached(*arguments)

    waiting.cache_clear = cached.cache_clear
    return waiting


@contextlib.contextmanager
def patience(message: str) -> Iterator[None]:
    """Print the message if the block, such as a first call that compiles, takes longer than `_PATIENCE_S`."""
    timer = threading.Timer(_PATIENCE_S, say, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def has_numba() -> bool:
    """Whether numba is installed and works; prints a line if it is installed but fails, as when numpy is too new."""
    return importlib.util.find_spec("numba") is not None and _numba_works()


@computed_once
def _numba_works() -> bool:
    try:
        import numba

        off = numba.config.DISABLE_JIT
    except Exception as error:  # a broken numba may raise anything
        say(f"numba does not work, so what it would compile is computed more slowly: {error!r}")
        return False
    if off:  # Python would run the loops, thousands of times as slowly
        say("NUMBA_DISABLE_JIT is set, so what numba would compile is computed more slowly")
    return not off


@computed_once
def compile_for_cpu(method: str, flow_between: Callable) -> None:
    """Have numba compile the loops of a method, or load what it compiled before; done once per process."""
    with patience(f"{method}: numba compiles its loops (about twenty seconds, once) or loads them"):
        image = np.zeros((1, 80, 80), np.uint8)  # has levels of either precision
        flow_between(image, image, FlowSpec())
