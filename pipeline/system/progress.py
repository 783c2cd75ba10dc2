"""Progress of a stage: a bar on a terminal, occasional plain lines in a log."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time

from pipeline.system.console import plain

tqdm = None
with contextlib.suppress(ImportError):  # without tqdm, lines replace the bar
    from tqdm import tqdm
_BAR_SECONDS = 2.0  # between two looks at the clock of a bar
_LINE_SECONDS = 30.0  # between two lines in a log, so that the log of a night stays readable
_SILENCE_SECONDS = 300.0  # after which a log says that nothing was done: a shard of long videos may take that long
_last_said = ""


def last_said() -> str:
    """The last message of this process."""
    return _last_said


def say(text: str) -> None:
    """Print a message for the user, above any bar; unprintable characters, such as in file names, are escaped.

    A message that cannot be written (to a closed log, or a full disk) is dropped; the work continues.
    """
    global _last_said
    _last_said = text = "\n".join(map(plain, text.split("\n")))
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):
        if tqdm:
            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr)
        sys.stderr.flush()


@functools.cache
def say_once(text: str) -> None:
    """`say`, unless this process has already said exactly this."""
    say(text)


def _on_terminal() -> bool:
    with contextlib.suppress(OSError, ValueError):  # closed
        return sys.stderr is not None and sys.stderr.isatty()
    return False


def duration_text(seconds: float) -> str:
    """A duration in its two largest units, as text: 42 s, 3 min 20 s, 5 h 10 min, 75 days 2 h."""
    seconds = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "days", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            return f"{whole} {'day' if whole == 1 and unit == 'days' else unit} {rest // smaller_size} {smaller}"
    return f"{seconds} s"


class Progress:
    """Counts units of work. A context manager; call `advance(n)` when n more units are done.

    On a terminal it shows a tqdm bar (units/s, time left). Otherwise it prints a line at the start, then at most one
    every _LINE_SECONDS, and one after _SILENCE_SECONDS without any.
    """

    def __init__(self, title: str, total: int, unit: str):
        self.title, self.total, self.unit, self.done = title, total, unit, 0
        self._begun = self._said = time.monotonic()
        self._over = threading.Event()
        self._waiting = threading.Thread(target=self._wait, daemon=True)
        bar = tqdm and _on_terminal()
        self._bar = tqdm(total=total, unit=unit, desc=title, dynamic_ncols=True) if bar else None
        if self._bar is None and total:
            say(f"{title}: {total} {unit}")

    def __enter__(self) -> Progress:
        self._waiting.start()
        return self

    def _wait(self) -> None:
        """After each long silence say how long nothing was done; on a terminal keep the bar's clock running."""
        while not self._over.wait(_BAR_SECONDS if self._bar is not None else _SILENCE_SECONDS):
            if self._bar is not None:
                self._bar.refresh()
            elif (quiet := time.monotonic() - self._said) >= _SILENCE_SECONDS:
                count = f"{self.title}: {self.done}/{self.total} {self.unit}"
                say(f"{count}, waiting for the next for {duration_text(quiet)}")

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count n more units as done; `note` (such as a loss) is shown beside the count."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
            if note:
                self._bar.set_postfix_str(note, refresh=False)
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            say(self._line(note))

    def _line(self, note: str) -> str:
        count, rate = f"{self.title}: {self.done}/{self.total} {self.unit}", self.rate()
        pace = f"{rate:.1f} {self.unit}/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s each"
        left = f", {duration_text((self.total - self.done) / rate)} left" if rate else ""
        return f"{count}, {pace}{left} {note}".rstrip()

    def rate(self) -> float:
        """Mean units per second so far."""
        return self.done / max(time.monotonic() - self._begun, 1e-9)

    def __exit__(self, kind, error, trace) -> None:
        self._over.set()
        self._waiting.join()
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self.done:
            seconds = time.monotonic() - self._begun
            say(f"{self.title}: {self.done} {self.unit} in {seconds:.1f} s ({self.rate():.1f} {self.unit}/s)")
