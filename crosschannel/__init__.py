"""Self-supervised visual representation learning by cross-channel prediction.

The names below are the Python face of the library; they are imported on first use, so that ``import crosschannel``
costs milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from crosschannel.errors import UserError

if TYPE_CHECKING:
    from crosschannel import color
    from crosschannel.data import ImageSet
    from crosschannel.hub import load_backbone, load_colorizer
    from crosschannel.models import InputSpec, wrap

__version__ = "0.1.0"
__all__ = ["ImageSet", "InputSpec", "UserError", "__version__", "color", "load_backbone", "load_colorizer", "wrap"]

_LAZY = {
    "ImageSet": "crosschannel.data",
    "InputSpec": "crosschannel.models",
    "load_backbone": "crosschannel.hub",
    "load_colorizer": "crosschannel.hub",
    "wrap": "crosschannel.models",
}


def __getattr__(name: str):
    if name == "color":
        return import_module("crosschannel.color")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'crosschannel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
