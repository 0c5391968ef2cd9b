"""Split-brain autoencoder: disjoint halves of a net predict ab from L and L from ab (Zhang, Isola, Efros, CVPR 2017).

In transfer the input is Lab, and the features of both halves are concatenated.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from crosschannel.color import ABQuantizer, rgb_to_lab
from crosschannel.color.quantizer import Q
from crosschannel.config.training import CropConfig
from crosschannel.errors import UserError
from crosschannel.models import InputSpec, NetSpec, build_net
from crosschannel.pretext.classification import sparse_cross_entropy
from crosschannel.pretext.config import SplitBrainConfig
from crosschannel.pretext.task import (
    PairTask,
    PrimaryMetric,
    check_contrast,
    constant_cross_entropy,
    require_family,
)


class Halves(NamedTuple):
    """Logits of ab bins (N, 313, h, w), predicted from L, and of lightness bins (N, K, h, w), predicted from ab."""

    ab: Tensor
    lightness: Tensor


class SplitBrainNet(nn.Module):
    """AlexNet split into two halves, each with a 1×1 convolution on its last map.

    Shape:
        (N, 3, H, W) → :class:`Halves` at every 16th pixel (180 px: 12×12).
    """

    stride = 16

    def __init__(self, net: nn.Module, lightness_bins: int):
        super().__init__()
        self.net = net
        self.ab = nn.Conv2d(net.out_channels // 2, Q, 1)
        self.lightness = nn.Conv2d(net.out_channels // 2, lightness_bins, 1)
        for conv in (self.ab, self.lightness):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Halves:
        lightness_half, ab_half = self.net(x).chunk(2, 1)
        height, width = ((side + self.stride - 1) // self.stride for side in x.shape[2:])
        return Halves(self.ab(lightness_half)[:, :, :height, :width], self.lightness(ab_half)[:, :, :height, :width])


class SplitBrain(PairTask):
    """Predict 313 ab bins from L, and bins of L from ab; the loss is the sum of both cross-entropies."""

    name = "split-brain"
    decoder: ClassVar[str] = "crosschannel.colorize.decoders:SplitBrainDecoder"
    primary_metric = PrimaryMetric.ratio("kl_share", "best constant distributions", "KL divergence")

    def __init__(self, config: SplitBrainConfig, stride: int, classes: Sequence[str] = ()):
        super().__init__(config, stride, classes)
        self.quantizer = ABQuantizer(config.neighbours, config.sigma)
        self.score_length = 4 + Q + config.lightness_bins

    @staticmethod
    def input_of(config: SplitBrainConfig, crop: CropConfig) -> InputSpec:
        return InputSpec("lab", crop.size, crop.resize)

    @staticmethod
    def build(config: SplitBrainConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> SplitBrainNet:
        require_family(spec, "alexnet", SplitBrain.name)
        if spec.options.variant not in ("crosschannel", "split-brain"):
            raise UserError(
                f"the task split-brain uses its own AlexNet variant; remove model.variant (got {spec.options.variant})"
            )
        return SplitBrainNet(build_net(spec.replace(variant="split-brain")), config.lightness_bins)

    def targets(self, rgb: Tensor, labels: Tensor) -> Tensor:
        """Return Lab of every 16th pixel."""
        return rgb_to_lab(rgb[:, :, :: self.stride, :: self.stride])

    def _lightness_bins(self, lab: Tensor) -> Tensor:
        bins = self.config.lightness_bins
        return (lab[:, 0] * (bins / 100)).long().clamp(0, bins - 1)

    def loss(self, outputs: Halves, targets: Tensor) -> Tensor:
        ab_loss = sparse_cross_entropy(outputs.ab, *self.quantizer.encode(targets[:, 1:]))
        return ab_loss + _cross_entropy(outputs.lightness.float(), self._lightness_bins(targets))

    @torch.no_grad()
    def score(self, outputs: Halves, targets: Tensor) -> Tensor:
        """Return sums over pixels: count, cross-entropies of ab and L, entropy of the ab targets, histograms of the ab
        and L targets."""
        indices, weights = self.quantizer.encode(targets[:, 1:])
        bins = self._lightness_bins(targets)
        ab_loss = sparse_cross_entropy(outputs.ab, indices, weights).double().sum()
        lightness_loss = _cross_entropy(outputs.lightness.double(), bins).sum()
        entropy = -torch.special.xlogy(weights.double(), weights.double()).sum()
        count = torch.tensor(float(bins.numel())).to(ab_loss)
        ab_histogram = torch.zeros(Q, dtype=torch.float64, device=weights.device)
        ab_histogram.scatter_add_(0, indices.flatten(), weights.double().flatten())
        lightness_histogram = torch.bincount(bins.flatten(), minlength=self.config.lightness_bins).double()
        return torch.cat((torch.stack((count, ab_loss, lightness_loss, entropy)), ab_histogram, lightness_histogram))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Compute metrics from summed scores.

        ``loss`` is the sum of both cross-entropies per pixel. ``kl_share_ab`` and ``kl_share_lightness`` are the KL
        divergences of the halves, each divided by that of the best constant distribution for these images.
        ``kl_share`` is the same ratio for the sum of both divergences.
        """
        count, ab_loss, lightness_loss, entropy = sums[:4].tolist()
        constants = [constant_cross_entropy(histogram) for histogram in (sums[4 : 4 + Q], sums[4 + Q :])]
        constants[0] -= entropy
        check_contrast(min(constants) / count)
        divergences = [ab_loss - entropy, lightness_loss]
        return {
            "loss": (ab_loss + lightness_loss) / count,
            "kl_share_ab": divergences[0] / constants[0],
            "kl_share_lightness": divergences[1] / constants[1],
            "kl_share": sum(divergences) / sum(constants),
        }


def _cross_entropy(logits: Tensor, bins: Tensor) -> Tensor:
    """Compute the cross-entropy of logits (N, K, h, w) and bins (N, h, w) at every pixel, (N, h, w).

    ``torch.nn.functional.cross_entropy`` is not deterministic on GPUs.
    """
    return -logits.log_softmax(1).gather(1, bins[:, None])[:, 0]
