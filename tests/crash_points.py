"""Crash points: the moments before each change that a command makes to the files below a folder.

The command runs in a forked child with hooks on system calls (Python's audit events, ``os.write`` and ``os.fsync``).
These also cover files that are not written by :mod:`crosschannel.files`. The approach is that of SQLite's own tests,
whose file layer fails at the n-th call.
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
_SECONDS = 120  # after which a hanging child is killed


class ChangeHooks:
    """Hooks that call ``act(number, kind, path)`` before each file change below a folder and halfway through writes.

    Args:
        root: folder whose files are watched.
        act: callback; an OSError that it raises makes the change fail.
    """

    def __init__(self, root: Path, act: Callable[[int, str, Path], None]):
        self.root, self.act, self.count, self.active = os.path.realpath(root), act, 0, True

    def install(self) -> None:
        """Install the hooks in this process. They cannot be removed."""
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
        """Connect to a database and treat each of its statements as a change."""
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
            self.active = False  # changes made by `act` do not count
            try:
                self.act(self.count, kind, Path(os.path.realpath(path)))
            finally:
                self.count += 1
                self.active = True


def run_hooked(work: Callable[[], int], root: Path, act: Callable[[int, str, Path], None]) -> tuple[int, str]:
    """Run a function with hooks in a forked child with working directory ``root``; return exit status and output."""

    def hooked() -> int:
        signal.alarm(_SECONDS)
        os.chdir(root)
        ChangeHooks(root, act).install()
        return work()

    with Forked(hooked) as child:
        return child.wait_and_read()


def states(work: Callable[[], int], root: Path, copies: Path) -> list[str]:
    """Run a function once in a folder and copy the folder to ``COPIES/N`` at each crash point.

    The copies are the states that ``kill -9`` would leave.

    Returns:
        For each copy, the change that followed.
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
    """Run a function repeatedly, each time in a new folder and with another file change failing.

    Args:
        work: function that writes below its working directory, which is the new folder.
        folder: makes the n-th folder.
        note: file for the list of changes, outside these folders.
        every: whether each change fails once; otherwise one change per file, with alternating kinds of change.

    Yields:
        Folder, failed change, exit status and output.
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
    for target in range(len(changes)) if every else _one_per_file(changes):
        root, status, output = attempt(target + 1, target)
        yield root, changes[target], status, output


def _one_per_file(changes: list[str]) -> list[int]:
    """Return the index of one change per file, with alternating kinds.

    File names that differ only in numbers or digests count as one file.
    """
    files: dict[str, dict[str, int]] = {}  # index of the first change of each kind
    renamed_to = ""
    for index, change in reversed(list(enumerate(changes))):
        kind, path = change.split(" ", 1)
        renamed_to = path if kind == "rename" else renamed_to
        path = renamed_to if re.search(PART, path) else path
        files.setdefault(re.sub(r"[0-9a-f]{12,}|\d+", "N", path), {})[kind] = index
    return sorted(list(kinds.values())[i % len(kinds)] for i, kinds in enumerate(files.values()))
