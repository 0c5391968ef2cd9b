"""The ab plane in Q = 313 bins: soft-encoding H⁻¹ (targets) and the annealed mean H (decoding).

Zhang, Isola, Efros, "Colorful Image Colorization", ECCV 2016, sections 2.1 and 2.3.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

# Row a: (lowest b, highest b); each row is contiguous at a step of 10. The published set of in-gamut bins: it
# is not what "the nearest bin of every sRGB colour" gives (261 bins), so the table is the definition.
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
_EXTENT, _CELL = 128, 2  # the look-up lattice covers [-128, 128)² in 2 × 2 cells; sRGB stays within ±108


def ab_bins() -> Tensor:
    """Bin centres (313, 2) float32, a ascending, then b ascending: the channel order of the released nets."""
    rows = [(a, b) for a, (low, high) in _ROWS.items() for b in range(low, high + 1, 10)]
    return torch.tensor(rows, dtype=torch.float32)


@lru_cache(maxsize=4)
def _candidates(neighbours: int) -> Tensor:
    """For every lattice cell the bins that can be among the k nearest of any of its points.

    If d is the distance from the cell's centre to its k-th nearest bin and r the cell's half diagonal, every
    point of the cell has its k nearest within d + r, hence within d + 2r of the centre.

    Returns:
        (cells², m) int64, bins ascending, filled up with Q (a bin infinitely far away).
    """
    bins = ab_bins().double()
    axis = torch.arange(-_EXTENT, _EXTENT, _CELL, dtype=torch.float64) + _CELL / 2
    centres = torch.cartesian_prod(axis, axis)
    distance = torch.cdist(centres, bins)
    reach = distance.kthvalue(neighbours, dim=1, keepdim=True).values + 2 * (_CELL / 2) * 2**0.5 + 1e-9
    inside = distance <= reach
    order = torch.where(inside, torch.arange(Q), Q).sort(1).values
    return order[:, : int(inside.sum(1).max())].contiguous()


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float) -> Tensor:
    """H(Z) = E[f_T(Z)], f_T(z) = softmax(log z / T): T = 1 is the mean, T → 0 the mode (Eq. 5).

    Args:
        logits: (N, Q, h, w), unnormalised log-probabilities.
        bins: (Q, 2) centres.
        temperature: T > 0.

    Returns:
        (N, 2, h, w) float32 ab.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        z = ((logits - logits.amax(1, keepdim=True)) / temperature).softmax(1)  # no overflow, however small T
        return torch.einsum("nqhw,qc->nchw", z, bins.to(z))


class ABQuantizer(nn.Module):
    """The published 313 bins of the ab plane.

    Args:
        neighbours: bins a colour is spread over (k; the paper's 5, the release's 10).
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
        far = torch.full((1, 2), 1e6)
        self.register_buffer("_candidates", candidates, persistent=False)
        self.register_buffer("_positions", torch.cat((ab_bins(), far))[candidates].double(), persistent=False)

    @torch.no_grad()
    def encode(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Soft-encoding H⁻¹: the k nearest bins of every point, weighted by exp(-d² / 2σ²), normalised.

        Exact for every ab value; where two bins are equally far the lower index comes first. Ranks are taken
        in float64, weights are float32.

        Args:
            ab: (N, 2, h, w) float.

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
        beyond = (points.abs() >= _EXTENT).any(1)
        if beyond.any():  # no sRGB colour comes here
            every = torch.arange(Q, device=ab.device).expand(int(beyond.sum()), Q)
            indices[beyond], distances[beyond] = self._nearest(points[beyond], every, self.bins.double()[every])
        weights = (-(distances - distances[:, :1]) / (2 * self.sigma**2)).exp()
        weights = (weights / weights.sum(1, keepdim=True)).float()
        k = self.neighbours
        return (
            indices.reshape(n, h, w, k).permute(0, 3, 1, 2).contiguous(),
            weights.reshape(n, h, w, k).permute(0, 3, 1, 2).contiguous(),
        )

    def _nearest(self, points: Tensor, candidates: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The k nearest candidates of each point: (P, k) bin indices and squared distances."""
        squared = (positions - points[:, None]).square().sum(2)
        # Candidates ascend, so a stable sort breaks ties in favour of the lower bin.
        distances, order = squared.sort(dim=1, stable=True)
        return candidates.gather(1, order[:, : self.neighbours]), distances[:, : self.neighbours]

    def decode(self, logits: Tensor, temperature: float = 0.38) -> Tensor:
        """Annealed mean of the predicted distribution; see :func:`annealed_mean`."""
        return annealed_mean(logits, self.bins, temperature)
