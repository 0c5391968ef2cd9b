"""The keys of `crosschannel demo`. No torch here: help is quick."""

from dataclasses import dataclass
from typing import Annotated

from crosschannel.keys import Device, Host, Line, Out, Seed, at_least, within
from crosschannel.runs.config import seed, source


@dataclass
class DemoConfig:
    """Serve or write a page on which people colour their own pictures."""

    model: str = source("zoo:eccv16", loads="colorizer")
    """a run folder, its colorizer.safetensors, zoo:eccv16 (the paper's net, downloaded once) or hf-hub:owner/name"""
    static: Out | None = None
    """write the page into this new folder instead, for any host of files: the net runs in the visitor's browser"""
    host: Host = "127.0.0.1"
    """address to listen on; 0.0.0.0 means every interface of this machine"""
    port: Annotated[int, within(1, 65535)] = 8000
    """to listen on"""
    title: Line = "Colour a picture"
    """of the page"""
    size: Annotated[int, at_least(0, 4096)] = 0
    """short side at which the net looks at a picture; 0 takes the net's own"""
    megapixels: Annotated[float, within(0.01, 1000)] = 50.0
    """larger pictures are refused before they are unpacked"""
    seed: Seed = seed()
    """taken as by every command; colouring draws nothing at random"""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N; of the server"""
