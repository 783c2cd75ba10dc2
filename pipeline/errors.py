"""The errors that are told apart by their kind: whose fault it is decides what goes on."""


class ClipError(ValueError):
    """What one clip cannot do. It is recorded as failed with this reason, and the run goes on."""


class DamagedStore(RuntimeError):
    """The bytes of a clip are not those that were written: no fault of its video, and no reason to record."""


class StageFailed(RuntimeError):
    """A stage could not be finished; the message says why and what to do."""
