"""Hypercolumns: what every layer of a net says of a pixel (Hariharan et al. 2015; Larsson et al. 2016).

Those of a VGG-16 have 12,417 numbers. In training they are built at some hundred pixels of a crop and nowhere else; a
whole picture is worked off layer by layer, since what follows is linear: projecting a map and sampling it commute.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crosschannel.models.layers import LayeredNet
from crosschannel.pretext.config import LarssonConfig
from crosschannel.pretext.grids import bilinear, corners

BINS = 32  # of hue and of chroma
_STRIDE = 4  # of whole pictures
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
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv1d | nn.Conv2d)):
            bound = math.sqrt(3 / conv.weight[0].numel())  # Caffe's "xavier", which depends only on the fan-in
            nn.init.uniform_(conv.weight, -bound, bound)
            nn.init.zeros_(conv.bias)
        nn.init.normal_(self.hidden.weight, std=1e-4)

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
    """Bilinear values of maps (N, C, h, w) where pixels of some rows (R,) and columns (K,) stand, (N, C, R, K); in
    float32, to the pixel."""
    y, x = (_steps(pixels, points, grid) for pixels, points in ((rows, maps.shape[2]), (columns, maps.shape[3])))
    return bilinear(maps.float(), y, x)


def _picked(maps: Tensor, rows: Tensor, columns: Tensor, grid: tuple[float, float]) -> Tensor:
    """The same at few pixels, by indexing (whose gradient is deterministic on GPUs too): rows and columns (N, K) →
    (N, C, K)."""
    image = torch.arange(len(maps), device=maps.device)[:, None]
    found: Tensor | float = 0.0
    height, width = maps.shape[2:]
    for y, of_row in corners(_steps(rows, height, grid), height):
        for x, of_column in corners(_steps(columns, width, grid), width):
            found = found + maps[image, :, y, x] * (of_row * of_column).to(maps.dtype)[:, :, None]
    return found.transpose(1, 2)


def _steps(pixels: Tensor, points: int, grid: tuple[float, float]) -> Tensor:
    """Pixels in steps from the first of a map's points."""
    stride, origin = grid
    return ((pixels - origin) / stride).clamp(0, points - 1)
