"""Pages in a real browser: servers of ours, and waiting for what a page says."""

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
def served(*words, port: int) -> Iterator[tuple[str, subprocess.Popen]]:
    """A Python program that serves, once it answers: its address, and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, words)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
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


def until(page, holds: str, seconds: float = 30) -> None:
    """Wait until an expression holds in a page. (Playwright's own waiting evaluates text in the page, which our pages'
    policies forbid.)"""
    from playwright.sync_api import Error

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(Error):  # the page is about to be another one
            if page.evaluate(holds):
                return
        page.wait_for_timeout(40)
    raise AssertionError(f"never: {holds}")
