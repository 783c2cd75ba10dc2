"""Compile functions on numpy arrays with numba, which brings its own compiler."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit

_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "arcp", "nsz"}}


def compiled(function: Callable, **options: object) -> Callable:
    """Compile a function on its first call, caching the machine code beside its file or in the user's cache folder.

    If neither is writable, each process compiles for itself. The function releases the GIL, so threads run it in
    parallel. Sums are not reordered, so the result does not depend on vectorization. Constants from other files must be
    passed as arguments: the cache is renewed when the function's own file changes, not when an imported file does.

    `options` override the numba options chosen here; `fastmath=False` rounds every operation as numpy does.
    """
    options = {**_OPTIONS, **options}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba: no locator available
        return njit(**options)(function)


def inlined(function: Callable, **options: object) -> Callable:
    """Compile a helper for compiled functions in the same file; it is always inlined, so LLVM sees whole loops."""
    return njit(forceinline=True, **{**_OPTIONS, **options})(function)
