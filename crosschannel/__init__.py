"""Self-supervised visual representation learning by cross-channel prediction.

The names below are the public Python interface. They are imported on first use, so that ``import crosschannel`` takes
milliseconds.
"""

from typing import TYPE_CHECKING

from crosschannel.lazy import lazy_names
from crosschannel.version import __version__

if TYPE_CHECKING:
    from crosschannel import color as color
    from crosschannel.data import ImageSet as ImageSet
    from crosschannel.errors import UserError as UserError
    from crosschannel.hub import load_backbone as load_backbone
    from crosschannel.hub import load_colorizer as load_colorizer
    from crosschannel.models import InputSpec as InputSpec
    from crosschannel.models import wrap as wrap

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "crosschannel.color": "color",
        "crosschannel.data": "ImageSet",
        "crosschannel.errors": "UserError",
        "crosschannel.hub": "load_backbone load_colorizer",
        "crosschannel.models": "InputSpec wrap",
    },
)
__all__ += ["__version__"]
