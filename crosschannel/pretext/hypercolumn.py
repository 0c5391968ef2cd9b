"""Hypercolumns: the activations of all layers of a net at a pixel (Hariharan et al. 2015; Larsson et al. 2016).

A hypercolumn of VGG-16 has 12,417 dimensions. In training, hypercolumns are built at about a hundred random pixels per
crop. For a whole picture they are not built at all: the hidden layer is linear and sums over layers, so each map can
be projected either before or after sampling.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crosschannel.models.layers import LayeredNet
from crosschannel.pretext.config import LarssonConfig
from crosschannel.pretext.grids import bilinear, corners

BINS = 32  # bins of hue, and of chroma
_STRIDE = 4  # output stride in eval mode
_SKIPPED = ("pool1", "pool2", "pool3", "pool4", "pool5")


class SampledLogits(NamedTuple):
    """Logits at K sampled pixels of each image.

    Attributes:
        logits: (N, 64, K): 32 bins of hue, then 32 of chroma.
        rows, columns: (N, K) int64, coordinates of the pixels.
    """

    logits: Tensor
    rows: Tensor
    columns: Tensor


class HypercolumnNet(nn.Module):
    """A classifier of hue and chroma, with one hidden layer, on the hypercolumns of VGG-16.

    fc6 and fc7 are convolutions: 7×7 with padding 3, and 1×1.

    Args:
        net: VGG-16 with fc6 and fc7.
        config: see :class:`~crosschannel.pretext.config.LarssonConfig`.

    Shape:
        (N, 1, H, W) → in training mode :class:`SampledLogits` at random pixels; in eval mode logits of every 4th pixel,
        (N, 64, ⌈H/4⌉, ⌈W/4⌉).
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
        """Return the maps that form the hypercolumn, by layer; "" is the input."""
        maps, dropout = {"": x}, self.config.dropout
        for name in self.net.layers:
            if name == "fc6":
                x = nn.functional.pad(x, (3, 3, 3, 3))
            x = self.net.get_submodule(name)(x)
            if name in ("fc6", "fc7"):
                x = nn.functional.dropout(x, dropout, self.training)
            if name in self.layers:
                maps[name] = x
        return maps

    def grid(self, layer: str) -> tuple[float, float]:
        """Return the stride of a layer's map, in pixels, and the pixel on which its first point is centred."""
        if not layer:
            return 1.0, 0.0
        reference = "pool5" if layer in ("fc6", "fc7") else layer  # padding aligns fc6 and fc7 with pool5
        return float(self.net.shapes[reference][1]), self.net.origins[reference]

    def forward(self, x: Tensor) -> SampledLogits | Tensor:
        maps = self.maps(x)
        if not self.training:
            return self._dense_logits(maps, x.shape[2], x.shape[3])
        rows, columns = (self._random_coordinates(side, len(x), x.device) for side in x.shape[2:])
        hypercolumn = [_sample_points(values, rows, columns, self.grid(layer)) for layer, values in maps.items()]
        hidden = self.activation(self.hidden(torch.cat(hypercolumn, 1)))
        return SampledLogits(self.out(nn.functional.dropout(hidden, self.config.dropout, True)), rows, columns)

    def _random_coordinates(self, side: int, images: int, device: torch.device) -> Tensor:
        """Draw pixel coordinates along one axis, (images, locations)."""
        low = min(round(self.config.margin * side), (side - 1) // 2)
        return torch.randint(low, side - low, (images, self.config.locations), device=device)

    def _dense_logits(self, maps: dict[str, Tensor], height: int, width: int) -> Tensor:
        """Compute the logits of every 4th pixel without building hypercolumns.

        The hidden layer is a sum of one projection per layer. A map is projected at its own resolution or at that of
        the output, whichever is coarser.
        """
        rows = torch.arange(0, height, self.stride, device=self.out.weight.device)
        columns = torch.arange(0, width, self.stride, device=self.out.weight.device)
        weights = self.hidden.weight[:, :, :, None].split(self.widths, 1)
        hidden = self.hidden.bias[:, None, None]
        for (layer, values), weight in zip(maps.items(), weights, strict=True):
            grid = self.grid(layer)
            if grid[0] < self.stride:
                values = nn.functional.conv2d(_sample_grid(values, rows, columns, grid), weight)
            else:
                values = _sample_grid(nn.functional.conv2d(values, weight), rows, columns, grid)
            hidden = hidden + values
        return self.out(self.activation(hidden).flatten(2)).unflatten(2, hidden.shape[2:])


def _sample_grid(maps: Tensor, rows: Tensor, columns: Tensor, grid: tuple[float, float]) -> Tensor:
    """Sample maps (N, C, h, w) bilinearly, in float32, at all pixels in rows (R,) and columns (K,): (N, C, R, K)."""
    y, x = (
        _grid_positions(pixels, points, grid) for pixels, points in ((rows, maps.shape[2]), (columns, maps.shape[3]))
    )
    return bilinear(maps.float(), y, x)


def _sample_points(maps: Tensor, rows: Tensor, columns: Tensor, grid: tuple[float, float]) -> Tensor:
    """Sample maps (N, C, h, w) bilinearly at the pixels with coordinates rows and columns (N, K): (N, C, K).

    Uses indexing, whose gradient is deterministic on GPUs too.
    """
    image = torch.arange(len(maps), device=maps.device)[:, None]
    sampled: Tensor | float = 0.0
    height, width = maps.shape[2:]
    for y, row_weight in corners(_grid_positions(rows, height, grid), height):
        for x, column_weight in corners(_grid_positions(columns, width, grid), width):
            sampled = sampled + maps[image, :, y, x] * (row_weight * column_weight).to(maps.dtype)[:, :, None]
    return sampled.transpose(1, 2)


def _grid_positions(pixels: Tensor, points: int, grid: tuple[float, float]) -> Tensor:
    """Convert pixel coordinates to positions on a map, in grid steps from its first point, clamped to the map."""
    stride, origin = grid
    return ((pixels - origin) / stride).clamp(0, points - 1)
