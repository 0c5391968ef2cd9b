"""Maps brought to an image's own pixels by linear weights along each axis, wherever their points lie over it."""

import numpy as np
import torch
from torch import Tensor

_SCORES = 1 << 24  # held at once


def line_weights(centres: Tensor, places: Tensor, fade: float = 0.0) -> Tensor:
    """What each of some places takes from a line of points.

    Args:
        centres: (n,) where the points are, ascending.
        places: (m,).
        fade: beyond the first and the last point, what is taken of them falls to zero within so many pixels, as of a
            deconvolution; 0: they are taken whole.

    Returns:
        (m, n) float32; between two points linear, rows sum to 1 there.
    """
    centres, places = centres.double(), places.double()
    inside = places.clamp(centres[0], centres[-1])
    after = torch.searchsorted(centres, inside).clamp(1, max(1, len(centres) - 1))
    weights = torch.zeros(len(places), len(centres), dtype=torch.float64)
    if len(centres) == 1:
        weights[:] = 1
    else:
        share = (inside - centres[after - 1]) / (centres[after] - centres[after - 1])
        weights.scatter_(1, after[:, None] - 1, 1 - share[:, None]).scatter_(1, after[:, None], share[:, None])
    if fade:
        weights *= (1 - (places - inside).abs() / fade).clamp(min=0)[:, None]
    return weights.float()


def resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, K, h, w) by row weights (H, h) and column weights (W, w) → (N, K, H, W) float32."""
    with torch.autocast(maps.device.type, enabled=False):
        return rows.to(maps.device) @ maps.float() @ columns.to(maps.device).T


def greatest(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The class of the greatest score at every pixel: ``resample(…).argmax(1)``, (N, H, W) int64, in bands of rows, so
    that a large picture takes no more memory than its labels."""
    at_once = max(1, _SCORES // (scores.shape[:2].numel() * len(columns)))
    return torch.cat([resample(scores, band, columns).max(1).indices for band in rows.split(at_once)], 1)


def squashed_places(length: int, size: int) -> Tensor:
    """Where the pixels of a side of ``length`` lie once it is resized to ``size``: (length,)."""
    return (torch.arange(length, dtype=torch.float64) + 0.5) * size / length - 0.5


def pooled_centres(origin: float, stride: float, points: int, pooled: int) -> Tensor:
    """Where the points of an adaptive average of a line of points lie: (pooled,).

    Args:
        origin, stride: of the line.
        points: on it.
        pooled: points of the average.
    """
    centres = origin + stride * torch.arange(points, dtype=torch.float64)
    ends = [(i * points // pooled, -(-(i + 1) * points // pooled)) for i in range(pooled)]
    return torch.stack([centres[start:stop].mean() for start, stop in ends])


def nearest(length: int, size: int) -> np.ndarray:
    """The nearest of ``length`` pixels to each of ``size`` evenly spread ones: (size,) int64."""
    return ((np.arange(size) + 0.5) * length / size).astype(np.int64)
