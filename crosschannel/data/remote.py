"""Files behind http(s), by libcurl: ranges of bytes, many at a time over kept-alive connections, patient with a server
that comes and goes."""

import io
import os
import time
import warnings
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from crosschannel.errors import UserError

PATIENCE = 300.0  # seconds that a server may be away
_CONNECTIONS = 16


class Range(NamedTuple):
    """Bytes of a remote file; a ``size`` of 0 is the whole of it."""

    url: str
    offset: int = 0
    size: int = 0


def is_remote(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def read_ranges(ranges: Sequence[Range], patience: float | None = None) -> list[bytes]:
    """Parts of remote files, asked for all at once.

    Raises:
        UserError: a server stayed away for ``patience`` seconds, has no such file, or cannot send parts of one.
    """
    answers = _ask(ranges, patience)
    for part, (status, _) in zip(ranges, answers, strict=True):
        if status == 200 and part.size:
            raise UserError(f"the server of {part.url} sends whole files only; shards need Range requests")
        if status not in (200, 206):
            raise UserError(f"{part.url} could not be read: the server answered {status}")
    return [data for _, data in answers]


def read_file(url: str, patience: float | None = None) -> bytes | None:
    """A whole remote file; None where the server has none.

    Raises:
        UserError: the server stayed away, or refuses.
    """
    status, data = _ask([Range(url)], patience)[0]
    if status not in (200, 404):
        raise UserError(f"{url} could not be read: the server answered {status}")
    return data if status == 200 else None


def _ask(ranges: Sequence[Range], patience: float | None) -> list[tuple[int, bytes]]:
    """(status, body) of every request, once there is an answer other than "busy" (429, 5xx); growing pauses between."""
    answers: dict[int, tuple[int, bytes]] = {}
    patience = PATIENCE if patience is None else patience
    until, pause = time.monotonic() + patience, 0.1
    while True:
        open_ = [i for i in range(len(ranges)) if i not in answers]
        problem = ""
        for i, (status, data, error) in zip(open_, _client().run([ranges[i] for i in open_]), strict=True):
            if error or status == 429 or status >= 500:
                problem = error or f"it answers {status}"
            else:
                answers[i] = (status, data)
        if not problem:
            return [answers[i] for i in range(len(ranges))]
        if len(open_) > len(ranges) - len(answers):  # some came through: it is there
            until, pause = time.monotonic() + patience, 0.1
        if pause > 2:
            warnings.warn(f"waiting for {ranges[0].url.partition('?')[0]}: {problem}", stacklevel=2)
        if time.monotonic() + pause > until:
            url = next(ranges[i].url for i in open_ if i not in answers)
            raise UserError(f"the server of {url} was away for {patience:.0f} s: {problem}")
        time.sleep(pause)
        pause = min(10.0, 2 * pause)


class _Client:
    """libcurl's multi interface over a fixed set of handles."""

    def __init__(self) -> None:
        try:
            import pycurl
        except ImportError:
            raise UserError("shards over http need pycurl: pip install 'crosschannel[http]'") from None
        self._curl, self._multi, self._idle = pycurl, pycurl.CurlMulti(), []
        self._multi.setopt(pycurl.M_MAXCONNECTS, _CONNECTIONS)
        for _ in range(_CONNECTIONS):
            handle = pycurl.Curl()
            for option, value in (("FOLLOWLOCATION", 1), ("MAXREDIRS", 5), ("NOSIGNAL", 1), ("CONNECTTIMEOUT", 10)):
                handle.setopt(getattr(pycurl, option), value)
            handle.setopt(pycurl.LOW_SPEED_LIMIT, 1)  # a minute without a byte is a lost connection
            handle.setopt(pycurl.LOW_SPEED_TIME, 60)
            self._idle.append(handle)

    def run(self, ranges: Sequence[Range]) -> list[tuple[int, bytes, str]]:
        """(status, body, libcurl's complaint or "") of every request."""
        curl, results = self._curl, {}
        waiting = deque(enumerate(ranges))
        under_way: dict[object, tuple[int, io.BytesIO]] = {}
        while waiting or under_way:
            while waiting and self._idle:
                number, part = waiting.popleft()
                handle, body = self._idle.pop(), io.BytesIO()
                handle.setopt(curl.URL, part.url)
                handle.setopt(curl.WRITEDATA, body)
                if part.size:
                    handle.setopt(curl.RANGE, f"{part.offset}-{part.offset + part.size - 1}")
                else:
                    handle.unsetopt(curl.RANGE)
                self._multi.add_handle(handle)
                under_way[handle] = (number, body)
            self._multi.perform()
            _, done, failed = self._multi.info_read()
            for handle, problem in [*((h, "") for h in done), *((h, text) for h, _, text in failed)]:
                number, body = under_way.pop(handle)
                results[number] = (handle.getinfo(curl.RESPONSE_CODE), body.getvalue(), problem)
                self._multi.remove_handle(handle)
                self._idle.append(handle)
            if under_way and not done and not failed:
                self._multi.select(1.0)
        return [results[i] for i in range(len(ranges))]


_clients: dict[int, _Client] = {}  # by process: connections do not survive a fork


def _client() -> _Client:
    if os.getpid() not in _clients:
        _clients.clear()
        _clients[os.getpid()] = _Client()
    return _clients[os.getpid()]
