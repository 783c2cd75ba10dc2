"""Errors that callers tell apart by their type: the cause of an error decides whether the run goes on."""


class ClipError(ValueError):
    """One clip cannot be processed. It is recorded as failed, with this message as the reason, and the run goes on."""


class DamagedStore(RuntimeError):
    """The stored bytes of a clip differ from those written. Its video is not at fault, so no failure is recorded."""


class StageFailed(RuntimeError):
    """A stage could not be finished; the message says why and what to do."""
