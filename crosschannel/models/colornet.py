"""ColorNet: the VGG-style colorization net of the paper's Fig. 2 ("v2" in the release), up to conv7.

Its decoder (conv8) and colour classifier form the pretext head: see :mod:`crosschannel.pretext.nets`.
"""

from dataclasses import asdict

from crosschannel.models.layers import Conv, LayeredNet
from crosschannel.models.nets import NetSpec

# block: (width, number of convolutions, stride of the last convolution, dilation)
_BLOCKS = {
    "conv1": (64, 2, 2, 1),
    "conv2": (128, 2, 2, 1),
    "conv3": (256, 3, 2, 1),
    "conv4": (512, 3, 1, 1),
    "conv5": (512, 3, 1, 2),
    "conv6": (512, 3, 1, 2),
    "conv7": (512, 3, 1, 1),
}


def colornet_rows() -> list[Conv]:
    """Return the layers of ColorNet, in order."""
    return [
        Conv(
            f"{block}_{i}",
            width,
            kernel=3,
            stride=stride if i == count else 1,
            pad=dilation,
            dilation=dilation,
            norm=i == count,
        )
        for block, (width, count, stride, dilation) in _BLOCKS.items()
        for i in range(1, count + 1)
    ]


class ColorNet(LayeredNet):
    """ColorNet with layers conv1_1, conv1_2, … conv7_3, at 1/8 resolution from conv3_3 on.

    Each block ends in BatchNorm, after the ReLU.

    Args:
        in_channels: 1 for L - 50.
        norm: BatchNorm at the end of each block.
        affine: whether BatchNorm has a scale and a shift.
    """

    def __init__(self, in_channels: int = 1, norm: bool = True, affine: bool = False):
        super().__init__(colornet_rows(), in_channels, norm, order="conv-relu-norm", affine=affine)

    @classmethod
    def from_spec(cls, spec: NetSpec, _image_size: int | None = None) -> "ColorNet":
        return cls(spec.in_channels, **asdict(spec.options))

    @property
    def spec(self) -> NetSpec:
        return NetSpec("colornet", self.in_channels, norm=self.has_norm, affine=self.is_affine)
