"""Config keys of `crosschannel demo`. Does not import torch, to keep ``--help`` fast."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from crosschannel.config.training import CommandConfig
from crosschannel.config.types import Host, Line, Out, Source


@dataclass
class DemoConfig(CommandConfig):
    """Serve or write a web page on which visitors colour their own pictures."""

    ignored = ("seed",)

    model: Annotated[str, Source("colorizer")] = "zoo:eccv16"
    """colorization model: run folder, colorizer.safetensors, zoo:eccv16 (the paper's model, downloaded once) or
    hf-hub:owner/name"""
    static: Out | None = None
    """write static files to this new folder instead of serving the page; the model runs in the visitor's browser"""
    host: Host = "127.0.0.1"
    """address to listen on; 0.0.0.0: all interfaces of this machine"""
    port: Annotated[int, Interval(ge=1, le=65535)] = 8000
    """port to listen on"""
    title: Line = "Colour a picture"
    """title of the page"""
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """short side of the model's input, in pixels; 0: the model's default"""
    megapixels: Annotated[float, Interval(ge=0.01, le=1000)] = 50.0
    """maximum size of a picture, in megapixels; larger pictures are rejected before decoding"""
