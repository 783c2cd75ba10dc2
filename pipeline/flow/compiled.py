"""Compile functions on numpy arrays with numba, which brings its own compiler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

from pipeline.system.progress import say_once

_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "arcp", "nsz"}}


def compiled(function: Callable, **options: object) -> Callable:
    """Compile a function on its first call, caching the machine code beside its file or in the user's cache folder.

    If neither can be written, each process compiles for itself; what is damaged is compiled again. The function
    releases the GIL, so threads run it in parallel. Sums are not reordered, so the result does not depend on
    vectorization. Constants from other files must be passed as arguments: the cache is renewed when the function's own
    file changes, not when an imported file does.

    `options` override the numba options chosen here; `fastmath=False` rounds every operation as numpy does.
    """
    found = njit(**{**_OPTIONS, **options})(function)
    with contextlib.suppress(RuntimeError):  # numba: no locator available
        found._cache = _Cache(function)  # as cache=True does with numba's own
    return found


class _Cache(FunctionCache):
    """numba's, but what cannot be read is compiled again, and what cannot be written is for this process only.

    A power cut may leave empty files, and the disk of the cache may be full.
    """

    def load_overload(self, *given: Any) -> Any:
        try:
            return super().load_overload(*given)
        except Exception as error:  # unpickling damaged bytes may raise anything
            say_once(f"numba's cache in {self.cache_path} cannot be read ({error!r}); compiling again")
            if not isinstance(error, (OSError, MemoryError)):  # those may pass
                with contextlib.suppress(OSError):
                    self.flush()
            return None

    def save_overload(self, *given: Any) -> None:
        try:
            super().save_overload(*given)
        except Exception as error:
            say_once(f"numba's cache in {self.cache_path} cannot be written ({error!r}); each process compiles anew")


def inlined(function: Callable, **options: object) -> Callable:
    """Compile a helper for compiled functions in the same file; it is always inlined, so LLVM sees whole loops."""
    return njit(forceinline=True, **{**_OPTIONS, **options})(function)
