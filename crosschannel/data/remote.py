"""Files behind http(s): ranges of bytes over kept-alive connections, patient with a server that comes and goes."""

import os
import time

import urllib3

from crosschannel.errors import UserError

PATIENCE = 300.0  # seconds that a server may be away
_TIMEOUT = urllib3.Timeout(connect=10, read=60)
_pools: dict[int, urllib3.PoolManager] = {}  # by process: connections do not survive a fork


def is_remote(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def read_range(url: str, offset: int, size: int, patience: float | None = None) -> bytes:
    """``size`` bytes of a remote file from ``offset``.

    Raises:
        UserError: the server stayed away, has no such file, or cannot send parts of one.
    """
    headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
    response = _get(url, headers, patience)
    if response.status == 200:
        raise UserError(f"the server of {url} sends whole files only; shards need one that honours Range requests")
    if response.status != 206:
        raise UserError(f"{url} could not be read: the server answered {response.status}")
    return response.data


def read_file(url: str, patience: float | None = None) -> bytes | None:
    """A whole remote file; None where the server has none.

    Raises:
        UserError: the server stayed away, or refuses.
    """
    response = _get(url, {}, patience)
    if response.status == 404:
        return None
    if response.status != 200:
        raise UserError(f"{url} could not be read: the server answered {response.status}")
    return response.data


def file_size(url: str, patience: float | None = None) -> int:
    """Bytes of a remote file.

    Raises:
        UserError: it is not there, or the server does not say.
    """
    response = _get(url, {}, patience, "HEAD")
    if response.status != 200 or not response.headers.get("Content-Length", "").isdecimal():
        raise UserError(f"no shard {url}: the server answered {response.status}")
    return int(response.headers["Content-Length"])


def _get(url: str, headers: dict[str, str], patience: float | None, method: str = "GET") -> urllib3.BaseHTTPResponse:
    """Ask until there is an answer other than "busy" (429, 5xx), with growing pauses."""
    pool = _pools.get(os.getpid())
    if pool is None:
        _pools.clear()
        pool = _pools[os.getpid()] = urllib3.PoolManager(maxsize=32, timeout=_TIMEOUT, retries=False)
    patience = PATIENCE if patience is None else patience
    until, pause = time.monotonic() + patience, 0.1
    while True:
        try:
            response = pool.request(method, url, headers=headers, redirect=True, retries=urllib3.Retry(0, redirect=5))
            if response.status != 429 and response.status < 500:
                return response
            problem = f"it answers {response.status}"
        except urllib3.exceptions.HTTPError as error:  # refused, reset, timed out, cut off in the middle
            problem = str(getattr(error, "reason", None) or error)
        if time.monotonic() + pause > until:
            raise UserError(f"the server of {url} was away for {patience:.0f} s: {problem}")
        time.sleep(pause)
        pause = min(10.0, 2 * pause)
