"""One dictionary from net names to builders, and the description of a net that its files carry."""

from dataclasses import asdict, dataclass
from typing import Annotated

from torch import nn

from crosschannel.errors import UserError
from crosschannel.keys import FC_WIDTH, within
from crosschannel.models.alexnet import VARIANTS, AlexNet, Geometry
from crosschannel.models.colornet import ColorNet
from crosschannel.models.vgg import VGG16
from crosschannel.models.wrapped import TimmNet

NET_NAMES = ("alexnet", "colornet", "vgg16")


@dataclass(frozen=True)
class NetSpec:
    """Enough to build a net without its weights.

    Attributes:
        name: alexnet, colornet, vgg16 or timm:NAME.
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


def classic_fc(name: str) -> int:
    """Width of fc6 and fc7 where none is asked for: AlexNet's own; other nets have none."""
    return 4096 if name == "alexnet" else 0


def check_name(name: str) -> None:
    """Raise a UserError for a name that no net can have."""
    if name not in NET_NAMES and not name.startswith("timm:"):
        raise UserError(f"no net {name!r}: there are {', '.join(NET_NAMES)} and timm:NAME")


def build_net(spec: NetSpec, image_size: int | None = None) -> nn.Module:
    """The untrained net of a description.

    Raises:
        UserError: no net of that name.
    """
    check_name(spec.name)
    if spec.name.startswith("timm:"):
        return TimmNet(spec.name.removeprefix("timm:"), spec.in_channels, image_size=image_size)
    if spec.name == "alexnet":
        if spec.variant not in VARIANTS:
            raise UserError(f"no AlexNet variant {spec.variant!r}: there are {', '.join(VARIANTS)}")
        return AlexNet(spec.in_channels, spec.geometry, spec.norm, spec.fc, spec.variant, spec.fc7)
    if spec.name == "vgg16":
        return VGG16(spec.in_channels, spec.norm, spec.affine, spec.fc)
    return ColorNet(spec.in_channels, spec.norm, spec.affine)
