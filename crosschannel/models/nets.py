"""Backbone families, one row each, and the description of a net. Does not import torch, so that commands check names
quickly.

A net states its own facts as attributes, which :class:`~crosschannel.models.backbone.Backbone` reads: ``spec`` (its
description, also after BatchNorm is absorbed or the input is widened), ``layers``, ``shapes``, ``last_stride`` and
``last_origin`` (the grid of its last map).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from crosschannel.config.load import build
from crosschannel.config.types import FCWidth
from crosschannel.errors import UserError
from crosschannel.factories import is_factory

if TYPE_CHECKING:
    from torch import nn

Geometry = Literal["padded", "probe"]


@dataclass(frozen=True)
class NetOptions:
    """Options of a family: the fields of a subclass. The class attributes are for families without the option."""

    norm: ClassVar[bool] = True
    fc: ClassVar[int] = 0
    geometry: ClassVar[Geometry] = "padded"
    variant: ClassVar[str] = "crosschannel"
    affine: ClassVar[bool] = False
    fc7: ClassVar[int] = 0


@dataclass(frozen=True)
class AlexNetOptions(NetOptions):
    """Options of AlexNet.

    Attributes:
        norm: BatchNorm as in pretraining; False once it is absorbed.
        fc: width of fc6 and fc7, 0 for none.
        geometry: "padded" or "probe".
        variant: a name in :data:`crosschannel.models.alexnet.VARIANTS`.
        fc7: width of fc7 if it differs from that of fc6, else 0.
    """

    norm: bool = True
    fc: FCWidth = 0
    geometry: Geometry = "padded"
    variant: str = "crosschannel"
    fc7: FCWidth = 0


@dataclass(frozen=True)
class ColorNetOptions(NetOptions):
    """Options of ColorNet.

    Attributes:
        norm: BatchNorm as in pretraining; False once it is absorbed.
        affine: whether BatchNorm has a scale and a shift.
    """

    norm: bool = True
    affine: bool = False


@dataclass(frozen=True)
class VGG16Options(NetOptions):
    """Options of VGG-16.

    Attributes:
        norm: BatchNorm as in pretraining; False once it is absorbed.
        fc: width of fc6 and fc7, 0 for none.
        affine: whether BatchNorm has a scale and a shift.
    """

    norm: bool = True
    fc: FCWidth = 0
    affine: bool = False


@dataclass(frozen=True)
class Family:
    """A family of backbones.

    Attributes:
        import_path: module:class below this package.
        options: dataclass of the options of its nets.
        size: side of the crops in transfer protocols, in pixels.
        first: name of the first convolution; empty if it depends on the net.
        fc: default width of fc6 and fc7.
        has_decoder: whether its pretext head is ColorNet's decoder, rather than a 1×1 convolution on the last map.
    """

    import_path: str
    options: type[NetOptions] = NetOptions
    size: int = 224
    first: str = ""
    fc: int = 0
    has_decoder: bool = False

    def has_option(self, option: str) -> bool:
        """Whether the family supports an option."""
        return option in {entry.name for entry in fields(self.options)}

    def supported_options(self, **options: Any) -> dict[str, Any]:
        """Keep the options that the family supports."""
        return {name: value for name, value in options.items() if self.has_option(name)}


FAMILIES: dict[str, Family] = {
    "alexnet": Family("alexnet:AlexNet", AlexNetOptions, 227, "conv1.conv", fc=4096),
    "colornet": Family("colornet:ColorNet", ColorNetOptions, first="conv1_1.conv", has_decoder=True),
    "vgg16": Family("vgg:VGG16", VGG16Options, first="conv1_1.conv"),
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


@dataclass(frozen=True, init=False)
class NetSpec:
    """Everything needed to build a net without its weights; stored in files and as ``net.spec``.

    Args:
        name: a family, timm:NAME or package.module:factory.
        in_channels: 1 (grey) or 3 (Lab, RGB).
        options: those of the family.

    Raises:
        UserError: invalid net name.
    """

    name: str
    in_channels: int
    options: NetOptions

    def __init__(self, name: str = "alexnet", in_channels: int = 1, **options: Any):
        values = {"name": name, "in_channels": in_channels, "options": family(name).options(**options)}
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def replace(self, in_channels: int | None = None, **options: Any) -> "NetSpec":
        """A copy with other channels or options."""
        channels = self.in_channels if in_channels is None else in_channels
        return NetSpec(self.name, channels, **(asdict(self.options) | options))

    def to_dict(self) -> dict[str, Any]:
        """The description as files store it: flat, with the options that earlier versions expect."""
        stored = {name: getattr(self.options, name) for name in _STORED_OPTIONS}
        return {"name": self.name, "in_channels": self.in_channels, **stored, **asdict(self.options)}

    @classmethod
    def from_dict(cls, tree: Any) -> "NetSpec":
        """Inverse of :meth:`to_dict`.

        Raises:
            UserError: a key is missing or unknown, or a value is invalid.
        """
        is_mapping = isinstance(tree, Mapping)
        values = {key: tree[key] for key in ("name", "in_channels") if key in tree} if is_mapping else tree
        header = build(_SpecHeader, values)
        row = family(header.name)
        others = {key: value for key, value in tree.items() if key not in values}
        stored = {key: value for key, value in others.items() if key not in _STORED_OPTIONS or row.has_option(key)}
        return cls(header.name, header.in_channels, **asdict(build(row.options, stored)))


@dataclass
class _SpecHeader:
    """Name and input channels of a stored description."""

    name: str = "alexnet"
    in_channels: Annotated[int, Interval(ge=1, le=64)] = 1


_STORED_OPTIONS = ("norm", "fc", "geometry", "variant", "affine", "fc7")  # in every file of earlier versions


def is_registered(spec: NetSpec) -> bool:
    """Whether :mod:`crosschannel.timm` registers this spec (grey input only)."""
    options = {name: getattr(spec.options, name) for name in ("norm", "fc", "geometry")}
    return spec.name in FAMILIES and spec == NetSpec(spec.name, **family(spec.name).supported_options(**options))


def build_net(spec: NetSpec, image_size: int | None = None) -> "nn.Module":
    """Build the untrained net of a description.

    Args:
        spec: the description.
        image_size: side of square inputs, in pixels, for nets with position embeddings.

    Raises:
        UserError: no net of that name.
    """
    return resolve_name(f"crosschannel.models.{family(spec.name).import_path}").from_spec(spec, image_size)


def find_spec(net: "nn.Module") -> NetSpec | None:
    """The description of one of our nets, as it is now; None for any other net."""
    spec = getattr(net, "spec", None)
    return spec if isinstance(spec, NetSpec) else None


def spec_of(net: "nn.Module") -> NetSpec:
    """The description of one of our nets, as it is now.

    Raises:
        UserError: it is not one of ours.
    """
    spec = find_spec(net)
    if spec is None:
        raise UserError(f"a {type(net).__name__} is not a net of this library; export it with its own")
    return spec
