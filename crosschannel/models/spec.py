"""The description of a net: enough to build it without its weights. Files carry it, and a net knows its own."""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from crosschannel.keys import FC_WIDTH, within

Geometry = Literal["padded", "probe"]


@dataclass(frozen=True)
class NetSpec:
    """What a net is.

    Attributes:
        name: a net family (see :mod:`crosschannel.models.nets`), timm:NAME or package.module:factory.
        in_channels: 1 (grey) or 3 (Lab, RGB).
        norm: BatchNorm as in pretraining; False once it is absorbed.
        fc: width of fc6 and fc7 of AlexNet and VGG-16, 0 for none.
        geometry: AlexNet's, "padded" or "probe".
        variant: which AlexNet; see :data:`crosschannel.models.alexnet.VARIANTS`.
        affine: whether the BatchNorm of ColorNet and VGG-16 has a scale and a shift (AlexNet's variant says so).
        fc7: width of AlexNet's fc7 where it is not that of fc6; 0 where it is.
    """

    name: str = "alexnet"
    in_channels: Annotated[int, within(1, 64)] = 1
    norm: bool = True
    fc: Annotated[int, FC_WIDTH] = 0
    geometry: Geometry = "padded"
    variant: str = "crosschannel"
    affine: bool = False
    fc7: Annotated[int, FC_WIDTH] = 0

    def to_dict(self) -> dict:
        return asdict(self)
