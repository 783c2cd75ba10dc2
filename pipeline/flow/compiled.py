"""Compiles functions on numpy arrays with numba, which brings its own compiler to the user's machine."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit

_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "arcp", "nsz"}}


def compiled(function: Callable, **options: object) -> Callable:
    """Compile a function at its first call; the machine code is cached beside its file or in the user's cache folder.

    If neither can be written, each process compiles for itself. The function releases the GIL, so threads run it in
    parallel. Sums are not reordered, so the result does not depend on vectorisation. Constants of other files must be
    passed as arguments: the cache is renewed when the function's own file changes, not when an imported file does.

    `options` replace those of numba that are chosen here; `fastmath=False` rounds every operation as numpy does.
    """
    options = {**_OPTIONS, **options}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba: no locator available
        return njit(**options)(function)


def inlined(function: Callable, **options: object) -> Callable:
    """Compile a helper of the same file's compiled functions; it is inlined at every call, so LLVM sees whole loops."""
    return njit(forceinline=True, **{**_OPTIONS, **options})(function)
