"""A backbone and the head that predicts colour from its last map."""

import math

from torch import Tensor, nn

from crosschannel.models.build import NetSpec, build_net
from crosschannel.models.colornet import ColorNet


class LinearHead(nn.Module):
    """A 1×1 convolution on the last map.

    Shape:
        (N, C, h, w) → (N, out, h, w).
    """

    def __init__(self, in_channels: int, out: int):
        super().__init__()
        self.out = nn.Conv2d(in_channels, out, 1)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class Decoder(nn.Module):
    """ColorNet's conv8 and classifier: one 2× deconvolution, two convolutions, 1×1 to the outputs.

    Shape:
        (N, 512, h, w) → (N, out, 2h, 2w).
    """

    def __init__(self, in_channels: int, out: int, width: int = 256):
        super().__init__()
        self.conv8_1 = nn.ConvTranspose2d(in_channels, width, 4, stride=2, padding=1)
        self.conv8_2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv8_3 = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv8_1, self.conv8_2, self.conv8_3):
            x = conv(x).relu()
        return self.out(x)


class PretextNet(nn.Module):
    """L - 50 → what is predicted at every ``stride``-th pixel.

    Args:
        net: a backbone net of stride ``head_stride`` once its head is on.
        head: last map → (N, out, h, w).
        stride: input pixels per target pixel.

    Shape:
        (N, 1, H, W) → (N, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, net: nn.Module, head: nn.Module, stride: int):
        super().__init__()
        self.net, self.head, self.stride = net, head, stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = (math.ceil(side / self.stride) for side in x.shape[2:])
        return to_grid(self.head(self.net(x)), height, width)


def to_grid(logits: Tensor, height: int, width: int) -> Tensor:
    """Bring logits of a coarser grid to the target grid, both with their first points on pixel (0, 0).

    A net of twice the target's stride has a point on every other target: the map is upsampled with its corner
    points fixed and what lies past the image is cut off. Other ratios are resized to the target's size.
    """
    h, w = logits.shape[2:]
    if (h, w) == (height, width):
        return logits
    doubled = (2 * h - 1, 2 * w - 1)
    fits = all(0 <= have - want <= 2 for have, want in zip(doubled, (height, width), strict=True))
    if not fits:
        return nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
    logits = nn.functional.interpolate(logits, doubled, mode="bilinear", align_corners=True)
    return logits[:, :, :height, :width]


def build_pretext(spec: NetSpec, outputs: int, image_size: int | None = None) -> PretextNet:
    """The pretext net of a backbone: ColorNet predicts every 4th pixel through its decoder, the others every 8th
    from a 1×1 convolution on their last map.

    Args:
        spec: the backbone.
        outputs: 313 logits, or 2 for the regression of ab.
        image_size: side of square inputs, for nets with position embeddings.
    """
    net = build_net(spec, image_size)
    if isinstance(net, ColorNet):
        return PretextNet(net, Decoder(net.out_channels, outputs), stride=4)
    return PretextNet(net, LinearHead(net.out_channels, outputs), stride=8)
