"""Servers for browser tests, and waiting for the state of a page."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(*arguments, port: int) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run ``python -m`` with these arguments; yield the address and the process once the server answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(1500):
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None
                time.sleep(0.1)
        yield address, process
    finally:
        process.kill()
        process.wait()


def until(page, condition: str, seconds: float = 30) -> None:
    """Wait until a JavaScript expression is true in a page.

    Playwright's own waiting evaluates strings in the page, which our content security policy forbids.
    """
    from playwright.sync_api import Error

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(Error):  # the page is navigating
            if page.evaluate(condition):
                return
        page.wait_for_timeout(40)
    raise AssertionError(f"not true within {seconds} s: {condition}")
