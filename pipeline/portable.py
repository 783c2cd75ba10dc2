"""Jobs that travel to other machines: a worker there runs them only with the very code of the command that sent them.

Otherwise it would write other bytes, or bytes of an older algorithm, under the digest of the present one.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.files import file_hash
from pipeline.specs.base import digest_of

_CODE = Path(__file__).parent


@functools.cache
def code_key() -> str:
    """Key of the code in pipeline/: the same wherever the same version of it is installed."""
    return digest_of({str(path.relative_to(_CODE)): file_hash(path) for path in sorted(_CODE.rglob("*.py"))})


def carrier() -> Callable[[bytes], tuple[bool, Any]]:
    """The function that runs `packed` jobs elsewhere: it gives (True, result), or (False, why it was not run).

    dask sends a function of a module by its name, and one that is made at run time, like this one, as code. So neither
    scheduler nor worker needs the project to take it, and a worker without it can say so.
    """
    key = code_key()

    def run(packed: bytes) -> tuple[bool, Any]:
        import pickle
        import socket
        import sys

        where = f"the worker on {socket.gethostname()} ({sys.executable})"
        if "pipeline.portable" not in sys.modules and any(name.startswith("pipeline.") for name in sys.modules):
            return False, f"{where} has loaded another version of the project, which had no such check; restart it"
        try:
            from pipeline import portable
        except ImportError as error:
            return False, f"{where} has not this version of the project: {type(error).__name__}: {error}"
        if portable.code_key() != key:
            return False, f"{where} has another version of the project, at {portable._CODE}; give all machines the same"
        function, job = pickle.loads(packed)
        return True, function(job)

    return run


def packed(function: Callable[[Any], Any], job: Any) -> bytes:
    """A function of a module and its job, as bytes."""
    return pickle.dumps((function, job))


code_key()  # of the code as it is loaded: its files may be replaced before the first job comes
