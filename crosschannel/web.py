"""What the web pages share: headers that browsers obey, a limit for what is sent here, and a server that says where it
is. FastAPI and uvicorn are the extra ``web``."""

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from crosschannel.console import say
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


def create_app() -> FastAPI:
    """An application that describes itself to nobody."""
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


class Guarded:
    """An ASGI application behind safe headers, which never sees a body longer than allowed.

    Args:
        app: what answers.
        limit: bytes of a request's body.
        policy: its Content-Security-Policy.
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
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > self.limit:
                text = f"more than {self.limit} bytes".encode()
                headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
                await guarded({"type": "http.response.start", "status": 413, "headers": headers})
                await send({"type": "http.response.body", "body": text})
                return
            if not message.get("more_body"):
                break
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def read() -> Message:
            return parts.pop() if parts else await receive()

        await self.app(scope, read, guarded)


def serve(app: Guarded, host: str, port: int, what: str) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    Raises:
        UserError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port") from None
        say(f"{what}: http://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C ends it)")
        config = uvicorn.Config(app, log_level="warning", server_header=False, lifespan="off", timeout_keep_alive=30)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            say(f"{what}: ended")
