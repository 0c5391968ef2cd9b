"""Sequential nets, each defined by a table with one row per layer."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

Order = Literal["conv-norm-relu", "conv-relu-norm"]


@dataclass(frozen=True)
class Conv:
    """A convolution, its ReLU and, if the net has normalisation, its BatchNorm.

    Attributes:
        name: layer name.
        out: output channels.
        kernel, stride, pad, dilation: geometry of the convolution.
        groups: number of groups.
        norm: whether the row has BatchNorm in a net with normalisation.
        bias: whether the convolution has a bias.
        slope: negative slope of LeakyReLU; 0 for ReLU.
        split: whether the convolution is a :class:`SplitConv`.
    """

    name: str
    out: int
    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    groups: int = 1
    norm: bool = True
    bias: bool = True
    slope: float = 0.0
    split: bool = False


@dataclass(frozen=True)
class Pool:
    """Max pooling. With ``ceil``, output sizes are rounded up, as in Caffe."""

    name: str
    kernel: int
    stride: int
    pad: int = 0
    ceil: bool = True


@dataclass(frozen=True)
class LRN:
    """Local response normalisation across channels; the defaults are those of Krizhevsky et al. (2012)."""

    name: str
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75


Row = Conv | Pool | LRN


class SplitConv(nn.Conv2d):
    """A convolution of Lab input in which the first half of the filters uses only L, and the second half only ab.

    All other weights are zero and remain zero in training.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        mask = torch.zeros(self.out_channels, self.in_channels, 1, 1)
        mask[: self.out_channels // 2, :1] = 1
        mask[self.out_channels // 2 :, 1:] = 1
        self.register_buffer("mask", mask, persistent=False)
        self.mask_weights()

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set the weights between the halves to zero; needed after the weights have been re-initialised."""
        self.weight.mul_(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


def conv_block(row: Conv, channels: int, norm: bool, affine: bool, order: Order) -> nn.Sequential:
    """Build the modules of a row: ``conv``, ``relu`` and, if requested, BatchNorm as ``norm``."""
    conv_class = SplitConv if row.split else nn.Conv2d
    conv = conv_class(channels, row.out, row.kernel, row.stride, row.pad, row.dilation, row.groups, row.bias)
    modules: dict[str, nn.Module] = {"conv": conv}
    if norm and row.norm:
        modules["norm"] = nn.BatchNorm2d(row.out, affine=affine)
    modules["relu"] = nn.LeakyReLU(row.slope, inplace=True) if row.slope else nn.ReLU(inplace=True)
    if order == "conv-relu-norm" and "norm" in modules:
        modules["norm"] = modules.pop("norm")
    return nn.Sequential(OrderedDict(modules))


def dense(block: nn.Sequential, x: Tensor) -> Tensor:
    """Apply a :func:`conv_block` to a map, as a matrix product if its kernel covers the whole map.

    This is faster than the convolution, which would first copy all weights to another memory format.

    Shape:
        (N, C, h, w) → (N, out, h', w').
    """
    conv = block.conv
    covers_map = conv.kernel_size == tuple(x.shape[2:]) and conv.padding == (0, 0) and conv.groups == 1
    if not covers_map or conv.dilation != (1, 1):
        return block(x)
    order = (0, 1, 2, 3) if conv.weight.is_contiguous() else (0, 2, 3, 1)  # memory order of the weights
    rows, weight = x.permute(order).flatten(1), conv.weight.permute(order).flatten(1)
    y = nn.functional.linear(rows, weight, conv.bias)[:, :, None, None]
    for name, module in block.named_children():
        y = y if name == "conv" else module(y)
    return y


class LayeredNet(nn.Module):
    """A sequential net of named layers, defined by a table.

    ``forward`` can be scripted and traced symbolically (``torch.jit.script``, ``torch.fx``).

    Args:
        rows: table with one row per layer, in order.
        in_channels: number of input channels.
        norm: use BatchNorm in rows that allow it.
        order: position of BatchNorm, before or after the ReLU.
        affine: whether BatchNorm has a scale and a shift.

    Attributes:
        layers: layer names, in order.

    Shape:
        input (N, in_channels, H, W); every layer (N, C, h, w).
    """

    is_sequential: ClassVar[bool] = True
    runs_user_code: ClassVar[bool] = False

    __jit_unused_properties__ = ("shapes", "origins", "in_channels", "has_norm", "is_affine", "spec")

    def __init__(
        self,
        rows: Sequence[Row],
        in_channels: int,
        norm: bool = True,
        order: Order = "conv-norm-relu",
        affine: bool = False,
    ):
        super().__init__()
        self.layers = tuple(row.name for row in rows)
        channels = in_channels
        for row in rows:
            if isinstance(row, Conv):
                self.add_module(row.name, conv_block(row, channels, norm, affine, order))
                channels = row.out
            elif isinstance(row, LRN):
                self.add_module(row.name, nn.LocalResponseNorm(row.size, row.alpha, row.beta))
            else:
                self.add_module(row.name, nn.MaxPool2d(row.kernel, row.stride, row.pad, ceil_mode=row.ceil))
        self.out_channels = channels

    def forward_features(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the maps of the requested layers; the forward pass stops after the last of them."""
        features: dict[str, Tensor] = {}
        for name in self.layers[: 1 + max(self.layers.index(layer) for layer in layers)]:
            x = self._modules[name](x)
            if name in layers:
                features[name] = x
        return features

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return self._modules[self.layers[0]].conv.in_channels

    @property
    def has_norm(self) -> bool:
        """Whether the net has BatchNorm; False after it was absorbed."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.modules())

    @property
    def is_affine(self) -> bool:
        """Whether BatchNorm has a scale and a shift."""
        return any(isinstance(module, nn.BatchNorm2d) and module.affine for module in self.modules())

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Channels and stride (in input pixels) by layer."""
        shapes, channels, stride = {}, 0, 1
        for name in self.layers:
            module = self._modules[name]
            if isinstance(module, nn.Sequential):
                channels, stride = module.conv.out_channels, stride * module.conv.stride[0]
            elif isinstance(module, nn.MaxPool2d):
                stride *= module.stride
            shapes[name] = channels, stride
        return shapes

    @property
    def origins(self) -> dict[str, float]:
        """Input pixel (counted from 0) on which the first position of the map is centred, by layer; negative if that
        is outside the image."""
        origins, origin, stride_before = {}, 0.0, 1
        for name, (_, stride_after) in self.shapes.items():
            module = self._modules[name]
            window = module.conv if isinstance(module, nn.Sequential) else module
            if isinstance(window, nn.Conv2d | nn.MaxPool2d):
                kernel, pad, dilation = (
                    value[0] if isinstance(value, tuple) else value
                    for value in (window.kernel_size, window.padding, window.dilation)
                )
                origin += stride_before * (dilation * (kernel - 1) / 2 - pad)
            origins[name], stride_before = origin, stride_after
        return origins


def can_absorb(net: LayeredNet) -> bool:
    """Return whether the net has BatchNorm that :func:`absorb_batchnorm` can fold into convolutions."""
    blocks = [block for block in net.children() if isinstance(getattr(block, "norm", None), nn.BatchNorm2d)]
    return bool(blocks) and all(list(block._modules).index("norm") == 1 for block in blocks)


@torch.no_grad()
def absorb_batchnorm(net: LayeredNet) -> LayeredNet:
    """Fold every BatchNorm into the preceding convolution, in place; exact in eval mode.

    Raises:
        ValueError: a BatchNorm follows the ReLU (ColorNet): folding it into the *next* convolution would change the
            zero-padded borders.
    """
    for name, block in net.named_children():
        norm = getattr(block, "norm", None)
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        if list(block._modules).index("norm") != 1:
            raise ValueError(f"{name}: a BatchNorm after the ReLU cannot be absorbed exactly")
        scale = (norm.running_var + norm.eps).rsqrt()
        shift = -norm.running_mean * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        block.conv.weight.mul_(scale[:, None, None, None])
        if block.conv.bias is None:
            block.conv.bias = nn.Parameter(torch.zeros_like(shift))
        block.conv.bias.mul_(scale).add_(shift)
        del block.norm
    return net


@torch.no_grad()
def widen_to_lab(net: LayeredNet) -> LayeredNet:
    """Add two input channels (a, b) with zero weights to a grey net's first convolution, in place.

    The output is unchanged, and fine-tuning can then use colour.

    Raises:
        ValueError: the net does not have exactly one input channel.
    """
    block = net._modules[net.layers[0]]
    grey_conv = block.conv
    if grey_conv.in_channels != 1:
        raise ValueError(f"only a grey net can be widened to Lab; this one has {grey_conv.in_channels} input channels")
    wide_conv = nn.Conv2d(
        3,
        grey_conv.out_channels,
        grey_conv.kernel_size,
        grey_conv.stride,
        grey_conv.padding,
        grey_conv.dilation,
        grey_conv.groups,
    ).to(grey_conv.weight)
    wide_conv.weight.zero_()[:, :1] = grey_conv.weight
    wide_conv.bias.copy_(grey_conv.bias)
    block.conv = wide_conv
    return net
