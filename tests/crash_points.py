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
from collections.abc import Callable, Iterator
from pathlib import Path

from forked import Forked

from crosschannel.files import PART

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


def run_hooked(work: Callable[[], int], root: Path, act: Callable[[int, str, Path], None]) -> tuple[int, str]:
    """Run a function in a folder, in a forked child with hooks; return its exit status and output."""

    def hooked() -> int:
        signal.alarm(_SECONDS)
        os.chdir(root)
        Moments(root, act).install()
        return work()

    with Forked(hooked) as child:
        return child.wait_and_read()


def states(work: Callable[[], int], root: Path, copies: Path) -> list[str]:
    """Run a function once in a folder and copy that at each moment to ``COPIES/N``: what ``kill -9`` leaves there.

    Returns:
        For each copy, the change that came next.
    """

    def copy(number: int, kind: str, path: Path) -> None:
        shutil.copytree(root, copies / str(number), symlinks=True)
        with (copies / "log").open("a") as log:
            log.write(f"{kind} {path.relative_to(os.path.realpath(root))}\n")

    copies.mkdir()
    status, output = run_hooked(work, root, copy)
    assert status == 0, output
    return (copies / "log").read_text().splitlines()


def failures(
    work: Callable[[], int], folder: Callable[[int], Path], note: Path, every: bool
) -> Iterator[tuple[Path, str, int, str]]:
    """Run a function again and again, each time with another change of a file refused, in a folder of its own.

    Args:
        work: works below the working directory, which is that folder.
        folder: makes the n-th folder.
        note: a file for the list of changes, outside these folders.
        every: all changes; otherwise one to each file, of one kind after another.

    Yields:
        the folder, the change, the exit status and the output.
    """
    changes: list[str] = []

    def attempt(number: int, target: int | None) -> tuple[Path, int, str]:
        root, count = folder(number), itertools.count()

        def fail(_number: int, kind: str, path: Path) -> None:
            if kind not in FAILURES:
                return
            if target is None:
                with note.open("a") as file:
                    file.write(f"{kind} {path.relative_to(os.path.realpath(root))}\n")
            elif next(count) == target:
                raise OSError(FAILURES[kind], os.strerror(FAILURES[kind]), str(path))

        status, output = run_hooked(work, root, fail)
        if target is None:
            changes.extend(note.read_text().splitlines())
        return root, status, output

    _, status, output = attempt(0, None)
    assert status == 0, output
    for target in range(len(changes)) if every else _one_of_each_file(changes):
        root, status, output = attempt(target + 1, target)
        yield root, changes[target], status, output


def _one_of_each_file(changes: list[str]) -> list[int]:
    """Numbers of changes, one to each file, whatever numbers are in its name; the kinds take turns."""
    files: dict[str, dict[str, int]] = {}  # the first change of each kind
    becomes = ""
    for number, change in reversed(list(enumerate(changes))):
        kind, path = change.split(" ", 1)
        becomes = path if kind == "rename" else becomes
        path = becomes if re.search(PART, path) else path
        files.setdefault(re.sub(r"[0-9a-f]{12,}|\d+", "N", path), {})[kind] = number
    chosen = (list(kinds.values())[turn % len(kinds)] for turn, kinds in enumerate(files.values()))
    return sorted(chosen)
