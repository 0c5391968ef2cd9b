"""Hue and chroma from grey by hypercolumns (Larsson, Maire, Shakhnarovich, "Learning Representations for Automatic
Colorization", ECCV 2016).

Every layer of a VGG-16 says something of a pixel: the hypercolumn, 12,417 numbers. In training it is built at some
hundred pixels of a crop and nowhere else; a whole picture is worked off layer by layer, since what follows the
hypercolumn is linear: projecting a map and sampling it commute.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from crosschannel.color import rgb_to_lab
from crosschannel.errors import UserError
from crosschannel.models import InputSpec, NetSpec, build_net
from crosschannel.models.layers import LayeredNet
from crosschannel.pretext.colorizer import coloured_rows
from crosschannel.pretext.config import LarssonConfig
from crosschannel.pretext.task import (
    OF_A_CONSTANT,
    Headline,
    Pretext,
    check_contrast,
    cross_entropy_of_constant,
    need_family,
    no_temperature,
)
from crosschannel.runs.config import CropConfig

BINS = 32  # of hue and of chroma
_STRIDE = 4  # of whole pictures
_GREY = 0.4488  # mean of grey photographs in 0..1
_FADING = 0.03  # how certain a hue must be for its chroma to count in full
_SKIPPED = ("pool1", "pool2", "pool3", "pool4", "pool5")


class Located(NamedTuple):
    """Logits at some pixels.

    Attributes:
        logits: (N, 64, K): hue, then chroma.
        rows, columns: (N, K) int64, the pixels.
    """

    logits: Tensor
    rows: Tensor
    columns: Tensor


class HypercolumnNet(nn.Module):
    """VGG-16 with fc6 and fc7 as convolutions (7×7 pad 3, 1×1), its hypercolumn, one hidden layer, two distributions.

    Args:
        net: VGG-16 with fc6 and fc7.
        config: see :class:`~crosschannel.pretext.config.LarssonConfig`.

    Shape:
        (N, 1, H, W) → :class:`Located` at random pixels in training mode, else (N, 64, ⌈H/4⌉, ⌈W/4⌉) logits of every
        4th pixel.
    """

    stride = _STRIDE

    def __init__(self, net: LayeredNet, config: LarssonConfig):
        super().__init__()
        self.net, self.config = net, config
        self.layers = tuple(layer for layer in net.layers if layer not in _SKIPPED)
        widths = [net.in_channels, *(net.shapes[layer][0] for layer in self.layers)]
        self.widths = widths
        self.hidden = nn.Conv1d(sum(widths), config.width, 1)
        self.out = nn.Conv1d(config.width, 2 * BINS, 1)
        self.activation = nn.ReLU()
        for conv in (self.hidden, self.out):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """The input and every layer's map."""
        found, dropout = {"": x}, self.config.dropout
        for name in self.net.layers:
            if name == "fc6":
                x = nn.functional.pad(x, (3, 3, 3, 3))
            x = self.net.get_submodule(name)(x)
            if name in ("fc6", "fc7"):
                x = nn.functional.dropout(x, dropout, self.training)
            if name in self.layers:
                found[name] = x
        return found

    def grid(self, layer: str) -> tuple[float, float]:
        """Pixels per step of a layer's map, and the pixel that its first point is centred on."""
        if not layer:
            return 1.0, 0.0
        below = "pool5" if layer in ("fc6", "fc7") else layer  # padded, they stand where pool5 does
        return float(self.net.shapes[below][1]), self.net.origins[below]

    def forward(self, x: Tensor) -> Located | Tensor:
        maps = self.maps(x)
        if not self.training:
            return self._everywhere(maps, x.shape[2], x.shape[3])
        rows, columns = (self._random(side, len(x), x.device) for side in x.shape[2:])
        hypercolumn = [_picked(found, rows, columns, self.grid(layer)) for layer, found in maps.items()]
        hidden = self.activation(self.hidden(torch.cat(hypercolumn, 1)))
        return Located(self.out(nn.functional.dropout(hidden, self.config.dropout, True)), rows, columns)

    def _random(self, side: int, images: int, device: torch.device) -> Tensor:
        """Coordinates of locations, (images, locations)."""
        low = min(round(self.config.margin * side), (side - 1) // 2)
        return torch.randint(low, side - low, (images, self.config.locations), device=device)

    def _everywhere(self, maps: dict[str, Tensor], height: int, width: int) -> Tensor:
        """Logits of every 4th pixel; no hypercolumn, but a sum over layers of what the hidden layer makes of each."""
        rows = torch.arange(0, height, self.stride, device=self.out.weight.device)
        columns = torch.arange(0, width, self.stride, device=self.out.weight.device)
        rows, columns = (points.expand(1, len(rows), len(columns)) for points in (rows[:, None], columns[None]))
        weights = self.hidden.weight[:, :, :, None].split(self.widths, 1)
        hidden = self.hidden.bias[:, None, None]
        for (layer, found), weight in zip(maps.items(), weights, strict=True):
            grid = self.grid(layer)
            if grid[0] < self.stride:
                found = nn.functional.conv2d(_sampled(found, rows, columns, grid), weight)
            else:
                found = _sampled(nn.functional.conv2d(found, weight), rows, columns, grid)
            hidden = hidden + found
        return self.out(self.activation(hidden).flatten(2)).unflatten(2, hidden.shape[2:])


def _sampled(maps: Tensor, rows: Tensor, columns: Tensor, grid: tuple[float, float]) -> Tensor:
    """Bilinear values of maps at pixels: (N, C, h, w), (N or 1, R, K) each → (N, C, R, K)."""
    stride, origin = grid

    def scaled(pixels: Tensor, points: int) -> Tensor:
        return ((pixels - origin) / stride).clamp(0, points - 1) / max(1, points - 1) * 2 - 1

    places = torch.stack((scaled(columns, maps.shape[3]), scaled(rows, maps.shape[2])), -1)
    places = places.expand(len(maps), -1, -1, -1)  # in float32, to the pixel
    return nn.functional.grid_sample(maps.float(), places, align_corners=True, padding_mode="border")


def _picked(maps: Tensor, rows: Tensor, columns: Tensor, grid: tuple[float, float]) -> Tensor:
    """The same at few pixels, by indexing (whose gradient is deterministic on GPUs too): rows and columns (N, K) →
    (N, C, K)."""
    stride, origin = grid
    image = torch.arange(len(maps), device=maps.device)[:, None]
    found: Tensor | float = 0.0
    corners = []
    for pixels, points in ((rows, maps.shape[2]), (columns, maps.shape[3])):
        place = ((pixels - origin) / stride).clamp(0, points - 1)
        first = place.floor().long().clamp(max=max(0, points - 2))
        corners.append(((first, 1 - (place - first)), ((first + 1).clamp(max=points - 1), place - first)))
    for y, of_row in corners[0]:
        for x, of_column in corners[1]:
            found = found + maps[image, :, y, x] * (of_row * of_column).to(maps.dtype)[:, :, None]
    return found.transpose(1, 2)


class _Targets(NamedTuple):
    """Of every pixel, (N, H, W): bins of hue and chroma, chroma, grey."""

    hue: Tensor
    chroma: Tensor
    amount: Tensor
    grey: Tensor


class Larsson(Pretext):
    """Grey → distributions of hue and of chroma, histograms of a window around a pixel their targets, KL divergence
    the loss: hue's weighted by 5 · chroma, chroma's by min(3x, 1, 3(1 - x)) at grey x.

    Hue is that of RGB (the release's of BGR, which renames the hues). Pictures keep their lightness; the release keeps
    the mean of RGB.
    """

    name: ClassVar[str] = "larsson"
    colours: ClassVar[bool] = True
    uses_fc: ClassVar[bool] = True
    headline = Headline("kl_share", OF_A_CONSTANT, 1.0, "best constant histograms")
    score_length = 3 + 2 * BINS

    @staticmethod
    def input_of(config: LarssonConfig, crop: CropConfig) -> InputSpec:
        return InputSpec("intensity", crop.size, crop.resize, mean=(_GREY,) * 3, std=(1.0,) * 3)

    @staticmethod
    def build(config: LarssonConfig, spec: NetSpec, size: int | None, classes: Sequence[str]) -> HypercolumnNet:
        need_family(spec, "vgg16", Larsson.name)
        if not spec.fc:
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
        grey = around(targets.grey).mean(2)
        weights = (5 * around(targets.amount).mean(2), torch.minimum(3 * grey, 3 * (1 - grey)).clamp(max=1))
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
        constant = sum(cross_entropy_of_constant(part) for part in sums[3:].split(BINS))
        of_a_constant = (constant - entropy) / count
        check_contrast(of_a_constant)
        return {"loss": loss / count, "loss_constant": of_a_constant, "kl_share": loss / count / of_a_constant}

    def maps(self, outputs: Tensor, temperature: float | None = None) -> Tensor:
        """Probabilities of hue and chroma, (N, 64, h, w)."""
        no_temperature(temperature, "this net takes the median chroma and the mean hue")
        return torch.cat([part.softmax(1) for part in outputs.float().split(BINS, 1)], 1)

    def paint(self, maps: Tensor, rgb: Tensor) -> Tensor:
        """Their decode: median chroma, circular mean of hue, chroma faded where hue is uncertain; V = L + C/2, S = C/V,
        the mean of RGB put back."""
        hue, chroma = maps.split(BINS, 1)
        grey = rgb.mean(1)
        angles = (torch.arange(BINS, device=maps.device) + 0.5) * (2 * math.pi / BINS)
        x, y = torch.einsum("nqhw,q->nhw", hue, angles.cos()), torch.einsum("nqhw,q->nhw", hue, angles.sin())
        certain = torch.hypot(x, y).clamp(max=_FADING) / _FADING
        amount = median(chroma) * certain
        value = grey + amount / 2
        saturation = torch.where(value > 0, amount / value.clamp(min=1e-6), 0).clamp(0, 1)
        found = hsv_to_rgb(torch.atan2(y, x) / (2 * math.pi) % 1, saturation, value)
        found = (found + (grey - found.mean(1))[:, None]).clamp(0, 1)
        return rgb_to_lab(found)[:, 1:]

    def pictures(self, net: nn.Module, crops: Sequence[np.ndarray]) -> np.ndarray:
        return coloured_rows(net, self, crops)


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


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """HSV (N, H, W) each → RGB (N, 3, H, W); values past 1 stay."""
    steps = (torch.tensor([5.0, 3.0, 1.0]).to(hue)[:, None, None] + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(steps, 4 - steps).clamp(0, 1))


def median(probabilities: Tensor) -> Tensor:
    """Of distributions over bins of equal width in 0..1, (N, Q, H, W) → (N, H, W), linear within a bin."""
    q = probabilities.shape[1]
    total = probabilities.cumsum(1)
    index = (total < 0.5).sum(1, keepdim=True).clamp(max=q - 1)
    mass = probabilities.gather(1, index)
    below = total.gather(1, index) - mass
    within = ((0.5 - below) / mass.clamp(min=1e-12)).clamp(0, 1)
    return ((index + within) / q)[:, 0]
