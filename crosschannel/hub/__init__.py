"""Load backbones, classifiers and colorizers from source strings; read and write weights files."""

from typing import TYPE_CHECKING

from crosschannel.lazy import lazy_names

if TYPE_CHECKING:
    from crosschannel.hub.classifiers import load_classifier as load_classifier
    from crosschannel.hub.files import read_weights as read_weights
    from crosschannel.hub.files import save_backbone as save_backbone
    from crosschannel.hub.files import save_pretext as save_pretext
    from crosschannel.hub.load import has_head as has_head
    from crosschannel.hub.load import load_backbone as load_backbone
    from crosschannel.hub.load import load_colorizer as load_colorizer
    from crosschannel.hub.load import load_pretext as load_pretext
    from crosschannel.hub.sources import Source as Source
    from crosschannel.hub.sources import parse_source as parse_source
    from crosschannel.hub.sources import source_files as source_files

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "crosschannel.hub.classifiers": "load_classifier",
        "crosschannel.hub.files": "read_weights save_backbone save_pretext",
        "crosschannel.hub.load": "has_head load_backbone load_colorizer load_pretext",
        "crosschannel.hub.sources": "Source parse_source source_files",
    },
)
