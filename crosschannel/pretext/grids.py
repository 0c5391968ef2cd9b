"""Bilinear interpolation between the points of a grid."""

import torch
from torch import Tensor, nn


def bilinear(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values of maps (N, C, h, w) at positions y (R,) and x (W,), in steps from the first point → (N, C, R, W)."""
    places = [2 * at / max(1, count - 1) - 1 for at, count in ((x, maps.shape[3]), (y, maps.shape[2]))]
    grid = torch.stack(torch.meshgrid(*places, indexing="xy"), -1)[None].to(maps)
    grid = grid.expand(len(maps), -1, -1, -1)
    return nn.functional.grid_sample(maps, grid, align_corners=True, padding_mode="border")


def corners(positions: Tensor, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The points before and after each position, in steps from the first of ``count`` points, and their weights."""
    first = positions.floor().long().clamp(max=max(0, count - 2))
    after = positions - first
    return (first, 1 - after), ((first + 1).clamp(max=count - 1), after)
