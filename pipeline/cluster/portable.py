"""Jobs sent to other machines: a worker there runs them only if its code equals that of the command that sent them.

Otherwise it could write different bytes, such as those of an older algorithm, under the current digest.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.specs.base import digest_of
from pipeline.system.files import file_hash

_CODE = Path(__file__).parents[1]


@functools.cache
def code_key() -> str:
    """Key of the code in pipeline/, which is the same wherever the same version is installed."""
    return digest_of({str(path.relative_to(_CODE)): file_hash(path) for path in sorted(_CODE.rglob("*.py"))})


def carrier() -> Callable[[bytes], tuple[bool, Any]]:
    """The function that runs `packed` jobs elsewhere; it returns (True, result), or (False, why it was not run).

    dask sends a module's function by name, but one made at run time, like this one, as code. So neither scheduler nor
    worker needs the project to receive it, and a worker without the project can say so.
    """
    key = code_key()

    def run(packed: bytes) -> tuple[bool, Any]:
        import pickle
        import socket
        import sys

        where = f"the worker on {socket.gethostname()} ({sys.executable})"
        # of all modules, importing this one loads its folder's first, and another thread may be doing so right now
        if "pipeline.cluster" not in sys.modules and any(name.startswith("pipeline.") for name in sys.modules):
            return False, f"{where} has loaded another version of the project; restart it"
        try:
            from pipeline.cluster import portable
        except ImportError as error:
            return False, f"{where} has not this version of the project: {type(error).__name__}: {error}"
        if portable.code_key() != key:
            return False, f"{where} has another version of the project, at {portable._CODE}; give all machines the same"
        function, job = pickle.loads(packed)
        return True, function(job)

    return run


def packed(function: Callable[[Any], Any], job: Any) -> bytes:
    """A module-level function and its job, as bytes."""
    return pickle.dumps((function, job))


code_key()  # computed on import: the files may be replaced before the first job arrives
