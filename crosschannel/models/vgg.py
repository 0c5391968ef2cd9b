"""VGG-16 (Simonyan and Zisserman, 2015; configuration D in torchvision's layout) with named layers."""

from dataclasses import asdict
from typing import ClassVar

from torch import nn

from crosschannel.models.layers import Conv, LayeredNet, Pool, Row
from crosschannel.models.nets import NetSpec

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def _rows(fc: int) -> list[Row]:
    rows: list[Row] = []
    for block, (width, count) in enumerate(_BLOCKS, 1):
        rows += [Conv(f"conv{block}_{i}", width, kernel=3, pad=1) for i in range(1, count + 1)]
        rows.append(Pool(f"pool{block}", 2, 2, ceil=False))
    if not fc:
        return rows[:-1]  # pool5 only feeds fc6
    return [*rows, Conv("fc6", fc, 7, norm=False), Conv("fc7", fc, 1, norm=False)]


class VGG16(LayeredNet):
    """VGG-16 with layers conv1_1, conv1_2, pool1, … conv5_3 (stride 16), and optionally pool5, fc6, fc7.

    Args:
        in_channels: 1 for L - 50, 3 for Lab or RGB.
        norm: BatchNorm between each convolution and its ReLU, except in fc6 and fc7.
        affine: whether BatchNorm has a scale and a shift.
        fc: width of fc6 (a 7×7 convolution) and fc7; 0 omits both layers and pool5.

    Shape:
        For a 224 px crop: conv1 224², conv2 112², conv3 56², conv4 28², conv5 14², pool5 7², fc 1².
    """

    last_stride: ClassVar[int] = 16
    last_origin: ClassVar[float] = 7.5  # because of four 2×2 pools

    def __init__(self, in_channels: int = 1, norm: bool = True, affine: bool = False, fc: int = 0):
        super().__init__(_rows(fc), in_channels, norm, affine=affine)
        self.fc = fc
        for name in ("fc6", "fc7") if fc else ():
            conv = self.get_submodule(name).conv
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    @classmethod
    def from_spec(cls, spec: NetSpec, _image_size: int | None = None) -> "VGG16":
        return cls(spec.in_channels, **asdict(spec.options))

    @property
    def spec(self) -> NetSpec:
        return NetSpec("vgg16", self.in_channels, norm=self.has_norm, fc=self.fc, affine=self.is_affine)
