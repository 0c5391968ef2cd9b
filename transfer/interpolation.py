"""Separable linear interpolation of maps to the pixels of an image, for points at any positions."""

import numpy as np
import torch
from torch import Tensor

_MAX_SCORES = 1 << 24  # upsampled scores in memory at a time


def line_weights(centres: Tensor, positions: Tensor, fade: float = 0.0) -> Tensor:
    """Return linear interpolation weights along one axis.

    Args:
        centres: positions of the points (n,), ascending.
        positions: positions to interpolate at (m,).
        fade: distance in pixels over which the weights fall linearly to zero beyond the first and the last point, as in
            a deconvolution; 0: constant extrapolation.

    Returns:
        weights (m, n), float32; rows sum to 1 between the first and the last point.
    """
    centres, positions = centres.double(), positions.double()
    inside = positions.clamp(centres[0], centres[-1])
    after = torch.searchsorted(centres, inside).clamp(1, max(1, len(centres) - 1))
    weights = torch.zeros(len(positions), len(centres), dtype=torch.float64)
    if len(centres) == 1:
        weights[:] = 1
    else:
        fraction = (inside - centres[after - 1]) / (centres[after] - centres[after - 1])
        weights.scatter_(1, after[:, None] - 1, 1 - fraction[:, None]).scatter_(1, after[:, None], fraction[:, None])
    if fade:
        weights *= (1 - (positions - inside).abs() / fade).clamp(min=0)[:, None]
    return weights.float()


def resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Interpolate maps (N, K, h, w) with row weights (H, h) and column weights (W, w) → (N, K, H, W), float32."""
    with torch.autocast(maps.device.type, enabled=False):
        return rows.to(maps.device) @ maps.float() @ columns.to(maps.device).T


def resampled_argmax(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``resample(scores, rows, columns).argmax(1)``, (N, H, W) int64.

    Works in bands of rows, to bound the memory for large images.
    """
    band_rows = max(1, _MAX_SCORES // (scores.shape[:2].numel() * len(columns)))
    return torch.cat([resample(scores, band, columns).max(1).indices for band in rows.split(band_rows)], 1)


def resized_positions(length: int, size: int) -> Tensor:
    """Return the positions (length,) of the pixels of a side, in the coordinates after a resize to ``size`` pixels."""
    return (torch.arange(length, dtype=torch.float64) + 0.5) * size / length - 0.5


def pooled_centres(origin: float, stride: float, points: int, pooled: int) -> Tensor:
    """Return the centres (pooled,) of the bins of an adaptive average pooling along one axis.

    Args:
        origin: position of the first input point.
        stride: distance between input points.
        points: number of input points.
        pooled: number of output points.
    """
    centres = origin + stride * torch.arange(points, dtype=torch.float64)
    bins = [(i * points // pooled, -(-(i + 1) * points // pooled)) for i in range(pooled)]
    return torch.stack([centres[start:stop].mean() for start, stop in bins])


def nearest_indices(length: int, size: int) -> np.ndarray:
    """Return the source indices (size,), int64, of a nearest-neighbour resize from ``length`` to ``size`` pixels."""
    return ((np.arange(size) + 0.5) * length / size).astype(np.int64)
