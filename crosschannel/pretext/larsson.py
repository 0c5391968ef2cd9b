"""Hue and chroma from grey by hypercolumns (Larsson, Maire, Shakhnarovich, "Learning Representations for Automatic
Colorization", ECCV 2016).
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from crosschannel.config.training import CropConfig
from crosschannel.errors import UserError
from crosschannel.models import InputSpec, NetSpec, build_net
from crosschannel.pretext.config import LarssonConfig
from crosschannel.pretext.hypercolumn import BINS, HypercolumnNet, Located
from crosschannel.pretext.task import (
    PairTask,
    PrimaryMetric,
    check_contrast,
    constant_cross_entropy,
    require_family,
)

_GREY = 0.4488  # mean of grey photographs in 0..1


class _Targets(NamedTuple):
    """Of every pixel, (N, H, W): bins of hue and chroma, chroma, grey."""

    hue: Tensor
    chroma: Tensor
    amount: Tensor
    grey: Tensor


class Larsson(PairTask):
    """Grey → distributions of hue and chroma. The targets are histograms of a window around a pixel. The loss is the KL
    divergence; hue is weighted by 5 · chroma, and chroma by min(3x, 1, 3(1 - x)), with the chroma and the grey x of the
    pixel itself.

    Hue is that of RGB (the release's of BGR, which renames the hues). Pictures keep their lightness; the release keeps
    the mean of RGB.
    """

    name = "larsson"
    decoder: ClassVar[str] = "crosschannel.colorize.decoders:LarssonDecoder"
    needs_fc: ClassVar[bool] = True
    primary_metric = PrimaryMetric.ratio("kl_share", "best constant histograms")
    score_length = 3 + 2 * BINS

    @staticmethod
    def input_of(config: LarssonConfig, crop: CropConfig) -> InputSpec:
        return InputSpec("intensity", crop.size, crop.resize, mean=(_GREY,) * 3, std=(1.0,) * 3)

    @staticmethod
    def build(config: LarssonConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> HypercolumnNet:
        require_family(spec, "vgg16", Larsson.name)
        if not spec.options.fc:
            raise UserError("the task larsson looks at fc6 and fc7: model.fc must be above 0")
        return HypercolumnNet(build_net(spec), config)

    def targets(self, rgb: Tensor, labels: Tensor) -> _Targets:
        rgb = rgb.float() / 255
        high, low = rgb.amax(1), rgb.amin(1)
        chroma = high - low
        hue = hue_of(rgb, high, chroma)
        bins = ((hue * BINS).long() % BINS, (chroma * BINS).long().clamp(max=BINS - 1))
        return _Targets(*bins, chroma, rgb.mean(1))

    def _histograms(self, outputs: Located | Tensor, targets: _Targets) -> tuple[Tensor, ...]:
        """Logits (N, 64, K), histograms of hue and chroma (N, 32, K) and their weights (N, K) at the same pixels."""
        height, width = targets.grey.shape[1:]
        if isinstance(outputs, Tensor):
            n, _, h, w = outputs.shape
            rows = torch.arange(0, height, self.stride, device=outputs.device).repeat_interleave(w).expand(n, -1)
            columns = torch.arange(0, width, self.stride, device=outputs.device).repeat(h).expand(n, -1)
            outputs = Located(outputs.flatten(2), rows, columns)
        reach = torch.arange(self.config.window, device=targets.grey.device) - self.config.window // 2
        rows = (outputs.rows[:, :, None, None] + reach[:, None]).clamp(0, height - 1)
        columns = (outputs.columns[:, :, None, None] + reach).clamp(0, width - 1)
        places = (rows * width + columns).flatten(1)

        def around(pixels: Tensor) -> Tensor:
            return pixels.flatten(1).gather(1, places).unflatten(1, (outputs.rows.shape[1], -1))

        histograms = [_histogram(around(bins)) for bins in (targets.hue, targets.chroma)]
        centre = outputs.rows * width + outputs.columns
        chroma, grey = (pixels.flatten(1).gather(1, centre) for pixels in (targets.amount, targets.grey))
        weights = (5 * chroma, torch.minimum(3 * grey, 3 * (1 - grey)).clamp(max=1))
        return outputs.logits.float(), *histograms, *weights

    def loss(self, outputs: Located | Tensor, targets: _Targets) -> Tensor:
        logits, hue, chroma, of_hue, of_chroma = self._histograms(outputs, targets)
        return of_hue * _kl(hue, logits[:, :BINS]) + of_chroma * _kl(chroma, logits[:, BINS:])

    @torch.no_grad()
    def score(self, outputs: Located | Tensor, targets: _Targets) -> Tensor:
        """Count, weighted divergences, weighted entropies of the targets, weighted sums of their histograms."""
        logits, *found = self._histograms(outputs, targets)
        hue, chroma, of_hue, of_chroma = (one.double() for one in found)
        sums = [torch.tensor(float(of_hue.numel())).to(of_hue)]
        loss = of_hue * _kl(hue, logits[:, :BINS].double()) + of_chroma * _kl(chroma, logits[:, BINS:].double())
        entropy = -(of_hue * torch.special.xlogy(hue, hue).sum(1)) - of_chroma * torch.special.xlogy(
            chroma, chroma
        ).sum(1)
        sums += [loss.sum(), entropy.sum()]
        histograms = [torch.einsum("nqk,nk->q", z, v) for z, v in ((hue, of_hue), (chroma, of_chroma))]
        return torch.cat((torch.stack(sums), *histograms))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """``loss``: weighted divergence a pixel; ``loss_constant``: that of the constant histograms that fit these
        very images best; ``kl_share``: their ratio."""
        count, loss, entropy = sums[:3].tolist()
        constant = sum(constant_cross_entropy(part) for part in sums[3:].split(BINS))
        of_a_constant = (constant - entropy) / count
        check_contrast(of_a_constant)
        return {"loss": loss / count, "loss_constant": of_a_constant, "kl_share": loss / count / of_a_constant}


def _histogram(bins: Tensor) -> Tensor:
    """Shares of bins: (N, K, pixels) int64 → (N, 32, K); pixel by pixel, since all at once would be 32 times that."""
    found = torch.zeros(len(bins), BINS, bins.shape[1], device=bins.device)
    share = torch.full_like(found[:, :1], 1 / bins.shape[2])
    for one in bins.unbind(2):
        found.scatter_add_(1, one[:, None], share)
    return found


def _kl(histogram: Tensor, logits: Tensor) -> Tensor:
    """KL(histogram ‖ softmax(logits)) over channels: (N, 32, K) each → (N, K)."""
    return (torch.special.xlogy(histogram, histogram) - histogram * logits.log_softmax(1)).sum(1)


def hue_of(rgb: Tensor, high: Tensor, chroma: Tensor) -> Tensor:
    """HSV's hue in [0, 1): rgb (N, 3, H, W), its maximum and chroma (N, H, W); 0 where there is no colour."""
    red, green, blue = rgb.unbind(1)
    span = chroma.clamp(min=1e-12)
    hue = torch.where(
        high == red,
        (green - blue) / span % 6,
        torch.where(high == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    return torch.where(chroma > 0, hue / 6 % 1, 0)
