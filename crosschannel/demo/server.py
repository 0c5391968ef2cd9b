"""`crosschannel demo`: a server of the page, and of what the net says of lightness. It keeps nothing."""

import asyncio
import json
import struct
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crosschannel.colorize.colorizer import MAX_ASPECT_RATIO, Colorizer
from crosschannel.demo.config import DemoConfig
from crosschannel.demo.files import PAGE, described, page_file, policy_of_page
from crosschannel.demo.static import write_static
from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.hub import load_colorizer
from crosschannel.hub.export import Decoded
from crosschannel.training.device import find_device

TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".json": "application/json"}
_ROUNDED = 4  # pixels by which a short side may be longer than asked for: sides are multiples of 8
_LEAST = 2.0**-20  # of a probability that is told
_QUEUE = 30  # pictures that may wait
_WHERE = (
    "The server is sent a small grey copy of each picture, says what colours are likely, and keeps nothing. All else "
    "stays on your machine."
)


def demo(config: DemoConfig) -> None:
    """Serve the page until Ctrl-C, or write it into a folder.

    Raises:
        UserError: a net that colours nothing, an address that cannot be listened on, or a folder that is in the way.
    """
    colorizer = load_colorizer(config.model, "cpu" if config.static else find_device(config.device), config.size)
    if config.static:
        write_static(colorizer, config, Path(config.static))
        return
    from crosschannel.web import POLICY, Guarded, ended_by_signals, serve

    limit = body_limit(colorizer.size)
    policy = f"{POLICY}; worker-src 'self'"
    app = create(colorizer, config, policy)
    with ended_by_signals():
        serve(Guarded(app, limit, policy), config.host, config.port, "demo")


def body_limit(size: int) -> int:
    """Bytes that a browser may send of a picture that is looked at with a short side of ``size``."""
    return 8 + 4 * (size + _ROUNDED) * MAX_ASPECT_RATIO * size


def create(colorizer: Colorizer, config: DemoConfig, policy: str) -> Any:
    """The application of the server."""
    from fastapi import Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import Response

    from crosschannel.web import create_app

    app, decoded = create_app(), Decoded(colorizer).eval()
    turn, waiting = asyncio.Lock(), 0
    device = next(colorizer.parameters()).device
    pages = {name: page_file(name, config, policy_of_page(policy), _WHERE) for name in PAGE}
    pages["net.js"] = (files("crosschannel.demo") / "page" / "net-server.js").read_bytes()
    pages["net.json"] = json.dumps(described(colorizer, config)).encode()

    @app.get("/")
    async def index() -> Response:
        return Response(pages["index.html"], media_type=TYPES[".html"])

    @app.get("/{name}")
    async def file(name: str) -> Response:
        if name not in pages:
            return Response("there is no such file", 404, media_type="text/plain")
        return Response(pages[name], media_type=TYPES[Path(name).suffix])

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        nonlocal waiting
        body = await request.body()
        if waiting >= _QUEUE:
            return Response("too many pictures are waiting; try again in a minute", 503, media_type="text/plain")
        waiting += 1
        try:
            lightness = _lightness(body, colorizer.size)
            async with turn:  # one picture at a time: each takes all cores
                if await request.is_disconnected():  # who left does not keep others waiting
                    return Response(status_code=400)
                data = await run_in_threadpool(answer, lightness)
        except UserError as error:
            return Response(str(error), 400, media_type="text/plain")
        finally:
            waiting -= 1
        return Response(data, media_type="application/octet-stream")

    @torch.inference_mode()
    def answer(lightness: torch.Tensor) -> bytes:
        with wrap_external_errors(f"this net cannot look at {lightness.shape[3]} × {lightness.shape[2]} pixels"):
            *distribution, ab = (part[0].float().cpu().numpy() for part in decoded(lightness.to(device)))
        if not np.isfinite(ab).all():
            raise UserError("this net gives colours that are no numbers: its weights are damaged")
        bins = len(distribution[0]) if distribution else 0
        data = struct.pack("<3I", bins, *ab.shape[1:]) + np.ascontiguousarray(ab, "<f4").tobytes()
        for part in distribution:
            data += np.log(np.maximum(part, _LEAST)).astype("<f2").tobytes()
        return data

    return app


def _lightness(body: bytes, size: int) -> torch.Tensor:
    """What a browser sent, (1, 1, H, W) in 0..100.

    Raises:
        UserError: it is something else.
    """
    width, height = struct.unpack("<2I", body[:8]) if len(body) >= 8 else (0, 0)
    if not (8 <= min(width, height) <= size + _ROUNDED and max(width, height) <= MAX_ASPECT_RATIO * size):
        raise UserError(f"the net does not look at {width} × {height}")
    if len(body) != 8 + 4 * width * height:
        raise UserError("these are not as many numbers as the picture has pixels")
    lightness = torch.from_numpy(np.frombuffer(body, "<f4", offset=8).astype(np.float32)).view(1, 1, height, width)
    if not lightness.isfinite().all():
        raise UserError("lightness must be numbers in 0..100")
    return lightness.clamp(0, 100)
