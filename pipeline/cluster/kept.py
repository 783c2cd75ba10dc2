"""Workers that outlive the stage that started them, for a few seconds: most often the next stage wants the same.

Starting workers takes a second, as long as a whole stage of a small dataset. They are not kept longer, so that no idle
process remains during a training.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from typing import NamedTuple

from pipeline.cluster.connect import connect
from pipeline.specs import ClusterSpec

LINGER_SECONDS = 3.0


class ConnectionKey(NamedTuple):
    """Which workers: those of two stages are exchangeable if all of this is equal."""

    spec: ClusterSpec
    workers: int
    devices: tuple[str, ...]
    at_once: int


class Connection:
    """Connected workers, and what must be closed after them."""

    def __init__(self, key: ConnectionKey):
        self.key, self.pid = key, os.getpid()
        self._stack = contextlib.ExitStack()
        try:
            self.client = connect(*key, self._stack)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Disconnect, and end the workers that were started. In a forked child do nothing: they are the parent's."""
        if self.pid == os.getpid():
            self._stack.close()


class ConnectionCache:
    """The workers of the stage that has just ended."""

    def __init__(self):
        self._lock, self._connection = threading.Lock(), None
        self._timer = threading.Timer(0, lambda: None)
        atexit.register(self.close)

    def take(self, key: ConnectionKey) -> Connection | None:
        """Return the kept workers if they are the wanted ones; else close them and return None."""
        connection = self._release()
        if connection is not None and (connection.key, connection.pid) != (key, os.getpid()):
            connection.close()
            return None
        return connection

    def keep(self, connection: Connection) -> None:
        """Keep these workers for LINGER_SECONDS."""
        self.close()
        with self._lock:
            self._connection = connection
            self._timer = threading.Timer(LINGER_SECONDS, self._close_if, [connection])
            self._timer.daemon = True
            self._timer.start()
        atexit.unregister(self.close)  # what is registered last runs first: this must run before distributed's own
        atexit.register(self.close)

    def _close_if(self, connection: Connection) -> None:
        with self._lock:
            if self._connection is not connection:  # another stage has taken them meanwhile
                return
            self._connection = None
        connection.close()

    def close(self) -> None:
        """Close the kept workers, if there are any."""
        if (connection := self._release()) is not None:
            connection.close()
        elif self._timer.is_alive() and self._timer is not threading.current_thread():
            self._timer.join()  # the timer's thread is closing them

    def _release(self) -> Connection | None:
        with self._lock:
            self._timer.cancel()
            connection, self._connection = self._connection, None
        return connection


CACHE = ConnectionCache()
