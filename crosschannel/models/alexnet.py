"""AlexNet for representation learning: CaffeNet without LRN in two geometries that share weights, and its variants in
the literature.

"padded" is the geometry of pretraining: fully convolutional, with maps on the pixel grid (position i is centred on
pixel 4i in conv1, 8i in pool1 and 16i in pool2). "probe" is the geometry of transfer protocols, for 227 px crops.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from torch import nn

from crosschannel.errors import UserError
from crosschannel.models.layers import LRN, Conv, LayeredNet, Pool, Row
from crosschannel.models.nets import Geometry, NetSpec


@dataclass(frozen=True)
class Variant:
    """Architecture options that differ between published AlexNets.

    Attributes:
        widths: output channels of conv1 to conv5.
        groups: number of groups in conv2, conv4 and conv5.
        pad: padding of conv1 in "probe" geometry.
        ceil: whether pools round output sizes up, as Caffe does.
        lrn: local response normalisation: after pool1 and pool2 (CaffeNet), before them, or none ("").
        affine: whether BatchNorm, if any, has a scale and a shift.
        fc_norm: whether fc6 and fc7 have BatchNorm.
        fc_bias: whether fc6 and fc7 have biases.
        slope: negative slope of LeakyReLU; 0 for ReLU.
        halves: split every layer into two independent halves: one uses only L, the other only ab (split-brain).
    """

    widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    groups: int = 2
    pad: int = 0
    ceil: bool = True
    lrn: Literal["", "after-pool", "before-pool"] = ""
    affine: bool = False
    fc_norm: bool = True
    fc_bias: bool = True
    slope: float = 0.0
    halves: bool = False


_NARROW = (64, 192, 384, 256, 256)
VARIANTS = {
    "crosschannel": Variant(),  # Zhang et al. 2016; also the released context, inpainting and k-means nets without LRN
    "split-brain": Variant(halves=True),  # Zhang et al. 2017
    "bigan": Variant(slope=0.2),  # Donahue et al. 2017
    "caffenet": Variant(lrn="after-pool"),
    "alexnet-lrn": Variant(lrn="before-pool"),  # Krizhevsky et al. 2012, BVLC's AlexNet
    "ungrouped": Variant(groups=1),  # released context prediction net
    "ungrouped-caffenet": Variant(groups=1, lrn="after-pool"),
    "ungrouped-alexnet-lrn": Variant(groups=1, lrn="before-pool"),
    "narrow": Variant(_NARROW, groups=1, pad=2),  # RotNet in Caffe
    "deepcluster": Variant(groups=1, pad=2, ceil=False, affine=True, fc_norm=False),
    "torchvision": Variant(_NARROW, groups=1, pad=2, ceil=False),
    "rotnet": Variant(_NARROW, groups=1, pad=2, ceil=False, affine=True, fc_bias=False),
}


def _rows(geometry: Geometry, fc: int, fc7: int, variant: Variant) -> list[Row]:
    padded = geometry == "padded"
    pad, ceil = (1, True) if padded else (0, variant.ceil)
    widths, groups, slope = variant.widths, variant.groups, variant.slope
    halves = 2 if variant.halves else 1
    rows: list[Row] = [
        Conv("conv1", widths[0], 11, stride=4, pad=5 if padded else variant.pad, slope=slope, split=variant.halves),
        Pool("pool1", 3, 2, pad, ceil),
        Conv("conv2", widths[1], 5, pad=2, groups=groups, slope=slope),
        Pool("pool2", 3, 2, pad, ceil),
        Conv("conv3", widths[2], 3, pad=1, groups=halves, slope=slope),
        Conv("conv4", widths[3], 3, pad=1, groups=groups, slope=slope),
        Conv("conv5", widths[4], 3, pad=1, groups=groups, slope=slope),
        Pool("pool5", 3, 1 if padded else 2, pad, ceil),
    ]
    if variant.lrn:
        for number in (2, 1):
            index = next(i for i, row in enumerate(rows) if row.name == f"pool{number}")
            rows.insert(index + (variant.lrn == "after-pool"), LRN(f"norm{number}"))
    if fc:
        options = {"norm": variant.fc_norm, "bias": variant.fc_bias, "slope": slope, "groups": halves}
        shape = {"pad": 5, "dilation": 2} if padded else {}
        rows += [Conv("fc6", fc, 6, **shape, **options), Conv("fc7", fc7 or fc, 1, **options)]
    return rows


class AlexNet(LayeredNet):
    """AlexNet with layers conv1, pool1, conv2, pool2, conv3, conv4, conv5, pool5, fc6, fc7 (all as maps).

    Args:
        in_channels: 1 for L - 50, 3 for Lab or RGB.
        geometry: "padded" (pretraining) or "probe" (transfer).
        norm: BatchNorm between each convolution and its ReLU.
        fc: width of fc6 and fc7; 0 omits both layers.
        variant: key of ``VARIANTS``. Variants with LRN have two more layers, norm1 and norm2.
        fc7: width of fc7 if it differs from fc6, else 0.

    Shape:
        For a 227 px crop in probe geometry: conv1 55², pool1 27², conv2 27², pool2 13², conv3-5 13², pool5 6², fc 1².
    """

    last_stride: ClassVar[int] = 16  # in padded geometry, which aligns the last map with the pixel grid
    last_origin: ClassVar[float] = 0.0

    def __init__(
        self,
        in_channels: int = 1,
        geometry: Geometry = "padded",
        norm: bool = True,
        fc: int = 4096,
        variant: str = "crosschannel",
        fc7: int = 0,
    ):
        self.variant, self.variant_name = VARIANTS[variant], variant
        if self.variant.halves and in_channels != 3:
            raise UserError(f"a {variant} net requires Lab input (3 channels), not {in_channels}; pass input=lab")
        super().__init__(_rows(geometry, fc, fc7, self.variant), in_channels, norm, affine=self.variant.affine)
        self.geometry, self.fc, self.fc7_width = geometry, fc, fc7
        for name in ("fc6", "fc7") if fc else ():
            conv = self.get_submodule(name).conv
            nn.init.normal_(conv.weight, std=0.005)
            if conv.bias is not None:
                nn.init.ones_(conv.bias)

    @classmethod
    def from_spec(cls, spec: NetSpec, _image_size: int | None = None) -> "AlexNet":
        options = spec.options
        if options.variant not in VARIANTS:
            raise UserError(f"unknown AlexNet variant {options.variant!r}; available: {', '.join(VARIANTS)}")
        return cls(spec.in_channels, **asdict(options))

    @property
    def spec(self) -> NetSpec:
        options = {"norm": self.has_norm, "fc": self.fc, "geometry": self.geometry}
        return NetSpec("alexnet", self.in_channels, **options, variant=self.variant_name, fc7=self.fc7_width)

    def set_geometry(self, geometry: Geometry) -> "AlexNet":
        """Switch the geometry in place; the weights are unchanged."""
        for row in _rows(geometry, self.fc, self.fc7_width, self.variant):
            module = self.get_submodule(row.name)
            if isinstance(row, Conv):
                module.conv.padding = (row.pad, row.pad)
                module.conv.dilation = (row.dilation, row.dilation)
            elif isinstance(row, Pool):
                module.stride, module.padding, module.ceil_mode = row.stride, row.pad, row.ceil
        self.geometry = geometry
        return self

    def pad_trunk(self) -> "AlexNet":
        """Pad all layers below pool5 as in "padded" geometry, in place, which aligns their maps with the pixel grid."""
        for row in _rows("padded", 0, 0, self.variant):
            module = self.get_submodule(row.name)
            if isinstance(row, Conv):
                module.conv.padding = (row.pad, row.pad)
            elif isinstance(row, Pool) and row.name != "pool5":
                module.padding, module.ceil_mode = row.pad, row.ceil
        return self
