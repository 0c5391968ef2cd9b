"""Sources → backbones and colorizers; the files that weights are kept in."""

from typing import TYPE_CHECKING

from crosschannel.lazy import lazy_names

if TYPE_CHECKING:
    from crosschannel.hub.classifiers import load_classifier
    from crosschannel.hub.files import read_weights, save_backbone, save_pretext
    from crosschannel.hub.load import has_head, load_backbone, load_colorizer, load_pretext
    from crosschannel.hub.sources import Source, parse_source, source_files

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "crosschannel.hub.classifiers": "load_classifier",
        "crosschannel.hub.files": "read_weights save_backbone save_pretext",
        "crosschannel.hub.load": "has_head load_backbone load_colorizer load_pretext",
        "crosschannel.hub.sources": "Source parse_source source_files",
    },
)
