"""The progress bar of commands that go through a list once."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def stderr_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def progress(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """The items, with a bar in a terminal."""
    return iter(
        track(items, description, total, console=stderr_console(), disable=not sys.stderr.isatty(), transient=True)
    )
