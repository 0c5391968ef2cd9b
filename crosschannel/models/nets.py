"""Backbone families: one row each, with the facts needed before a net is built. Does not import torch, so that commands
check names quickly.

A net that is there states its own facts: ``spec`` (its description, which stays true when BatchNorm is absorbed or the
input is widened), ``layers``, ``shapes``, and ``last_stride`` and ``last_origin`` (the grid of its last map).
"""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from crosschannel.errors import UserError
from crosschannel.factories import is_factory
from crosschannel.models.spec import NetSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """What nets of a name have in common.

    Attributes:
        import_path: module:class below this package.
        size: side of the crops that transfer protocols give it, in pixels.
        first: name of its first convolution; empty where it depends on the net.
        fc: width of fc6 and fc7 where none is asked for.
        has_fc: whether it can have them at all.
        has_affine: whether its BatchNorm has a scale and a shift where ``affine`` says so.
        has_geometries: whether pretraining and transfer pad it differently (``set_geometry``).
        has_decoder: whether its pretext head is ColorNet's decoder, rather than a 1×1 convolution on the last map.
    """

    import_path: str
    size: int = 224
    first: str = ""
    fc: int = 0
    has_fc: bool = False
    has_affine: bool = False
    has_geometries: bool = False
    has_decoder: bool = False


FAMILIES: dict[str, Family] = {
    "alexnet": Family("alexnet:AlexNet", 227, "conv1.conv", fc=4096, has_fc=True, has_geometries=True),
    "colornet": Family("colornet:ColorNet", first="conv1_1.conv", has_affine=True, has_decoder=True),
    "vgg16": Family("vgg:VGG16", first="conv1_1.conv", has_fc=True, has_affine=True),
}
_TIMM = Family("timm_net:TimmNet")
_FACTORY = Family("factory:FactoryNet")


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


def build_net(spec: NetSpec, image_size: int | None = None) -> "nn.Module":
    """Build the untrained net of a description.

    Args:
        spec: the description.
        image_size: side of square inputs, in pixels, for nets with position embeddings.

    Raises:
        UserError: no net of that name.
    """
    return resolve_name(f"crosschannel.models.{family(spec.name).import_path}").from_spec(spec, image_size)


def spec_of(net: "nn.Module") -> NetSpec:
    """The description of one of our nets, as it is now.

    Raises:
        UserError: it is not one of ours.
    """
    spec = getattr(net, "spec", None)
    if not isinstance(spec, NetSpec):
        raise UserError(f"a {type(net).__name__} is not a net of this library; export it with its own")
    return spec
