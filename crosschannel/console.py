"""Where commands write: consoles whose output is harmless to a terminal, streams whose failure ends nothing, and the
progress bar of commands that go through a list once."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn, track
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

T = TypeVar("T")


# Control characters but tab and newline, marks that reorder or hide text, and halves of characters.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def escape_control(text: object) -> str:
    """Text in which nothing steers a terminal. File names, and what other libraries say, come from anywhere."""
    return _STEERING.sub(lambda match: ascii(match[0])[1:-1], str(text))


class _PlainConsole(Console):
    """A console that prints strings, table cells and progress labels literally, without markup or control codes."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_control(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escape_control(segment.text), segment.style)


def stderr_console(quiet: bool = False) -> Console:
    """For what a person should know."""
    return _PlainConsole(stderr=True, quiet=quiet, soft_wrap=True)


def stdout_console(**options: Any) -> Console:
    """For what a command was asked for."""
    return _PlainConsole(**{"soft_wrap": True, **options})


def table(rows: Mapping[str, Sequence[str | Text]], head: Sequence[str]) -> Table:
    """Cells by the label of their row; the first column of ``head`` is the labels'."""
    made = Table()
    for number, column in enumerate(head):
        made.add_column(column, justify="right" if number else "left")
    for label, cells in rows.items():
        made.add_row(label, *cells)
    return made


def as_text(rows: Mapping[str, Sequence[str]], head: Sequence[str]) -> str:
    """The cells of :func:`table` as plain text in columns."""
    lines = [head, *([label, *cells] for label, cells in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        " ".join([label.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip() for label, *cells in lines
    )


def print_stderr(text: str) -> None:
    """A line on stderr."""
    print(escape_control(text), file=sys.stderr)


def progress(items: Iterable[T], description: str, total: int, console: Console | None = None) -> Iterator[T]:
    """The items, with a bar in a terminal that is not told to be quiet."""
    console = console or stderr_console()
    silent = console.quiet or not console.is_terminal
    return iter(track(items, description, total, console=console, disable=silent, transient=True))


@contextlib.contextmanager
def progress_in_bytes(description: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar of what is transferred, in a terminal.

    Args:
        description: of what.
        total: bytes; 0 where that is not known.
        done: bytes that are there already.

    Returns:
        to be called with the number of every further bytes.
    """
    console = stderr_console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(description, total=total or None, completed=done)
        yield lambda count: bar.advance(task, count)


class _Tolerant:
    """A text stream that writes what it can: a log that nobody can read any more is no reason to stop."""

    def __init__(self, stream: io.TextIOBase):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def open_streams() -> Iterator[None]:
    """Make sure that there are standard streams, and that a failing stderr ends nothing.

    Where a process is started without one of them, the next file that it opened would take its place, and what is meant
    for a terminal would be written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = _Tolerant(sys.stderr or open(2, "w", closefd=False))  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
