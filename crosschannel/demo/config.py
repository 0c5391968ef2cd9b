"""The keys of `crosschannel demo`. No torch here: help is quick."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from crosschannel.config.training import CommandConfig
from crosschannel.config.types import Host, Line, Out, Source


@dataclass
class DemoConfig(CommandConfig):
    """Serve or write a page on which people colour their own pictures."""

    ignored = ("seed",)

    model: Annotated[str, Source("colorizer")] = "zoo:eccv16"
    """a run folder, its colorizer.safetensors, zoo:eccv16 (the paper's net, downloaded once) or hf-hub:owner/name"""
    static: Out | None = None
    """write the page into this new folder instead, for any host of files: the net runs in the visitor's browser"""
    host: Host = "127.0.0.1"
    """address to listen on; 0.0.0.0 means every interface of this machine"""
    port: Annotated[int, Interval(ge=1, le=65535)] = 8000
    """to listen on"""
    title: Line = "Colour a picture"
    """of the page"""
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    """short side at which the net looks at a picture; 0 takes the net's own"""
    megapixels: Annotated[float, Interval(ge=0.01, le=1000)] = 50.0
    """larger pictures are refused before they are unpacked"""
