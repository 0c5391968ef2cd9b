"""Terminal output: consoles that escape control characters, fault-tolerant standard streams, and progress bars."""

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


# Control characters except tab and newline, characters that reorder or hide text, and lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def escape_control(text: object) -> str:
    """Escape characters that control a terminal. File names and library messages may contain any character."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], str(text))


class _PlainConsole(Console):
    """Console that prints strings, table cells and progress labels literally, without markup or control characters."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_control(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escape_control(segment.text), segment.style)


def stderr_console(quiet: bool = False) -> Console:
    """Return a console for status messages, warnings and progress."""
    return _PlainConsole(stderr=True, quiet=quiet, soft_wrap=True)


def stdout_console(**options: Any) -> Console:
    """Return a console for the results that a command prints."""
    return _PlainConsole(**{"soft_wrap": True, **options})


def table(rows: Mapping[str, Sequence[str | Text]], header: Sequence[str]) -> Table:
    """Build a table from cells by row label. The first column of ``header`` contains the labels."""
    result = Table()
    for index, column in enumerate(header):
        result.add_column(column, justify="right" if index else "left")
    for label, cells in rows.items():
        result.add_row(label, *cells)
    return result


def as_text(rows: Mapping[str, Sequence[str]], header: Sequence[str]) -> str:
    """Format rows like :func:`table`, as plain text in aligned columns."""
    lines = [header, *([label, *cells] for label, cells in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        " ".join([label.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip() for label, *cells in lines
    )


def print_stderr(text: str) -> None:
    """Print a line on stderr, with control characters escaped."""
    print(escape_control(text), file=sys.stderr)


def progress(items: Iterable[T], description: str, total: int, console: Console | None = None) -> Iterator[T]:
    """Iterate over items with a progress bar, unless the console is quiet or not a terminal."""
    console = console or stderr_console()
    is_disabled = console.quiet or not console.is_terminal
    return iter(track(items, description, total, console=console, disable=is_disabled, transient=True))


@contextlib.contextmanager
def progress_in_bytes(description: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a progress bar for a transfer if stderr is a terminal.

    Args:
        description: label of the bar.
        total: size in bytes, or 0 if it is unknown.
        done: number of bytes already transferred.

    Yields:
        a function to call with the number of bytes of each chunk.
    """
    console = stderr_console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(description, total=total or None, completed=done)
        yield lambda count: bar.advance(task, count)


class _TolerantStream:
    """Text stream that ignores write errors, so that a run continues if its log cannot be written."""

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
    """Open missing standard streams, and ignore write errors on stderr.

    If a process starts without one of the streams, the next file that it opens gets the descriptor of that stream, and
    terminal output would be written into the file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, i.e. this one
    original = sys.stdout, sys.stderr
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = _TolerantStream(sys.stderr or open(2, "w", closefd=False))  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout, sys.stderr = original
