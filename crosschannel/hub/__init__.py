"""Sources → backbones and colorizers; the files that weights are kept in."""

from crosschannel.hub.files import read_weights, save_backbone, save_colorizer
from crosschannel.hub.load import load_backbone, load_colorizer
from crosschannel.hub.sources import Source, parse_source

__all__ = [
    "Source",
    "load_backbone",
    "load_colorizer",
    "parse_source",
    "read_weights",
    "save_backbone",
    "save_colorizer",
]
