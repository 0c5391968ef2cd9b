"""Sources → backbones and colorizers; the files that weights are kept in."""

from crosschannel.hub.classifiers import load_classifier
from crosschannel.hub.files import read_weights, save_backbone, save_pretext
from crosschannel.hub.load import has_head, load_backbone, load_colorizer, load_pretext
from crosschannel.hub.sources import Source, parse_source, source_files

__all__ = [
    "Source",
    "has_head",
    "load_backbone",
    "load_classifier",
    "load_colorizer",
    "load_pretext",
    "parse_source",
    "read_weights",
    "save_backbone",
    "save_pretext",
    "source_files",
]
