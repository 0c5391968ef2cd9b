"""AlexNet for feature learning: CaffeNet without LRN, one set of weights, two geometries.

"padded" is the pretraining net, a fully convolutional one whose maps sit on the pixel grid (conv1's output i is
centred on pixel 4i, pool1's on 8i, pool2's on 16i); "probe" is the net of the transfer protocols at a 227 crop.
"""

from typing import Literal

from torch import nn

from crosschannel.models.layers import Conv, LayeredNet, Pool, Row

Geometry = Literal["padded", "probe"]


def _rows(geometry: Geometry, fc: int) -> list[Row]:
    padded = geometry == "padded"
    pool = 1 if padded else 0
    rows: list[Row] = [
        Conv("conv1", 96, 11, stride=4, pad=5 if padded else 0),
        Pool("pool1", 3, 2, pool),
        Conv("conv2", 256, 5, pad=2, groups=2),
        Pool("pool2", 3, 2, pool),
        Conv("conv3", 384, 3, pad=1),
        Conv("conv4", 384, 3, pad=1, groups=2),
        Conv("conv5", 256, 3, pad=1, groups=2),
        Pool("pool5", 3, 1 if padded else 2, pool),
    ]
    if fc:
        rows += [
            Conv("fc6", fc, 6, pad=5 if padded else 0, dilation=2 if padded else 1),
            Conv("fc7", fc, 1),
        ]
    return rows


class AlexNet(LayeredNet):
    """Layers conv1, pool1, conv2, pool2, conv3, conv4, conv5, pool5, fc6, fc7 (all as maps).

    Args:
        in_channels: 1 for L - 50, 3 for Lab or RGB.
        geometry: "padded" (pretraining) or "probe" (transfer).
        norm: affine-free BatchNorm between every convolution and its ReLU.
        fc: width of fc6 and fc7; 0 leaves them out.

    Shape:
        At a 227 crop in probe geometry: conv1 55², pool1 27², conv2 27², pool2 13², conv3-5 13², pool5 6², fc 1².
    """

    def __init__(self, in_channels: int = 1, geometry: Geometry = "padded", norm: bool = True, fc: int = 4096):
        super().__init__(_rows(geometry, fc), in_channels, norm)
        self.geometry, self.fc = geometry, fc
        for name in ("fc6", "fc7") if fc else ():
            conv = self.get_submodule(name).conv
            nn.init.normal_(conv.weight, std=0.005)
            nn.init.ones_(conv.bias)

    def set_geometry(self, geometry: Geometry) -> "AlexNet":
        """Switch the geometry in place; the weights stay."""
        for row in _rows(geometry, self.fc):
            module = self.get_submodule(row.name)
            if isinstance(row, Conv):
                module.conv.padding = (row.pad, row.pad)
                module.conv.dilation = (row.dilation, row.dilation)
            else:
                module.stride, module.padding = row.stride, row.pad
        self.geometry = geometry
        return self
