"""Jobs sent to other machines: a worker there runs them only if its code equals that of the command that sent them.

Otherwise it could write different bytes, such as those of an older algorithm, under the current digest.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from pipeline.system.digests import code_key


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
            from pipeline.system import digests
        except ImportError as error:
            return False, f"{where} lacks this version of the project: {type(error).__name__}: {error}"
        if portable.code_key() != key:
            return False, f"{where} has another version of the project, at {digests.CODE}; give all machines the same"
        function, job = pickle.loads(packed)
        try:
            return True, function(job)
        except Exception as error:
            error.add_note(f"on {where}")
            raise

    return run


def packed(function: Callable[[Any], Any], job: Any) -> bytes:
    """A module-level function and its job, as bytes."""
    return pickle.dumps((function, job))


code_key()  # computed on import: the files may be replaced before the first job arrives
