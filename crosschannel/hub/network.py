"""Whether a host can be reached at all: without a network, downloads end at once instead of retrying for a minute."""

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from crosschannel.errors import UserError

_PATIENCE = 10.0  # seconds until a host that neither refuses nor answers counts as unreachable
_PORTS = {"http": 80, "https": 443}


def no_connection(url: str, source: str, reason: object) -> UserError:
    """The error that nothing can be downloaded, with what to do instead.

    Args:
        url: what is to be downloaded.
        source: whose weights it is; empty for anything else.
        reason: why not.
    """
    fetch = f"run `crosschannel fetch {source}`" if source else "run this command"
    own = ", or use --model (--backbone) with a run of your own" if source else ""
    host = urlsplit(url).hostname
    return UserError(f"no connection? {host} cannot be reached ({reason}): {fetch} where there is one{own}")


def connection_problem(url: str) -> str:
    """Why no connection to a web server, or to the proxy before it, can be made; empty if one can."""
    target = urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (target.hostname or "", target.port or _PORTS.get(target.scheme, 443))
    problems = [f"no answer in {_PATIENCE:g} s"]

    def connect() -> None:
        try:
            socket.create_connection(address, _PATIENCE).close()
            problems.append("")
        except OSError as error:
            problems.append(error.strerror or str(error))

    attempt = threading.Thread(target=connect, daemon=True)  # looking up a name knows no timeout
    attempt.start()
    attempt.join(_PATIENCE)
    return problems[-1]


@contextlib.contextmanager
def downloading(url: str, source: str) -> Iterator[bool]:
    """Let a library download something, or fail at once if no connection can be made.

    Args:
        url: where it is.
        source: whose weights it is, for the message.

    Yields:
        whether there is a connection.

    Raises:
        UserError: the block fails and there is none; it says what to do instead.
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
    """The same for huggingface_hub, which looks into its cache alone if there is no connection."""
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
