"""VGG-16 (Simonyan and Zisserman, 2015; configuration D, torchvision's layout) with named layers."""

from crosschannel.models.layers import Conv, LayeredNet, Pool, Row

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def _rows() -> list[Row]:
    rows: list[Row] = []
    for block, (width, count) in enumerate(_BLOCKS, 1):
        rows += [Conv(f"conv{block}_{i}", width, kernel=3, pad=1) for i in range(1, count + 1)]
        rows.append(Pool(f"pool{block}", 2, 2))
    return rows[:-1]  # pool5 only feeds the classifier, which this net does not have


class VGG16(LayeredNet):
    """Layers conv1_1, conv1_2, pool1, … conv5_3: the thirteen convolutions, stride 16 at the end.

    Args:
        in_channels: 1 for L - 50, 3 for Lab or RGB.
        norm: BatchNorm between every convolution and its ReLU.
        affine: with a scale and a shift.
    """

    def __init__(self, in_channels: int = 1, norm: bool = True, affine: bool = False):
        super().__init__(_rows(), in_channels, norm, affine=affine)
