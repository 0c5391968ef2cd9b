"""Pretext nets: a backbone and a head that predicts from its last map."""

import torch
from torch import Tensor, nn

from crosschannel.models.nets import NetSpec, build_net, family


class LinearHead(nn.Module):
    """A 1×1 convolution on the last map, zero-initialised if the backbone is initialised by k-means.

    Shape:
        (N, C, h, w) → (N, out, h, w).
    """

    is_zeroed_by_kmeans = True

    def __init__(self, in_channels: int, out: int):
        super().__init__()
        self.out = nn.Conv2d(in_channels, out, 1)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class Decoder(nn.Module):
    """ColorNet's conv8 and classifier: a 2× transposed convolution, two convolutions, and a 1×1 output convolution.

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
    """A backbone and a head, whose outputs are interpolated to every ``stride``-th pixel.

    Args:
        net: the backbone; its input is L - 50.
        head: module that maps the backbone's last map to (N, out, h, w).
        stride: output stride, in input pixels; the first output is at pixel 0.
        head_stride: stride of the head's map, in input pixels.
        origin: input pixel on which the first point of the head's map is centred.

    Shape:
        (N, 1, H, W) → (N, out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, net: nn.Module, head: nn.Module, stride: int, head_stride: int, origin: float = 0.0):
        super().__init__()
        self.net, self.head, self.stride = net, head, stride
        self.head_stride, self.origin = head_stride, origin

    def forward(self, x: Tensor) -> Tensor:
        height, width = ((side + self.stride - 1) // self.stride for side in x.shape[2:])
        outputs = self.head(self.net(x))
        if self.head_stride == self.stride:
            return outputs[:, :, :height, :width]
        grids = self.stride, self.head_stride, self.origin, outputs.device
        rows = interpolation(height, outputs.shape[2], *grids).to(outputs.dtype)
        columns = interpolation(width, outputs.shape[3], *grids).to(outputs.dtype)
        x = outputs.permute(0, 2, 3, 1)  # channels-last, so that both products multiply a few large matrices
        x = (rows @ x.flatten(2)).unflatten(2, x.shape[2:])
        return (columns @ x).permute(0, 3, 1, 2)


def interpolation(
    targets: int, points: int, stride: int, head_stride: int, origin: float, device: torch.device | None = None
) -> Tensor:
    """Return the matrix that interpolates linearly from points at pixels origin + head_stride·i to pixels stride·j.

    Returns:
        (targets, points) float32 with rows that sum to 1; targets beyond the outermost points repeat their values.
    """
    position = ((stride * torch.arange(targets, device=device) - origin) / head_stride).clamp(0, points - 1)
    return (1 - (position[:, None] - torch.arange(points, device=device)).abs()).clamp(min=0)


def build_pretext(spec: NetSpec, outputs: int, image_size: int | None = None) -> PretextNet:
    """Build a colorization net. ColorNet with its decoder predicts every 4th pixel; other backbones predict every 8th
    with a 1×1 convolution on their last map.

    Args:
        spec: architecture of the backbone.
        outputs: number of output channels: 313 logits, or 2 for regression of ab.
        image_size: side of the input, in pixels, for nets with position embeddings.
    """
    net = build_net(spec, image_size)
    if family(spec.name).has_decoder:
        return PretextNet(net, Decoder(net.out_channels, outputs), stride=4, head_stride=4)
    pretext_net = PretextNet(net, LinearHead(net.out_channels, outputs), 8, net.last_stride, net.last_origin)
    if getattr(net, "computes_past_its_layers", False):
        freeze_unused(pretext_net, torch.zeros(1, spec.in_channels, image_size or 224, image_size or 224))
    return pretext_net


def freeze_unused(net: nn.Module, inputs: Tensor) -> None:
    """Freeze parameters that do not affect the outputs, such as a final norm; DDP raises an error for parameters
    without a gradient."""
    net.eval()(inputs).sum().backward()
    for parameter in net.train().parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
