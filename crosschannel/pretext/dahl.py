"""Predict UV from luma with a residual decoder on VGG-16 (Dahl, "Automatic Colorization", 2016).

The method was published without a paper or a model definition; the architecture is the one on which reimplementations
agree.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from crosschannel.config.training import CropConfig
from crosschannel.models import InputSpec, NetSpec, build_net
from crosschannel.models.input_spec import LUMA
from crosschannel.models.layers import LayeredNet
from crosschannel.pretext.config import DahlConfig
from crosschannel.pretext.nets import freeze_unused
from crosschannel.pretext.task import (
    PairTask,
    PrimaryMetric,
    check_contrast,
    constant_error,
    moments,
    require_family,
)

_LAYERS = ("conv4_3", "conv3_3", "conv2_2", "conv1_2")
_MULTIPLE = 8  # sides of the input are padded to a multiple of this


class ResidualDecoder(nn.Module):
    """VGG-16 and a decoder that upsamples conv4_3 and adds conv3_3, conv2_2, conv1_2 and the input, after BatchNorm.

    Shape:
        (N, 3, H, W) → (N, 2, H, W), logits; their sigmoid is UV in 0..1.
    """

    stride = 1

    def __init__(self, net: LayeredNet):
        super().__init__()
        self.net = net
        width4, width3, width2, width1 = widths = [net.shapes[layer][0] for layer in _LAYERS]
        self.norms = nn.ModuleDict({layer: nn.BatchNorm2d(width) for layer, width in zip(_LAYERS, widths, strict=True)})
        self.norm = nn.BatchNorm2d(3)
        self.from4 = nn.Conv2d(width4, width3, 1)
        self.from3 = nn.Conv2d(width3, width2, 3, padding=1)
        self.from2 = nn.Conv2d(width2, width1, 3, padding=1)
        self.from1 = nn.Conv2d(width1, 3, 3, padding=1)
        self.mix = nn.Conv2d(3, 3, 3, padding=1)
        self.out = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = nn.functional.pad(x, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE), "replicate")
        maps = self.net.forward_features(x, _LAYERS)
        y = self.from4(self.norms["conv4_3"](maps["conv4_3"])).relu()
        for layer, conv in (("conv3_3", self.from3), ("conv2_2", self.from2), ("conv1_2", self.from1)):
            y = nn.functional.interpolate(y, scale_factor=2, mode="bilinear") + self.norms[layer](maps[layer])
            y = conv(y).relu()
        y = self.mix(y + self.norm(x)).relu()
        return self.out(y)[:, :, :height, :width]


class Dahl(PairTask):
    """Predict UV from luma, repeated to three channels; the loss is the mean squared error, by default averaged over
    UV and two blurred versions."""

    name = "dahl"
    decoder: ClassVar[str] = "crosschannel.colorize.decoders:DahlDecoder"
    primary_metric = PrimaryMetric.ratio("loss_share", "best constant colour")
    score_length = 6

    def __init__(self, config: DahlConfig, stride: int, classes: Sequence[str] = ()):
        super().__init__(config, stride, classes)
        blurs = [_gaussian(size) for size in (3, 5)] if config.blurs else []
        for index, kernel in enumerate(blurs):
            self.register_buffer(f"blur{index}", kernel, persistent=False)
        self.blur_count = len(blurs)

    @staticmethod
    def input_of(config: DahlConfig, crop: CropConfig) -> InputSpec:
        return InputSpec("luma", crop.size, crop.resize)

    @staticmethod
    def build(config: DahlConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> ResidualDecoder:
        require_family(spec, "vgg16", Dahl.name)
        net = ResidualDecoder(build_net(spec))
        freeze_unused(net, torch.zeros(1, spec.in_channels, 32, 32))  # conv5 does not feed the decoder
        return net

    def targets(self, rgb: Tensor, labels: Tensor) -> Tensor:
        """Return UV in 0..1, (N, 2, H, W)."""
        return rgb_to_yuv(rgb.float() / 255)[:, 1:]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error = outputs.float().sigmoid() - targets
        errors = [error]
        with torch.autocast(error.device.type, enabled=False):
            for index in range(self.blur_count):
                kernel = getattr(self, f"blur{index}")
                padding = kernel.shape[2] // 2
                padded = nn.functional.pad(error, (padding,) * 4, "replicate")
                errors.append(nn.functional.conv2d(padded, kernel, groups=2))  # equivalent to blurring both images
        return torch.stack([error.square().mean(1) for error in errors]).mean(0)

    @torch.no_grad()
    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss, half the squared error of UV, then the moments of UV."""
        loss = self.loss(outputs, targets).double().sum()
        error = (outputs.float().sigmoid() - targets).double().square().sum() / 2
        return torch.cat((torch.stack((loss, error)), moments(targets - 0.5)))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Compute metrics per pixel: ``loss``, ``mse`` of UV, ``mse_constant`` of the best constant colour, and the
        ratio ``loss_share`` of the last two."""
        loss, error, count, *other_moments = sums.tolist()
        constant, mse = constant_error(count, *other_moments) / count, error / count
        check_contrast(constant * 100**2)  # UV is in 0..1; the check expects a scale of about 100, like that of ab
        return {"loss": loss / count, "mse": mse, "mse_constant": constant, "loss_share": mse / constant}


def _gaussian(size: int) -> Tensor:
    """Return a Gaussian kernel for both channels of UV, (2, 1, size, size), with std size / 5 pixels."""
    profile = torch.exp(-((torch.arange(size) - size // 2) ** 2) / (2 * (size / 5) ** 2))
    kernel = torch.outer(profile, profile)
    return (kernel / kernel.sum()).expand(2, 1, size, size).contiguous()


def rgb_to_yuv(rgb: Tensor) -> Tensor:
    """Convert RGB in [0, 1] to YUV with U and V scaled and shifted into [0, 1], (N, 3, H, W) each."""
    red, green, blue = rgb.unbind(1)
    y = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    u, v = (blue - y) / (2 * (1 - LUMA[2])), (red - y) / (2 * (1 - LUMA[0]))
    return torch.stack((y, u + 0.5, v + 0.5), 1)
