"""Web server of the study and the demo: security headers, a limit on request bodies, graceful shutdown.

It needs FastAPI and uvicorn (the extra ``web``).
"""

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from crosschannel.config.load import check_value
from crosschannel.config.types import Host
from crosschannel.console import print_stderr
from crosschannel.errors import UserError

try:
    import uvicorn
    from fastapi import FastAPI
except ImportError:
    raise UserError("web pages need more: pip install 'crosschannel[web]'") from None

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# A page may load its own files and nothing else, and no other page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_SHUTDOWN_S = 5  # for requests in flight at shutdown


def create_app() -> FastAPI:
    """An application that describes itself to nobody."""
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


class Guarded:
    """An ASGI application behind security headers and a limit on request bodies.

    A request with a longer body gets status 413, and its connection is closed without reading the rest.

    Args:
        app: the application.
        limit: largest body, in bytes.
        policy: Content-Security-Policy of the responses.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], limit: int, policy: str = POLICY):
        self.app, self.limit = app, limit
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
            (b"cache-control", b"no-store, no-transform"),
        ]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in self._headers}
                own = [(name, value) for name, value in message.get("headers", []) if name.lower() not in names]
                message = {**message, "headers": [*own, *self._headers]}
            await send(message)

        body = b""
        more = _declared_length(scope) <= self.limit
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = bool(message.get("more_body")) and len(body) <= self.limit
        if max(len(body), _declared_length(scope)) > self.limit:
            text = f"more than {self.limit} bytes".encode()
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
            headers.append((b"connection", b"close"))
            await guarded({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": text})
            return
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def read() -> Message:
            return parts.pop() if parts else await receive()

        await self.app(scope, read, guarded)


def _declared_length(scope: Message) -> int:
    """Content-Length of a request; 0 if it has none. (uvicorn rejects invalid numbers.)"""
    values = [value for name, value in scope["headers"] if name == b"content-length" and value.isdigit()]
    return int(values[0]) if values else 0


def serve(app: Guarded, host: str, port: int, what: str) -> None:
    """Serve requests until SIGTERM, SIGHUP or Ctrl-C.

    Raises:
        UserError: the address cannot be listened on.
    """
    check_value("host", host, Host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port") from None
        address = ipaddress.ip_address(listening.getsockname()[0])
        everywhere = ", on every interface of this machine" if address.is_unspecified else ""
        print_stderr(f"{what}: http://{f'[{host}]' if ':' in host else host}:{port}/{everywhere} (Ctrl-C ends it)")
        config = uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            lifespan="off",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
        print_stderr(f"{what}: ended")


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn the first SIGTERM, SIGHUP or Ctrl-C in the block into a KeyboardInterrupt; ignore later ones during cleanup.

    uvicorn re-raises the signal that stopped it for the previous handler. The default handler of SIGTERM would end the
    process with open files.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def stop(_number: int, _frame: object) -> None:
        for number in previous:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    def hang_up(_number: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGTERM)  # uvicorn handles it, but not SIGHUP

    for number, handler in previous.items():
        if handler != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, hang_up if number == signal.SIGHUP else stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
