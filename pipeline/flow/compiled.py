"""How functions on numpy arrays are compiled: by numba, which brings its own compiler to the user's machine."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit

_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "arcp", "nsz"}}


def compiled(function: Callable) -> Callable:
    """The function as machine code, made at its first call and kept beside its file or in the user's cache folder.

    Where neither can be written, each process compiles for itself. Threads call it at the same time; sums are not
    reordered, so that its result does not depend on how it was vectorised. Numbers of other files must be arguments:
    what was kept is made anew when the function's own file changes, not when one does that it imports from.
    """
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba: no locator available
        return njit(**_OPTIONS)(function)


def inlined(function: Callable) -> Callable:
    """A part of compiled functions of the same file, set into each loop that calls it, so that LLVM sees it whole."""
    return njit(forceinline=True, **_OPTIONS)(function)
