"""From the grid of a net's predictions to every pixel of a picture."""

import torch
from torch import Tensor, nn


def sample_grid(maps: Tensor, rows: slice, width: int, scale: tuple[float, float], stride: int) -> Tensor:
    """Bilinear values of some rows of the full picture.

    Args:
        maps: (N, C, h, w), whose points sit on every stride-th pixel of the net's input, the first on pixel 0.
        rows: of the full picture.
        width: of the full picture.
        scale: points of the grid per pixel of the full picture, vertically and horizontally.
        stride: pixels of the net's input per step of the grid.

    Returns:
        (N, C, rows, width); what lies past the last point repeats it.
    """

    def positions(pixels: Tensor, factor: float, count: int) -> Tensor:
        centres = (pixels + 0.5) * factor - 0.5 / stride  # in steps; a pixel of the input is centred half a pixel on
        return centres.clamp(0, count - 1) / max(1, count - 1) * 2 - 1

    h, w = maps.shape[2:]
    y = positions(torch.arange(rows.start, rows.stop, device=maps.device), scale[0], h)
    x = positions(torch.arange(width, device=maps.device), scale[1], w)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None].to(maps).expand(len(maps), -1, -1, -1)
    return nn.functional.grid_sample(maps, grid, align_corners=True, padding_mode="border")
