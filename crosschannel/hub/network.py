"""Connection checks, so that downloads without a connection fail at once instead of retrying for a minute."""

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from crosschannel.errors import UserError

_CONNECT_TIMEOUT = 10.0  # seconds until a host without a response counts as unreachable
_PORTS = {"http": 80, "https": 443}


def no_connection(url: str, source: str, reason: object) -> UserError:
    """Create the error for a failed connection, with a message that suggests a remedy.

    Args:
        url: URL of the download.
        source: source string of the weights; empty for any other download.
        reason: reason for the failure.
    """
    command = f"run `crosschannel fetch {source}`" if source else "run this command"
    fallback = ", or pass one of your own runs as --model or --backbone" if source else ""
    host = urlsplit(url).hostname
    return UserError(
        f"no connection? {host} is unreachable ({reason}); {command} on a machine with network access{fallback}"
    )


def connection_problem(url: str) -> str:
    """Return the reason why a web server (or the proxy for it) is unreachable; empty if it is reachable."""
    target = urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (target.hostname or "", target.port or _PORTS.get(target.scheme, 443))
    problems = [f"no response within {_CONNECT_TIMEOUT:g} s"]

    def connect() -> None:
        try:
            socket.create_connection(address, _CONNECT_TIMEOUT).close()
            problems.append("")
        except OSError as error:
            problems.append(error.strerror or str(error))

    thread = threading.Thread(target=connect, daemon=True)  # DNS lookups have no timeout
    thread.start()
    thread.join(_CONNECT_TIMEOUT)
    return problems[-1]


@contextlib.contextmanager
def downloading(url: str, source: str) -> Iterator[bool]:
    """Run a block in which a library downloads a file; without a connection, the download fails at once.

    Args:
        url: URL of the file.
        source: source string of the weights, for the message.

    Yields:
        Whether there is a connection.

    Raises:
        UserError: the block fails and there is no connection; the message suggests a remedy.
    """
    problem, timeout = connection_problem(url), socket.getdefaulttimeout()
    if problem:
        socket.setdefaulttimeout(1)
    try:
        yield not problem
    except Exception as error:
        if problem:
            raise no_connection(url, source, problem) from error
        raise
    finally:
        socket.setdefaulttimeout(timeout)


@contextlib.contextmanager
def downloading_from_hub(source: str) -> Iterator[None]:
    """Run a block in which ``huggingface_hub`` downloads files; without a connection, it only reads its cache."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield
        return
    with downloading(constants.ENDPOINT, source) as is_reachable:
        constants.HF_HUB_OFFLINE = not is_reachable
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = False
