"""SIGTERM, SIGUSR2 and Ctrl-C set a flag; the loop acts on it at the next step boundary."""

import signal
import threading

EXIT_CODE = 75  # sysexits.h: EX_TEMPFAIL, "try again later"
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Interrupted(Exception):
    """The run was asked to stop, has saved what it can, and will go on when the same command is started again."""


class InterruptFlag:
    """A context in which the signals set ``name`` to the signal's name. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "InterruptFlag":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._set)
        return self

    def __exit__(self, *_exc) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _set(self, number: int, _frame) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
