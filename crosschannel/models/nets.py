"""The nets: a row a family, with what anybody needs to know of it before there is one.

A net that is there states its own facts: ``spec`` (its description, which stays true when BatchNorm is absorbed or the
input is widened), ``layers``, ``shapes``, and ``last_stride`` and ``last_origin`` (the grid of its last map).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from crosschannel.errors import UserError
from crosschannel.factories import is_factory
from crosschannel.models.alexnet import VARIANTS, AlexNet
from crosschannel.models.colornet import ColorNet
from crosschannel.models.factory import FactoryNet
from crosschannel.models.spec import NetSpec
from crosschannel.models.timm_net import TimmNet
from crosschannel.models.vgg import VGG16


@dataclass(frozen=True)
class Family:
    """What nets of a name have in common.

    Attributes:
        build: (description, side of square inputs where the net must know it) → the untrained net.
        size: side of the crops that transfer protocols give it, in pixels.
        first: name of its first convolution; empty where it depends on the net.
        fc: width of fc6 and fc7 where none is asked for.
        has_fc: whether it can have them at all.
        has_affine: whether its BatchNorm has a scale and a shift where ``affine`` says so.
        has_geometries: whether pretraining and transfer pad it differently (``set_geometry``).
        has_decoder: whether its pretext head is ColorNet's decoder, rather than a 1×1 convolution on the last map.
    """

    build: Callable[[NetSpec, int | None], nn.Module]
    size: int = 224
    first: str = ""
    fc: int = 0
    has_fc: bool = False
    has_affine: bool = False
    has_geometries: bool = False
    has_decoder: bool = False


def _alexnet(spec: NetSpec, _image_size: int | None) -> nn.Module:
    if spec.variant not in VARIANTS:
        raise UserError(f"no AlexNet variant {spec.variant!r}: there are {', '.join(VARIANTS)}")
    return AlexNet(spec.in_channels, spec.geometry, spec.norm, spec.fc, spec.variant, spec.fc7)


FAMILIES: dict[str, Family] = {
    "alexnet": Family(_alexnet, 227, "conv1.conv", fc=4096, has_fc=True, has_geometries=True),
    "colornet": Family(
        lambda spec, _: ColorNet(spec.in_channels, spec.norm, spec.affine),
        first="conv1_1.conv",
        has_affine=True,
        has_decoder=True,
    ),
    "vgg16": Family(
        lambda spec, _: VGG16(spec.in_channels, spec.norm, spec.affine, spec.fc),
        first="conv1_1.conv",
        has_fc=True,
        has_affine=True,
    ),
}
_TIMM = Family(
    lambda spec, image_size: TimmNet(spec.name.removeprefix("timm:"), spec.in_channels, image_size=image_size)
)
_FACTORY = Family(lambda spec, image_size: FactoryNet(spec.name, spec.in_channels, image_size))


def family(name: str) -> Family:
    """The row of a net's name.

    Raises:
        UserError: no net can have that name.
    """
    if name.startswith("timm:"):
        return _TIMM
    if is_factory(name):
        return _FACTORY
    if name not in FAMILIES:
        raise UserError(f"no net {name!r}: there are {', '.join(FAMILIES)}, timm:NAME and package.module:factory")
    return FAMILIES[name]


def build_net(spec: NetSpec, image_size: int | None = None) -> nn.Module:
    """The untrained net of a description.

    Raises:
        UserError: no net of that name.
    """
    return family(spec.name).build(spec, image_size)


def spec_of(net: nn.Module) -> NetSpec:
    """The description of one of our nets, as it is now.

    Raises:
        UserError: it is not one of ours.
    """
    spec = getattr(net, "spec", None)
    if not isinstance(spec, NetSpec):
        raise UserError(f"a {type(net).__name__} is not a net of this library; export it with its own")
    return spec
