"""Errors that callers tell apart by their type: the cause of an error decides whether the run goes on."""


class ClipError(ValueError):
    """One clip cannot be processed. It is recorded as failed, with this message as the reason, and the run goes on."""


class MachineFault(RuntimeError):
    """This machine cannot do the work now, as for want of memory. No clip is at fault, and another try may succeed."""


class WorkerDied(RuntimeError):
    """The process that ran a job ended without an answer: a crash in native code, a kill, or too little memory."""


class DamagedFile(ValueError):
    """A file can be read, but its content is not what was written there. No clip is at fault, and none is recorded."""


class StageFailed(RuntimeError):
    """A stage could not be finished; the message says why and what to do."""
