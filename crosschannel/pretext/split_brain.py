"""Split-brain autoencoder: two halves of a net that never meet, one predicts ab from L, the other L from ab (Zhang,
Isola, Efros, CVPR 2017). In transfer the net sees Lab, and its features are those of both halves."""

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
    """Logits of ab bins (N, 313, h, w), from L, and of lightness bins (N, K, h, w), from ab."""

    ab: Tensor
    lightness: Tensor


class SplitBrainNet(nn.Module):
    """AlexNet in two halves, with a 1×1 convolution on the last map of each.

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
        of_lightness, of_ab = self.net(x).chunk(2, 1)
        height, width = ((side + self.stride - 1) // self.stride for side in x.shape[2:])
        return Halves(self.ab(of_lightness)[:, :, :height, :width], self.lightness(of_ab)[:, :, :height, :width])


class SplitBrain(PairTask):
    """L → 313 ab bins, and ab → bins of L; the cross-entropies are added."""

    name = "split-brain"
    decoder: ClassVar[str] = "crosschannel.colorize.decoders:SplitBrainDecoder"
    primary_metric = PrimaryMetric.ratio("kl_share", "best constant distributions")

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
                f"the task split-brain uses its own AlexNet variant; drop model.variant (got {spec.options.variant})"
            )
        return SplitBrainNet(build_net(spec.replace(variant="split-brain")), config.lightness_bins)

    def targets(self, rgb: Tensor, labels: Tensor) -> Tensor:
        """Lab of every 16th pixel."""
        return rgb_to_lab(rgb[:, :, :: self.stride, :: self.stride])

    def _lightness_bins(self, lab: Tensor) -> Tensor:
        bins = self.config.lightness_bins
        return (lab[:, 0] * (bins / 100)).long().clamp(0, bins - 1)

    def loss(self, outputs: Halves, targets: Tensor) -> Tensor:
        of_ab = sparse_cross_entropy(outputs.ab, *self.quantizer.encode(targets[:, 1:]))
        return of_ab + _cross_entropy(outputs.lightness.float(), self._lightness_bins(targets))

    @torch.no_grad()
    def score(self, outputs: Halves, targets: Tensor) -> Tensor:
        """Count, cross-entropies of ab and of L, entropy of ab's targets; their summed histograms."""
        indices, weights = self.quantizer.encode(targets[:, 1:])
        bins = self._lightness_bins(targets)
        of_ab = sparse_cross_entropy(outputs.ab, indices, weights).double().sum()
        of_lightness = _cross_entropy(outputs.lightness.double(), bins).sum()
        entropy = -torch.special.xlogy(weights.double(), weights.double()).sum()
        count = torch.tensor(float(bins.numel())).to(of_ab)
        ab = torch.zeros(Q, dtype=torch.float64, device=weights.device)
        ab.scatter_add_(0, indices.flatten(), weights.double().flatten())
        lightness = torch.bincount(bins.flatten(), minlength=self.config.lightness_bins).double()
        return torch.cat((torch.stack((count, of_ab, of_lightness, entropy)), ab, lightness))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """``loss``, the two cross-entropies; ``kl_share_ab`` and ``kl_share_lightness``, each half's divergence as a
        share of that of the constant distribution that fits these images best; ``kl_share``, their sum's."""
        count, of_ab, of_lightness, entropy = sums[:4].tolist()
        constants = [constant_cross_entropy(part) for part in (sums[4 : 4 + Q], sums[4 + Q :])]
        constants[0] -= entropy
        check_contrast(min(constants) / count)
        found = [of_ab - entropy, of_lightness]
        return {
            "loss": (of_ab + of_lightness) / count,
            "kl_share_ab": found[0] / constants[0],
            "kl_share_lightness": found[1] / constants[1],
            "kl_share": sum(found) / sum(constants),
        }


def _cross_entropy(logits: Tensor, bins: Tensor) -> Tensor:
    """At every pixel, (N, K, h, w) and (N, h, w) → (N, h, w); torch's own is not deterministic on GPUs."""
    return -logits.log_softmax(1).gather(1, bins[:, None])[:, 0]
