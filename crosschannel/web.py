"""Web server of the study and the demo, with security headers, a size limit for requests, and graceful shutdown.

It requires FastAPI and uvicorn, from the extra ``web``.
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
    raise UserError("the web server requires extra packages: pip install 'crosschannel[web]'") from None

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Pages may load files of the same origin only, and cannot be embedded in frames.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_SHUTDOWN_S = 5  # grace period for requests in flight at shutdown, in seconds


def create_app() -> FastAPI:
    """Create a FastAPI application without documentation pages."""
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


class GuardedApp:
    """ASGI middleware that adds security headers and limits request bodies.

    Requests with longer bodies get status 413, and their connections are closed before the body is read completely.

    Args:
        app: ASGI application to wrap.
        limit: maximum size of a request body, in bytes.
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
            await self._handle(scope, receive, send)

    async def _handle(self, scope: Message, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in self._headers}
                headers = [(name, value) for name, value in message.get("headers", []) if name.lower() not in names]
                message = {**message, "headers": [*headers, *self._headers]}
            await send(message)

        body = b""
        has_more = _declared_length(scope) <= self.limit
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            has_more = bool(message.get("more_body")) and len(body) <= self.limit
        if max(len(body), _declared_length(scope)) > self.limit:
            text = f"request body exceeds {self.limit} bytes".encode()
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
            headers.append((b"connection", b"close"))
            await send_with_headers({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": text})
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, receive_body, send_with_headers)


def _declared_length(scope: Message) -> int:
    """Return the Content-Length of a request, or 0 if it has none. uvicorn rejects invalid lengths."""
    values = [value for name, value in scope["headers"] if name == b"content-length" and value.isdigit()]
    return int(values[0]) if values else 0


def serve(app: GuardedApp, host: str, port: int, name: str) -> None:
    """Serve requests until SIGTERM, SIGHUP or Ctrl-C.

    Args:
        app: application to serve.
        host, port: address to listen on.
        name: name of the application, for messages.

    Raises:
        UserError: the address is not available.
    """
    check_value("host", host, Host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
            ) from None
        address = ipaddress.ip_address(listener.getsockname()[0])
        interfaces = ", on all interfaces of this machine" if address.is_unspecified else ""
        print_stderr(f"{name}: http://{f'[{host}]' if ':' in host else host}:{port}/{interfaces} (Ctrl-C to stop)")
        config = uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            lifespan="off",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_SHUTDOWN_S,
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
        print_stderr(f"{name}: stopped")


@contextlib.contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block on the first SIGTERM, SIGHUP or Ctrl-C, and ignore further ones.

    uvicorn re-raises the signal that stopped it for the previous handler. The default handler of SIGTERM would end the
    process before files are closed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def stop(_signum: int, _frame: object) -> None:
        for signum in previous:
            signal.signal(signum, signal.SIG_IGN)
        raise KeyboardInterrupt

    def hang_up(_signum: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGTERM)  # uvicorn handles SIGTERM, but not SIGHUP

    for signum, handler in previous.items():
        if handler != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(signum, hang_up if signum == signal.SIGHUP else stop)
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
