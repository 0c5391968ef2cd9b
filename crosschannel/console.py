"""Where commands write, and the progress bar of those that go through a list once."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def stderr_console(quiet: bool = False) -> Console:
    """For what a person should know."""
    return Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)


def stdout_console() -> Console:
    """For what a command was asked for."""
    return Console(highlight=False, soft_wrap=True)


def progress(items: Iterable[T], description: str, total: int, console: Console | None = None) -> Iterator[T]:
    """The items, with a bar in a terminal that is not told to be quiet."""
    console = console or stderr_console()
    silent = console.quiet or not console.is_terminal
    return iter(track(items, description, total, console=console, disable=silent, transient=True))
