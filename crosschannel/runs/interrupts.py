"""SIGTERM, SIGUSR2 and Ctrl-C set a flag; the loop acts on it at the next step boundary."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import TracebackType

EXIT_CODE = 75  # sysexits.h: EX_TEMPFAIL, "try again later"
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Interrupted(Exception):
    """A signal, or an interrupt on another rank, stopped the run. Progress is saved; the same command resumes it."""


class InterruptFlag:
    """Context manager that records a signal's name in ``name``. An ``Interrupted`` raised inside without arguments gets
    this name. A second Ctrl-C raises KeyboardInterrupt.

    Args:
        last: nothing of worth follows in this process: signals that come later are ignored, so that its exit code stays
            what it is. Otherwise they mean again what they meant before.
    """

    def __init__(self, last: bool = False) -> None:
        self.name: str | None = None
        self._last = last
        self._previous: dict[int, object] = {}

    @property
    def is_set(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "InterruptFlag":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._set)
        return self

    def __exit__(self, _kind: type | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self._last else handler)
        self._previous.clear()
        if isinstance(error, Interrupted) and not error.args:
            raise Interrupted(self.name or "another rank") from None

    def _set(self, number: int, _frame) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def restore_handlers() -> Iterator[None]:
    """Put the handlers of the signals back afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
