"""Bilinear interpolation on a grid of points."""

import torch
from torch import Tensor, nn


def bilinear(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Interpolate maps (N, C, h, w) at rows y (R,) and columns x (W,), in grid steps from the first point.

    Returns:
        (N, C, R, W).
    """
    axes = [2 * points / max(1, count - 1) - 1 for points, count in ((x, maps.shape[3]), (y, maps.shape[2]))]
    grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1)[None].to(maps)
    grid = grid.expand(len(maps), -1, -1, -1)
    return nn.functional.grid_sample(maps, grid, align_corners=True, padding_mode="border")


def corners(positions: Tensor, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the grid points on both sides of each position and their weights: (lower, weight), (upper, weight).

    Args:
        positions: positions on an axis, in grid steps from the first point.
        count: number of points on the axis.
    """
    lower = positions.floor().long().clamp(max=max(0, count - 2))
    fraction = positions - lower
    return (lower, 1 - fraction), ((lower + 1).clamp(max=count - 1), fraction)
