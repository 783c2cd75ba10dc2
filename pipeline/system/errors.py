"""Errors that callers distinguish by type: the cause decides whether the run continues, and what the user is shown."""


class UserError(ValueError):
    """What a user set, named or wrote into a file cannot be used; the message says what to change.

    A plain `ValueError` is a mistake of a function's caller: an array of another shape, say. A command that ends with
    one has a bug.
    """


class ClipError(ValueError):
    """One clip cannot be processed. It is recorded as failed, with this message as the reason; the run continues."""


class MachineFault(RuntimeError):
    """This machine cannot do the work now, for example for lack of memory. No clip is at fault; a retry may succeed."""


class Misread(MachineFault):
    """A disk or a network did not give a file as it is."""


class WorkerDied(RuntimeError):
    """The process that ran a job ended without an answer: a crash in native code, a kill, or too little memory."""


class DamagedFile(ValueError):
    """A file is readable, but not what was written there. No clip is at fault, and none is recorded as failed."""


class StageFailed(RuntimeError):
    """A stage could not be finished; the message says why and what to do."""


# CUDA, cuBLAS and cuDNN, torch on the CPU, HDF5, OpenCV
_OUT_OF_MEMORY = (
    "out of memory",
    "STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator",
    "memory allocation failed",
    "Insufficient memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of this machine or of a device. Most libraries have no type for that, and only say so."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def with_notes(message: str, error: BaseException) -> str:
    """The message, and what was noted on the error, such as the path or the worker."""
    return ", ".join([message, *getattr(error, "__notes__", ())])


UNWRITTEN = "enforce fail at inline_container"
"""torch's message if a file of weights could not be written."""

_KNOWN = (OSError, UserError, ClipError, DamagedFile, MachineFault, WorkerDied, StageFailed)


def message_suffices(error: BaseException) -> bool:
    """Whether the message says it all: a mistake of the user, or a fault of files or the machine.

    Any other error is a bug, which needs its traceback, also if a worker raised it and its stage failed therefore.
    """
    if isinstance(error, StageFailed) and isinstance(error.__cause__, Exception):
        return message_suffices(error.__cause__)
    return isinstance(error, _KNOWN) or is_out_of_memory(error) or UNWRITTEN in str(error)
