"""Interrupt handling: SIGTERM, SIGUSR2 and Ctrl-C set a flag, which the training loop checks between steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import TracebackType

EXIT_CODE = 75  # sysexits.h: EX_TEMPFAIL, "try again later"
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Interrupted(Exception):
    """A signal on this or another rank stopped the run. Progress is saved, and the same command resumes it."""


class InterruptFlag:
    """Context manager that stores the name of a received signal in ``name``.

    If the block raises ``Interrupted`` without arguments, the exception gets this name. A second Ctrl-C raises
    KeyboardInterrupt.

    Args:
        last: whether to ignore signals after the block, to preserve the exit code of a process that is about to end.
            By default the previous handlers are restored.
    """

    def __init__(self, last: bool = False) -> None:
        self.name: str | None = None
        self._last = last
        self._previous_handlers: dict[int, object] = {}

    @property
    def is_set(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "InterruptFlag":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous_handlers[number] = signal.signal(number, self._set)
        return self

    def __exit__(self, _kind: type | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, signal.SIG_IGN if self._last else handler)
        self._previous_handlers.clear()
        if isinstance(error, Interrupted) and not error.args:
            raise Interrupted(self.name or "another rank") from None

    def _set(self, number: int, _frame) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def restore_handlers() -> Iterator[None]:
    """Restore the current signal handlers at the end of the block."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
