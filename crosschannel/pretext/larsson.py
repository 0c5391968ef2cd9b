"""Predict hue and chroma from grey with hypercolumns (Larsson, Maire, Shakhnarovich, "Learning Representations for
Automatic Colorization", ECCV 2016).
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from crosschannel.config.training import CropConfig
from crosschannel.errors import UserError
from crosschannel.models import InputSpec, NetSpec, build_net
from crosschannel.pretext.config import LarssonConfig
from crosschannel.pretext.hypercolumn import BINS, HypercolumnNet, SampledLogits
from crosschannel.pretext.task import (
    PairTask,
    PrimaryMetric,
    check_contrast,
    constant_cross_entropy,
    require_family,
)

_MEAN_GREY = 0.4488  # mean intensity of photographs, in 0..1


class _Targets(NamedTuple):
    """Targets of each pixel, (N, H, W): indices of the hue and chroma bins, chroma, and grey."""

    hue_bin: Tensor
    chroma_bin: Tensor
    chroma: Tensor
    grey: Tensor


class Larsson(PairTask):
    """Predict distributions of hue and chroma from grey.

    The targets are histograms of hue and chroma in a window around a pixel, and the loss is the KL divergence. The
    divergence of hue is weighted by 5 · chroma, that of chroma by min(3x, 1, 3(1 - x)), where x is the grey value of
    the pixel.

    Two differences from the release: hue is computed from RGB instead of BGR, which only relabels the hues, and
    coloured pictures keep the lightness of the input instead of its mean of RGB.
    """

    name = "larsson"
    decoder: ClassVar[str] = "crosschannel.colorize.decoders:LarssonDecoder"
    needs_fc: ClassVar[bool] = True
    primary_metric = PrimaryMetric.ratio("kl_share", "best constant histograms", "KL divergence")
    score_length = 3 + 2 * BINS

    @staticmethod
    def input_of(config: LarssonConfig, crop: CropConfig) -> InputSpec:
        return InputSpec("intensity", crop.size, crop.resize, mean=(_MEAN_GREY,) * 3, std=(1.0,) * 3)

    @staticmethod
    def build(config: LarssonConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> HypercolumnNet:
        require_family(spec, "vgg16", Larsson.name)
        if not spec.options.fc:
            raise UserError("the task larsson requires fc6 and fc7; set model.fc above 0")
        return HypercolumnNet(build_net(spec), config)

    def targets(self, rgb: Tensor, labels: Tensor) -> _Targets:
        rgb = rgb.float() / 255
        maximum, minimum = rgb.amax(1), rgb.amin(1)
        chroma = maximum - minimum
        hue = rgb_to_hue(rgb, maximum, chroma)
        bins = ((hue * BINS).long() % BINS, (chroma * BINS).long().clamp(max=BINS - 1))
        return _Targets(*bins, chroma, rgb.mean(1))

    def _histograms(self, outputs: SampledLogits | Tensor, targets: _Targets) -> tuple[Tensor, ...]:
        """Return logits (N, 64, K), target histograms of hue and chroma (N, 32, K), and their loss weights (N, K)."""
        height, width = targets.grey.shape[1:]
        if isinstance(outputs, Tensor):
            n, _, h, w = outputs.shape
            rows = torch.arange(0, height, self.stride, device=outputs.device).repeat_interleave(w).expand(n, -1)
            columns = torch.arange(0, width, self.stride, device=outputs.device).repeat(h).expand(n, -1)
            outputs = SampledLogits(outputs.flatten(2), rows, columns)
        offsets = torch.arange(self.config.window, device=targets.grey.device) - self.config.window // 2
        rows = (outputs.rows[:, :, None, None] + offsets[:, None]).clamp(0, height - 1)
        columns = (outputs.columns[:, :, None, None] + offsets).clamp(0, width - 1)
        window_indices = (rows * width + columns).flatten(1)

        def windows(pixels: Tensor) -> Tensor:
            return pixels.flatten(1).gather(1, window_indices).unflatten(1, (outputs.rows.shape[1], -1))

        histograms = [_histogram(windows(bins)) for bins in (targets.hue_bin, targets.chroma_bin)]
        centre_indices = outputs.rows * width + outputs.columns
        chroma, grey = (pixels.flatten(1).gather(1, centre_indices) for pixels in (targets.chroma, targets.grey))
        weights = (5 * chroma, torch.minimum(3 * grey, 3 * (1 - grey)).clamp(max=1))
        return outputs.logits.float(), *histograms, *weights

    def loss(self, outputs: SampledLogits | Tensor, targets: _Targets) -> Tensor:
        logits, hue, chroma, hue_weight, chroma_weight = self._histograms(outputs, targets)
        return hue_weight * _kl(hue, logits[:, :BINS]) + chroma_weight * _kl(chroma, logits[:, BINS:])

    @torch.no_grad()
    def score(self, outputs: SampledLogits | Tensor, targets: _Targets) -> Tensor:
        """Return sums over pixels: count, weighted divergences, weighted entropies of the targets, weighted histograms
        of hue and of chroma."""
        logits, *histograms_and_weights = self._histograms(outputs, targets)
        hue, chroma, hue_weight, chroma_weight = (values.double() for values in histograms_and_weights)
        sums = [torch.tensor(float(hue_weight.numel())).to(hue_weight)]
        loss = hue_weight * _kl(hue, logits[:, :BINS].double()) + chroma_weight * _kl(chroma, logits[:, BINS:].double())
        entropy = -(hue_weight * torch.special.xlogy(hue, hue).sum(1)) - chroma_weight * torch.special.xlogy(
            chroma, chroma
        ).sum(1)
        sums += [loss.sum(), entropy.sum()]
        histograms = [torch.einsum("nqk,nk->q", z, v) for z, v in ((hue, hue_weight), (chroma, chroma_weight))]
        return torch.cat((torch.stack(sums), *histograms))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Compute ``loss``, the weighted divergence per pixel, ``loss_constant``, that of the best constant histograms
        for these images, and their ratio ``kl_share``."""
        count, loss, entropy = sums[:3].tolist()
        cross_entropy = sum(constant_cross_entropy(histogram) for histogram in sums[3:].split(BINS))
        constant_loss = (cross_entropy - entropy) / count
        check_contrast(constant_loss)
        return {"loss": loss / count, "loss_constant": constant_loss, "kl_share": loss / count / constant_loss}


def _histogram(bins: Tensor) -> Tensor:
    """Compute normalised histograms of bin indices (N, K, pixels) int64, (N, 32, K).

    Adds one pixel at a time, since a one-hot tensor of all pixels would be 32 times as large as ``bins``.
    """
    histogram = torch.zeros(len(bins), BINS, bins.shape[1], device=bins.device)
    increment = torch.full_like(histogram[:, :1], 1 / bins.shape[2])
    for pixel_bins in bins.unbind(2):
        histogram.scatter_add_(1, pixel_bins[:, None], increment)
    return histogram


def _kl(histogram: Tensor, logits: Tensor) -> Tensor:
    """Compute KL(histogram ‖ softmax(logits)) over channels: (N, 32, K) each → (N, K)."""
    return (torch.special.xlogy(histogram, histogram) - histogram * logits.log_softmax(1)).sum(1)


def rgb_to_hue(rgb: Tensor, maximum: Tensor, chroma: Tensor) -> Tensor:
    """Compute the hue of HSV in [0, 1), 0 for grey pixels, from RGB (N, 3, H, W), its maximum and chroma (N, H, W)."""
    red, green, blue = rgb.unbind(1)
    divisor = chroma.clamp(min=1e-12)
    hue = torch.where(
        maximum == red,
        (green - blue) / divisor % 6,
        torch.where(maximum == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    return torch.where(chroma > 0, hue / 6 % 1, 0)
