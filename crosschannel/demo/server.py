"""`crosschannel demo`: serve the demo page and the model's predictions. The server does not store any pictures."""

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
from crosschannel.demo.files import PAGE, meta_policy, model_settings, page_file
from crosschannel.demo.static import write_static
from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.hub import load_colorizer
from crosschannel.hub.export import Decoded
from crosschannel.training.device import find_device

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
}
_ROUNDING = 4  # pixels by which rounding to multiples of 8 can increase the short side
_MIN_PROBABILITY = 2.0**-20  # lower bound, since log-probabilities must be finite
_MAX_WAITING = 30  # maximum number of pictures in the queue, including the one in progress
_NOTICE = (
    "Your browser sends a small greyscale copy of each picture to the server, which predicts likely colours and stores "
    "nothing. Everything else stays on your machine."
)


def demo(config: DemoConfig) -> None:
    """Serve the page until Ctrl-C, or write it to a folder.

    Raises:
        UserError: the model is not a colorization model, the address is not available, or the folder is not empty.
    """
    colorizer = load_colorizer(config.model, "cpu" if config.static else find_device(config.device), config.size)
    if config.static:
        write_static(colorizer, config, Path(config.static))
        return
    from crosschannel.web import POLICY, GuardedApp, interrupt_on_signals, serve

    limit = body_limit(colorizer.size)
    policy = f"{POLICY}; worker-src 'self'"
    app = create(colorizer, config, policy)
    with interrupt_on_signals():
        serve(GuardedApp(app, limit, policy), config.host, config.port, "demo")


def body_limit(size: int) -> int:
    """Return the maximum size of a request, in bytes, for a model whose input has the short side ``size``."""
    return 8 + 4 * (size + _ROUNDING) * MAX_ASPECT_RATIO * size


def create(colorizer: Colorizer, config: DemoConfig, policy: str) -> Any:
    """Create the web application.

    Args:
        colorizer: model that predicts colours.
        config: config of the demo.
        policy: Content-Security-Policy of the page.
    """
    from fastapi import Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import Response

    from crosschannel.web import create_app

    app, decoded = create_app(), Decoded(colorizer).eval()
    lock, waiting = asyncio.Lock(), 0
    device = next(colorizer.parameters()).device
    page_files = {name: page_file(name, config, meta_policy(policy), _NOTICE) for name in PAGE}
    page_files["net.js"] = (files("crosschannel.demo") / "page" / "net-server.js").read_bytes()
    page_files["net.json"] = json.dumps(model_settings(colorizer, config)).encode()

    @app.get("/")
    async def index() -> Response:
        return Response(page_files["index.html"], media_type=MEDIA_TYPES[".html"])

    @app.get("/{name}")
    async def file(name: str) -> Response:
        if name not in page_files:
            return Response("this file does not exist", 404, media_type="text/plain")
        return Response(page_files[name], media_type=MEDIA_TYPES[Path(name).suffix])

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        nonlocal waiting
        body = await request.body()
        if waiting >= _MAX_WAITING:
            return Response("too many pictures are waiting; try again in a minute", 503, media_type="text/plain")
        waiting += 1
        try:
            lightness = _parse_lightness(body, colorizer.size)
            async with lock:  # one picture at a time, since each uses all cores
                if await request.is_disconnected():  # do not make other visitors wait for it
                    return Response(status_code=400)
                data = await run_in_threadpool(encode_prediction, lightness)
        except UserError as error:
            return Response(str(error), 400, media_type="text/plain")
        finally:
            waiting -= 1
        return Response(data, media_type="application/octet-stream")

    @torch.inference_mode()
    def encode_prediction(lightness: torch.Tensor) -> bytes:
        """Predict and encode: number of bins, height, width, ab, and the log-probabilities of the bins if any."""
        with wrap_external_errors(f"the model cannot process {lightness.shape[3]} × {lightness.shape[2]} pixels"):
            *distribution, ab = (output[0].float().cpu().numpy() for output in decoded(lightness.to(device)))
        if not np.isfinite(ab).all():
            raise UserError("the model predicts colours that are not finite: its weights are damaged")
        bins = len(distribution[0]) if distribution else 0
        data = struct.pack("<3I", bins, *ab.shape[1:]) + np.ascontiguousarray(ab, "<f4").tobytes()
        for probabilities in distribution:
            data += np.log(np.maximum(probabilities, _MIN_PROBABILITY)).astype("<f2").tobytes()
        return data

    return app


def _parse_lightness(body: bytes, size: int) -> torch.Tensor:
    """Parse the body of a request into lightness (1, 1, H, W) in 0..100.

    Raises:
        UserError: the size is not accepted, or the values are invalid.
    """
    width, height = struct.unpack("<2I", body[:8]) if len(body) >= 8 else (0, 0)
    if not (8 <= min(width, height) <= size + _ROUNDING and max(width, height) <= MAX_ASPECT_RATIO * size):
        raise UserError(f"the model does not accept {width} × {height} pixels")
    if len(body) != 8 + 4 * width * height:
        raise UserError("the number of values does not match the size of the picture")
    lightness = torch.from_numpy(np.frombuffer(body, "<f4", offset=8).astype(np.float32)).view(1, 1, height, width)
    if not lightness.isfinite().all():
        raise UserError("lightness must be finite numbers")
    return lightness.clamp(0, 100)
