"""Registry of backbone families, and the specification of a net. This module does not import torch, so that commands
can check names quickly.

Nets have attributes that :class:`~crosschannel.models.backbone.Backbone` and pretext tasks read: ``spec`` (the current
specification, after any absorbed BatchNorm or widened input), ``layers``, ``shapes``, ``last_stride`` and
``last_origin`` (the grid of the last map).
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
    """Base class for the options of a family; each option is a field of the subclass.

    The class attributes are the values of options that a family lacks.
    """

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
        norm: whether the net has BatchNorm; False after it was absorbed.
        fc: width of fc6 and fc7; 0 omits both layers.
        geometry: "padded" (pretraining) or "probe" (transfer).
        variant: key of :data:`crosschannel.models.alexnet.VARIANTS`.
        fc7: width of fc7 if it differs from fc6, else 0.
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
        norm: whether the net has BatchNorm; False after it was absorbed.
        affine: whether BatchNorm has a scale and a shift.
    """

    norm: bool = True
    affine: bool = False


@dataclass(frozen=True)
class VGG16Options(NetOptions):
    """Options of VGG-16.

    Attributes:
        norm: whether the net has BatchNorm; False after it was absorbed.
        fc: width of fc6 and fc7; 0 omits both layers.
        affine: whether BatchNorm has a scale and a shift.
    """

    norm: bool = True
    fc: FCWidth = 0
    affine: bool = False


@dataclass(frozen=True)
class Family:
    """A family of backbones.

    Attributes:
        import_path: module:class, relative to ``crosschannel.models``.
        options: dataclass of the family's options.
        size: side of the crops in transfer protocols, in pixels.
        first: name of the first convolution; empty if it depends on the net.
        fc: default width of fc6 and fc7.
        has_decoder: whether the pretext head is ColorNet's decoder rather than a 1×1 convolution on the last map.
    """

    import_path: str
    options: type[NetOptions] = NetOptions
    size: int = 224
    first: str = ""
    fc: int = 0
    has_decoder: bool = False

    def has_option(self, option: str) -> bool:
        """Return whether the family supports an option."""
        return option in {entry.name for entry in fields(self.options)}

    def supported_options(self, **options: Any) -> dict[str, Any]:
        """Select the options that the family supports."""
        return {name: value for name, value in options.items() if self.has_option(name)}


FAMILIES: dict[str, Family] = {
    "alexnet": Family("alexnet:AlexNet", AlexNetOptions, 227, "conv1.conv", fc=4096),
    "colornet": Family("colornet:ColorNet", ColorNetOptions, first="conv1_1.conv", has_decoder=True),
    "vgg16": Family("vgg:VGG16", VGG16Options, first="conv1_1.conv"),
}
_TIMM = Family("timm_net:TimmNet")
_FACTORY = Family("factory:FactoryNet")


def family(name: str) -> Family:
    """Return the family of a net, by the net's name.

    Raises:
        UserError: invalid net name.
    """
    if name.startswith("timm:"):
        return _TIMM
    if is_factory(name):
        return _FACTORY
    if name not in FAMILIES:
        raise UserError(f"unknown net {name!r}; choose {', '.join(FAMILIES)}, timm:NAME or package.module:factory")
    return FAMILIES[name]


@dataclass(frozen=True, init=False)
class NetSpec:
    """Specification for building a net (without its weights), stored in files and as ``net.spec``.

    Args:
        name: family, timm:NAME or package.module:factory.
        in_channels: number of input channels: 1 (grey) or 3 (Lab, RGB).
        options: options of the family.

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
        """Return a copy with another number of input channels or other options."""
        channels = self.in_channels if in_channels is None else in_channels
        return NetSpec(self.name, channels, **(asdict(self.options) | options))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a flat dict for files, including all options that earlier versions expect."""
        stored = {name: getattr(self.options, name) for name in _STORED_OPTIONS}
        return {"name": self.name, "in_channels": self.in_channels, **stored, **asdict(self.options)}

    @classmethod
    def from_dict(cls, tree: Any) -> "NetSpec":
        """Create a specification from a dict (inverse of :meth:`to_dict`).

        Raises:
            UserError: a key is missing or unknown, or a value is invalid.
        """
        is_mapping = isinstance(tree, Mapping)
        values = {key: tree[key] for key in ("name", "in_channels") if key in tree} if is_mapping else tree
        header = build(_SpecHeader, values)
        net_family = family(header.name)
        options = {key: value for key, value in tree.items() if key not in values}
        supported = {
            key: value for key, value in options.items() if key not in _STORED_OPTIONS or net_family.has_option(key)
        }
        return cls(header.name, header.in_channels, **asdict(build(net_family.options, supported)))


@dataclass
class _SpecHeader:
    """Name and input channels of a stored specification."""

    name: str = "alexnet"
    in_channels: Annotated[int, Interval(ge=1, le=64)] = 1


_STORED_OPTIONS = ("norm", "fc", "geometry", "variant", "affine", "fc7")  # earlier versions stored them in every file


def is_registered(spec: NetSpec) -> bool:
    """Return whether :mod:`crosschannel.timm` registers a net with this spec (only nets with grey input)."""
    options = {name: getattr(spec.options, name) for name in ("norm", "fc", "geometry")}
    return spec.name in FAMILIES and spec == NetSpec(spec.name, **family(spec.name).supported_options(**options))


def build_net(spec: NetSpec, image_size: int | None = None) -> "nn.Module":
    """Build an untrained net from its specification.

    Args:
        spec: specification of the net.
        image_size: side of square inputs in pixels, for nets with position embeddings.

    Raises:
        UserError: unknown net name.
    """
    return resolve_name(f"crosschannel.models.{family(spec.name).import_path}").from_spec(spec, image_size)


def find_spec(net: "nn.Module") -> NetSpec | None:
    """Return the current specification of a net; None if the net was not built by this library."""
    spec = getattr(net, "spec", None)
    return spec if isinstance(spec, NetSpec) else None


def spec_of(net: "nn.Module") -> NetSpec:
    """Return the current specification of a net.

    Raises:
        UserError: the net was not built by this library.
    """
    spec = find_spec(net)
    if spec is None:
        raise UserError(f"{type(net).__name__} was not built by crosschannel; export it with the library that built it")
    return spec
