"""Autoencoder: reconstruct RGB through AlexNet's pool5, the baseline of Table 2. The paper does not specify the
architecture; this one is a reconstruction."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crosschannel.config.training import CropConfig
from crosschannel.data import ImageBatch
from crosschannel.errors import UserError
from crosschannel.models import InputSpec, NetSpec, build_net
from crosschannel.pretext.config import AutoencoderConfig
from crosschannel.pretext.task import (
    PairTask,
    PrimaryMetric,
    as_arrays,
    check_contrast,
    constant_error,
    moments,
    require_family,
    stack_rows,
)

_WIDTHS = (256, 128, 96, 64, 32)


class EncoderDecoder(nn.Module):
    """A backbone, whose last map is subsampled to stride 32, and a decoder of five transposed convolutions.

    For AlexNet at 180 px the bottleneck is 6×6×256, about a tenth as many values as the input.

    Shape:
        (N, 3, H, W) → (N, 3, H, W).
    """

    stride = 1

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.subsampling = net, 32 // net.last_stride
        widths = (net.out_channels, *_WIDTHS)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1)
            for channels_in, channels_out in pairwise(widths)
        )
        self.out = nn.Conv2d(_WIDTHS[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)[:, :, :: self.subsampling, :: self.subsampling]
        for up in self.ups:
            y = up(y).relu()
        return self.out(y)[:, :, : x.shape[2], : x.shape[3]]


class Autoencoder(PairTask):
    """Reconstruct normalised RGB; the loss is the squared error."""

    name = "autoencoder"
    rows: ClassVar[tuple[str, ...]] = ("predicted", "truth")
    primary_metric = PrimaryMetric.ratio("loss_share", "best constant colour")
    score_length = 6

    @staticmethod
    def input_of(config: AutoencoderConfig, crop: CropConfig) -> InputSpec:
        return InputSpec("rgb", crop.size, crop.resize)

    @staticmethod
    def build(config: AutoencoderConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> EncoderDecoder:
        require_family(spec, "alexnet", Autoencoder.name)
        if spec.options.fc:
            raise UserError(f"the task autoencoder ends at pool5: model.fc must be 0, got {spec.options.fc}")
        return EncoderDecoder(build_net(spec))

    def targets(self, rgb: Tensor, labels: Tensor) -> Tensor:
        return self.inputs(rgb)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute half the squared distance at every pixel, (N, H, W)."""
        return (outputs.float() - targets).square().sum(1) / 2

    @torch.no_grad()
    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss, then the moments of the targets."""
        loss = (outputs.double() - targets).square().sum() / 2
        return torch.cat((loss[None], moments(targets)))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Compute ``loss`` per pixel, ``loss_constant`` of the best constant colour, and their ratio ``loss_share``."""
        loss, count, *other_moments = sums.tolist()
        constant = constant_error(count, *other_moments)
        check_contrast(constant / count)
        return {"loss": loss / count, "loss_constant": constant / count, "loss_share": loss / constant}

    @torch.inference_mode()
    def pictures(self, net: nn.Module, batch: ImageBatch) -> np.ndarray:
        mean, std = (torch.tensor(v).to(batch.images.device)[:, None, None] for v in (self.input.mean, self.input.std))
        predicted = (net(self.inputs(batch.images)).float() * std + mean).clamp(0, 1) * 255
        return stack_rows(as_arrays(predicted.round().byte()), as_arrays(batch.images))
