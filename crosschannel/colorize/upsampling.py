"""Bilinear and edge-aware upsampling of a net's predictions to every pixel of a picture.

At an edge, bilinear interpolation mixes the colours of both sides. Joint bilateral upsampling (Kopf et al., SIGGRAPH
2007) uses the same four points, but gives more weight to points whose lightness is close to that of the pixel.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from crosschannel.pretext.grids import bilinear, corners

Upsample = Literal["edges", "bilinear"]
# Values of ``sigma``, tuned on the error of upsampled true colours near edges (see benchmarks/upsampling.py)
GRID_SIGMA = 9.0  # from the grid of a net to its input picture
PICTURE_SIGMA = 14.0  # from the input picture of a net to the full picture
_MIN_WEIGHT = 1e-6  # added to lightness weights, so that only distance counts if all differ from the pixel


def upsample_rows(
    maps: Tensor,
    rows: slice,
    width: int,
    scale: tuple[float, float],
    offset: float = 0.5,
    lightness: tuple[Tensor, Tensor] | None = None,
    sigma: float = GRID_SIGMA,
) -> Tensor:
    """Upsample maps to rows of a larger picture, from the four grid points around each pixel.

    Args:
        maps: (N, C, h, w) values at the grid points.
        rows: rows of the picture.
        width: width of the picture.
        scale: grid points per pixel of the picture, vertically and horizontally.
        offset: position of the first point, in grid steps from the edge of the grid: 0.5 if points are the centres of
            blocks, 0.5 / stride if they are the first pixels of blocks.
        lightness: lightness in 0..100 of the grid points (N, 1, h, w) and of the rows (N, 1, R, width); None weights
            points by distance only.
        sigma: lightness difference at which the weight of a point is multiplied by exp(-½).

    Returns:
        (N, C, R, width); pixels beyond the outermost points get the values of those points.
    """
    h, w = maps.shape[2:]
    y = _positions(torch.arange(rows.start, rows.stop, device=maps.device), scale[0], offset, h)
    x = _positions(torch.arange(width, device=maps.device), scale[1], offset, w)
    if lightness is None:
        return bilinear(maps, y, x)
    point_lightness, pixel_lightness = lightness
    total_weight: Tensor | float = 0.0
    weighted_sum: Tensor | float = 0.0
    for row, row_weight in corners(y, h):
        values, guide = maps[:, :, row], point_lightness[:, :, row]
        for column, column_weight in corners(x, w):
            difference = (guide[:, :, :, column] - pixel_lightness).square_()
            weight = difference.mul_(-0.5 / sigma**2).exp_().add_(_MIN_WEIGHT).mul_(row_weight[:, None] * column_weight)
            total_weight, weighted_sum = total_weight + weight, weighted_sum + weight * values[:, :, :, column]
    return weighted_sum / total_weight


def _positions(pixels: Tensor, scale: float, offset: float, count: int) -> Tensor:
    """Return the positions of pixels, in grid steps from the first point."""
    return ((pixels + 0.5) * scale - offset).clamp(0, count - 1)


def lightness_at_points(lightness: Tensor, stride: int, average_blocks: bool) -> Tensor:
    """Reduce lightness (N, 1, H, W) to the grid points, by the mean or the first pixel of each block."""
    if not average_blocks:
        return lightness[:, :, ::stride, ::stride]
    return nn.functional.avg_pool2d(lightness, stride, ceil_mode=True, count_include_pad=False)
