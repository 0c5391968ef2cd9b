"""Crash points: every moment at which a command changes the files below a folder.

A forked child runs the command under hooks on the operating system's calls (Python's audit events, ``os.write`` and
``os.fsync``), so that files that are written past :mod:`crosschannel.files` count too. SQLite is tested the same way,
by a layer below its files that fails at the n-th call.
"""

import errno
import itertools
import os
import re
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FAILURES = {"open": errno.ENOSPC, "write": errno.ENOSPC, "mkdir": errno.ENOSPC, "sync": errno.EIO, "rename": errno.EIO}
_SECONDS = 120  # a child that hangs ends then


class Moments:
    """Calls ``act(number, kind, path)`` before each change to a file below a folder, and after half of each write.

    Args:
        root: the folder.
        act: may raise an OSError to make the change fail.
    """

    def __init__(self, root: Path, act: Callable[[int, str, Path], None]):
        self.root, self.act, self.count, self.active = os.path.realpath(root), act, 0, True

    def install(self) -> None:
        """Hook this process; there is no way back."""
        self._write, self._fsync, self._connect = os.write, os.fsync, sqlite3.connect
        os.write, os.fsync, sqlite3.connect = self.write, self.fsync, self.connect
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        if event == "open" and arguments[2] & WRITES:
            self.reach("open", arguments[0])
        elif event == "os.rename":
            self.reach("rename", arguments[1], arguments[3])
        elif event in ("os.remove", "os.rmdir"):
            self.reach("remove", arguments[0], arguments[1])
        elif event == "os.mkdir":
            self.reach("mkdir", arguments[0], arguments[2])

    def write(self, handle: int, data: bytes) -> int:
        path = Path(f"/proc/self/fd/{handle}")
        self.reach("write", path)
        half = len(data) // 2
        if half and self.is_below(path):
            self._write(handle, data[:half])
            self.reach("write", path)
            return half + self._write(handle, data[half:])
        return self._write(handle, data)

    def fsync(self, handle: int) -> None:
        self.reach("sync", Path(f"/proc/self/fd/{handle}"))
        self._fsync(handle)

    def connect(self, database: Path, **options: object) -> sqlite3.Connection:
        """Connect to a database whose every statement is a moment."""
        connection = self._connect(database, **options)
        connection.set_trace_callback(lambda _statement: self.reach("sql", str(database)))
        return connection

    def is_below(self, path: object) -> bool:
        return f"{os.path.realpath(path)}/".startswith(f"{self.root}/")

    def reach(self, kind: str, path: object, folder: int = -1) -> None:
        if not self.active or isinstance(path, int):
            return
        path = Path(f"/proc/self/fd/{folder}", os.fsdecode(path)) if folder not in (-1, None) else os.fsdecode(path)
        if self.is_below(path):
            self.active = False  # what `act` does is not a moment
            try:
                self.act(self.count, kind, Path(os.path.realpath(path)))
            finally:
                self.count += 1
                self.active = True


def run_in_child(work: Callable[[], int], log: Path) -> int:
    """Run a function in a forked child, its output in a file; return its exit status (minus a signal's number)."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            signal.alarm(_SECONDS)
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def states(work: Callable[[], int], root: Path, copies: Path) -> list[str]:
    """Run a function once in a folder and copy that at each moment to ``COPIES/N``: what ``kill -9`` leaves there.

    Returns:
        For each copy, the change that came next.
    """

    def copy(number: int, kind: str, path: Path) -> None:
        shutil.copytree(root, copies / str(number), symlinks=True)
        with (copies / "log").open("a") as log:
            log.write(f"{kind} {path.relative_to(os.path.realpath(root))}\n")

    def child() -> int:
        os.chdir(root)
        Moments(root, copy).install()
        return work()

    copies.mkdir()
    status = run_in_child(child, copies / "output")
    assert status == 0, (copies / "output").read_text()
    return (copies / "log").read_text().splitlines()


def failures(
    work: Callable[[], int], folder: Callable[[int], Path], log: Path, every: bool
) -> Iterator[tuple[Path, str, int]]:
    """Run a function again and again, each time with another change of a file refused, in a folder of its own.

    Args:
        work: works below the working directory, which is that folder.
        folder: makes the n-th folder.
        log: where the child's output goes.
        every: all changes; otherwise the first one of each kind to each file, whatever numbers are in its name.

    Yields:
        the folder, the change, and the exit status.
    """
    changes: list[str] = []

    def attempt(number: int, target: int | None) -> tuple[Path, int]:
        root, note, count = folder(number), log.with_suffix(".changes"), itertools.count()

        def fail(_number: int, kind: str, path: Path) -> None:
            if kind not in FAILURES:
                return
            if target is None:
                with note.open("a") as file:
                    file.write(f"{kind} {path.relative_to(os.path.realpath(root))}\n")
            elif next(count) == target:
                raise OSError(FAILURES[kind], os.strerror(FAILURES[kind]), str(path))

        def child() -> int:
            os.chdir(root)
            Moments(root, fail).install()
            return work()

        status = run_in_child(child, log)
        if target is None:
            changes.extend(note.read_text().splitlines())
        return root, status

    _, status = attempt(0, None)
    assert status == 0, log.read_text()
    kinds = [re.sub(r"[0-9a-f]{12,}|\d+", "N", change) for change in changes]
    for target, change in enumerate(changes):
        if every or kinds.index(kinds[target]) == target:
            root, status = attempt(target + 1, target)
            yield root, change, status
