"""Byte-range reads over http(s) with libcurl.

Requests are sent concurrently over persistent connections, and retried while a server is unavailable.
"""

import io
import os
import time
import warnings
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from crosschannel.errors import UserError

PATIENCE = 300.0  # seconds for which a server may be unavailable
_CONNECTIONS = 16


class Range(NamedTuple):
    """A byte range of a remote file; a ``size`` of 0 means the entire file."""

    url: str
    offset: int = 0
    size: int = 0


def is_remote(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def read_ranges(ranges: Sequence[Range], patience: float | None = None) -> list[bytes]:
    """Read byte ranges of remote files concurrently.

    Raises:
        UserError: a server is unavailable for ``patience`` seconds, has no such file, or does not support ranges.
    """
    responses = _request(ranges, patience)
    for byte_range, (status, _) in zip(ranges, responses, strict=True):
        if status == 200 and byte_range.size:
            raise UserError(f"the server of {byte_range.url} does not support Range requests, which shards require")
        if status not in (200, 206):
            raise UserError(f"could not read {byte_range.url}: the server returned status {status}")
    return [data for _, data in responses]


def read_file(url: str, patience: float | None = None) -> bytes | None:
    """Read an entire remote file; return None if the server does not have it.

    Raises:
        UserError: the server is unavailable for ``patience`` seconds, or refuses the request.
    """
    status, data = _request([Range(url)], patience)[0]
    if status not in (200, 404):
        raise UserError(f"could not read {url}: the server returned status {status}")
    return data if status == 200 else None


def _request(ranges: Sequence[Range], patience: float | None) -> list[tuple[int, bytes]]:
    """Return (status, body) of every request.

    Requests that fail or return status 429 or 5xx are retried with exponential backoff.

    Raises:
        UserError: a server is unavailable for ``patience`` seconds.
    """
    responses: dict[int, tuple[int, bytes]] = {}
    patience = PATIENCE if patience is None else patience
    deadline, pause = time.monotonic() + patience, 0.1
    while True:
        pending = [i for i in range(len(ranges)) if i not in responses]
        problem = ""
        for i, (status, data, error) in zip(pending, _client().run([ranges[i] for i in pending]), strict=True):
            if error or status == 429 or status >= 500:
                problem = error or f"status {status}"
            else:
                responses[i] = (status, data)
        if not problem:
            return [responses[i] for i in range(len(ranges))]
        if len(pending) > len(ranges) - len(responses):  # some requests succeeded: the server is available
            deadline, pause = time.monotonic() + patience, 0.1
        if pause > 2:
            warnings.warn(f"waiting for {ranges[0].url.partition('?')[0]}: {problem}", stacklevel=2)
        if time.monotonic() + pause > deadline:
            url = next(ranges[i].url for i in pending if i not in responses)
            raise UserError(f"the server of {url} was unavailable for {patience:.0f} s: {problem}")
        time.sleep(pause)
        pause = min(10.0, 2 * pause)


class _Client:
    """libcurl's multi interface with a fixed number of connections."""

    def __init__(self) -> None:
        try:
            import pycurl
        except ImportError:
            raise UserError("shards over http need pycurl: pip install 'crosschannel[http]'") from None
        self._curl, self._multi, self._idle_handles = pycurl, pycurl.CurlMulti(), []
        self._multi.setopt(pycurl.M_MAXCONNECTS, _CONNECTIONS)
        for _ in range(_CONNECTIONS):
            handle = pycurl.Curl()
            for option, value in (("FOLLOWLOCATION", 1), ("MAXREDIRS", 5), ("NOSIGNAL", 1), ("CONNECTTIMEOUT", 10)):
                handle.setopt(getattr(pycurl, option), value)
            handle.setopt(pycurl.LOW_SPEED_LIMIT, 1)  # a connection is lost after a minute without data
            handle.setopt(pycurl.LOW_SPEED_TIME, 60)
            self._idle_handles.append(handle)

    def run(self, ranges: Sequence[Range]) -> list[tuple[int, bytes, str]]:
        """Return (status, body, libcurl's error message or "") of every request."""
        curl, results = self._curl, {}
        queue = deque(enumerate(ranges))
        active: dict[object, tuple[int, io.BytesIO]] = {}
        while queue or active:
            while queue and self._idle_handles:
                index, byte_range = queue.popleft()
                handle, body = self._idle_handles.pop(), io.BytesIO()
                handle.setopt(curl.URL, byte_range.url)
                handle.setopt(curl.WRITEDATA, body)
                if byte_range.size:
                    handle.setopt(curl.RANGE, f"{byte_range.offset}-{byte_range.offset + byte_range.size - 1}")
                else:
                    handle.unsetopt(curl.RANGE)
                self._multi.add_handle(handle)
                active[handle] = (index, body)
            self._multi.perform()
            _, done, failed = self._multi.info_read()
            for handle, message in [*((h, "") for h in done), *((h, text) for h, _, text in failed)]:
                index, body = active.pop(handle)
                results[index] = (handle.getinfo(curl.RESPONSE_CODE), body.getvalue(), message)
                self._multi.remove_handle(handle)
                self._idle_handles.append(handle)
            if active and not done and not failed:
                self._multi.select(1.0)
        return [results[i] for i in range(len(ranges))]


_clients: dict[int, _Client] = {}  # by process ID: connections do not survive a fork


def _client() -> _Client:
    if os.getpid() not in _clients:
        _clients.clear()
        _clients[os.getpid()] = _Client()
    return _clients[os.getpid()]
