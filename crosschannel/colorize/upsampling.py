"""From the grid of a net's predictions to every pixel of a picture: bilinearly, or so that colours stop at edges.

At an edge a bilinear mean mixes what stands on either side of it. The joint bilateral one (Kopf et al., SIGGRAPH 2007)
takes the same four points and trusts those whose lightness is the pixel's.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from crosschannel.pretext.grids import bilinear, corners

Upsample = Literal["edges", "bilinear"]
# Differences of lightness, chosen by the error of true colours near edges as benchmarks/upsampling.py has it:
SIGMA_OF_GRIDS = 9.0  # from a net's grid to the picture that it sees …
SIGMA_OF_PICTURES = 14.0  # … and from there to the full one
_FLOOR = 1e-6  # of the trust in a point, so that where none is like the pixel the nearest count


def upsample_rows(
    maps: Tensor,
    rows: slice,
    width: int,
    scale: tuple[float, float],
    offset: float = 0.5,
    lightness: tuple[Tensor, Tensor] | None = None,
    sigma: float = SIGMA_OF_GRIDS,
) -> Tensor:
    """Values of some rows of a larger picture, from the four points of a grid around each of its pixels.

    Args:
        maps: (N, C, h, w), the points.
        rows: of the picture.
        width: of the picture.
        scale: points per pixel of the picture, down and across.
        offset: where the first point is centred, in steps of the grid from its edge: 0.5 where points are the centres
            of blocks, 0.5 / stride where they are the first pixels of blocks.
        lightness: of the points (N, 1, h, w) and of those rows (N, 1, R, width), in 0..100; None weighs by distance
            alone.
        sigma: difference of lightness at which a point counts exp(-½) of its weight.

    Returns:
        (N, C, R, width); what lies past the last point repeats it.
    """
    h, w = maps.shape[2:]
    y = _positions(torch.arange(rows.start, rows.stop, device=maps.device), scale[0], offset, h)
    x = _positions(torch.arange(width, device=maps.device), scale[1], offset, w)
    if lightness is None:
        return bilinear(maps, y, x)
    of_points, of_pixels = lightness
    total: Tensor | float = 0.0
    found: Tensor | float = 0.0
    for row, of_row in corners(y, h):
        values, guide = maps[:, :, row], of_points[:, :, row]
        for column, of_column in corners(x, w):
            difference = (guide[:, :, :, column] - of_pixels).square_()
            weight = difference.mul_(-0.5 / sigma**2).exp_().add_(_FLOOR).mul_(of_row[:, None] * of_column)
            total, found = total + weight, found + weight * values[:, :, :, column]
    return found / total


def _positions(pixels: Tensor, scale: float, offset: float, count: int) -> Tensor:
    """Of pixels, in steps from the first point."""
    return ((pixels + 0.5) * scale - offset).clamp(0, count - 1)


def lightness_at_points(lightness: Tensor, stride: int, is_of_blocks: bool) -> Tensor:
    """Lightness (N, 1, H, W) at the points of a grid: of their pixels, or the mean of their blocks."""
    if not is_of_blocks:
        return lightness[:, :, ::stride, ::stride]
    return nn.functional.avg_pool2d(lightness, stride, ceil_mode=True, count_include_pad=False)
