"""Quantization of the ab plane into Q = 313 bins: the soft encoding H⁻¹ (targets) and the annealed mean H (decoding).

Zhang, Isola, Efros, "Colorful Image Colorization", ECCV 2016, sections 2.1 and 2.3.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

# a: (lowest b, highest b), in steps of 10. These are the published in-gamut bins, which differ from the set of
# bins that are nearest to some sRGB colour (261 bins).
_ROWS = {
    -90: (50, 90),
    -80: (20, 90),
    -70: (0, 90),
    -60: (-20, 90),
    -50: (-30, 100),
    -40: (-40, 100),
    -30: (-50, 100),
    -20: (-50, 100),
    -10: (-60, 100),
    0: (-70, 100),
    10: (-80, 90),
    20: (-80, 90),
    30: (-90, 90),
    40: (-100, 90),
    50: (-100, 80),
    60: (-110, 80),
    70: (-110, 80),
    80: (-110, 70),
    90: (-110, 70),
    100: (-90, 0),
}
Q = 313
_EXTENT, _CELL = 128, 2  # the look-up grid covers [-128, 128)² with cells of 2 × 2; sRGB colours are within ±108


def ab_bins() -> Tensor:
    """Return the bin centres (313, 2) float32, sorted by a, then b: the channel order of the released nets."""
    rows = [(a, b) for a, (low, high) in _ROWS.items() for b in range(low, high + 1, 10)]
    return torch.tensor(rows, dtype=torch.float32)


@lru_cache(maxsize=4)
def _candidates(neighbours: int) -> Tensor:
    """Return, for every cell of the look-up grid, the bins that can be among the k nearest to any point of the cell.

    If d is the distance from the cell's centre to its k-th nearest bin, and r is half the cell's diagonal, then the k
    bins nearest to any point of the cell are within d + r of the point, hence within d + 2r of the centre.

    Returns:
        (cells², m) int64 bin indices in ascending order, padded with Q (a bin at infinity).
    """
    bins = ab_bins().double()
    axis = torch.arange(-_EXTENT, _EXTENT, _CELL, dtype=torch.float64) + _CELL / 2
    centres = torch.cartesian_prod(axis, axis)
    distance = torch.cdist(centres, bins)
    max_distance = distance.kthvalue(neighbours, dim=1, keepdim=True).values + 2 * (_CELL / 2) * 2**0.5 + 1e-9
    is_candidate = distance <= max_distance
    order = torch.where(is_candidate, torch.arange(Q), Q).sort(1).values
    return order[:, : int(is_candidate.sum(1).max())].contiguous()


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float) -> Tensor:
    """Return the annealed mean H(Z) = E[f_T(Z)], f_T(z) = softmax(log z / T) (Eq. 5).

    It is the mean for T = 1, and approaches the mode for T → 0.

    Args:
        logits: (N, Q, h, w), unnormalised log-probabilities.
        bins: (Q, 2) bin centres.
        temperature: T > 0.

    Returns:
        (N, 2, h, w) float32 ab values.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        z = ((logits - logits.amax(1, keepdim=True)) / temperature).softmax(1)  # no overflow for small T
        return torch.einsum("nqhw,qc->nchw", z, bins.to(z))


class ABQuantizer(nn.Module):
    """Quantizer with the 313 published bins of the ab plane.

    Args:
        neighbours: number k of bins that encode a colour (paper: 5, release: 10).
        sigma: standard deviation of the Gaussian weights, in ab units.

    Shape:
        ``bins`` (313, 2); ``encode``: (N, 2, h, w) → indices and weights (N, k, h, w);
        ``decode``: (N, 313, h, w) → (N, 2, h, w).

    Example::

        quantizer = ABQuantizer()
        indices, weights = quantizer.encode(lab[:, 1:, ::4, ::4])
        ab = quantizer.decode(logits, temperature=0.38)
    """

    bins: Tensor

    def __init__(self, neighbours: int = 5, sigma: float = 5.0):
        super().__init__()
        if not 1 <= neighbours <= Q:
            raise ValueError(f"neighbours must be within 1..{Q}, got {neighbours}")
        if not sigma > 0:
            raise ValueError(f"sigma must be above 0, got {sigma}")
        self.neighbours, self.sigma = neighbours, float(sigma)
        self.register_buffer("bins", ab_bins(), persistent=False)
        candidates = _candidates(neighbours)
        padding = torch.full((1, 2), 1e6)
        self.register_buffer("_candidates", candidates, persistent=False)
        self.register_buffer("_positions", torch.cat((ab_bins(), padding))[candidates].double(), persistent=False)

    @torch.no_grad()
    def encode(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Soft-encode colours (H⁻¹): the k nearest bins of every pixel, with normalised weights exp(-d² / 2σ²).

        The result is exact for all finite ab values; distances are compared in float64. Bins at the same distance are
        sorted by index.

        Args:
            ab: (N, 2, h, w) float ab values.

        Returns:
            indices (N, k, h, w) int64, nearest first, and weights (N, k, h, w) float32 that sum to 1 over k.
        """
        if ab.ndim != 4 or ab.shape[1] != 2:
            raise ValueError(f"ab must have shape (N, 2, h, w), got {tuple(ab.shape)}")
        n, _, h, w = ab.shape
        points = ab.permute(0, 2, 3, 1).reshape(-1, 2).double()
        cell = ((points + _EXTENT) / _CELL).floor().nan_to_num(0).clamp(0, 2 * _EXTENT / _CELL - 1).long()
        cell = cell[:, 0] * (2 * _EXTENT // _CELL) + cell[:, 1]
        indices, distances = self._nearest(points, self._candidates[cell], self._positions[cell])
        is_outside = (points.abs() >= _EXTENT).any(1)
        if is_outside.any():  # does not happen for sRGB colours
            all_bins = torch.arange(Q, device=ab.device).expand(int(is_outside.sum()), Q)
            indices[is_outside], distances[is_outside] = self._nearest(
                points[is_outside], all_bins, self.bins.double()[all_bins]
            )
        weights = (-(distances - distances[:, :1]) / (2 * self.sigma**2)).exp()
        weights = (weights / weights.sum(1, keepdim=True)).float()
        k = self.neighbours
        return (
            indices.reshape(n, h, w, k).permute(0, 3, 1, 2).contiguous(),
            weights.reshape(n, h, w, k).permute(0, 3, 1, 2).contiguous(),
        )

    def _nearest(self, points: Tensor, candidates: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the k nearest candidates of each point: (P, k) bin indices and squared distances."""
        squared = (positions - points[:, None]).square().sum(2)
        # Candidates are in ascending order, so a stable sort breaks ties in favour of the lower bin.
        distances, order = squared.sort(dim=1, stable=True)
        return candidates.gather(1, order[:, : self.neighbours]), distances[:, : self.neighbours]

    def decode(self, logits: Tensor, temperature: float = 0.38) -> Tensor:
        """Return the annealed mean of the predicted distribution; see :func:`annealed_mean`."""
        return annealed_mean(logits, self.bins, temperature)
