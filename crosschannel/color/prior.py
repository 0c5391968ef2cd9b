"""The ab prior: the frequency of each ab bin in photographs, and the rebalancing weights derived from it (Eq. 4)."""

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosschannel.color.lab import rgb_to_lab
from crosschannel.color.quantizer import ABQuantizer, Q
from crosschannel.errors import UserError
from crosschannel.files import Writer, atomic_write, user_path
from crosschannel.stored import parse_json, read_arrays

_MAX_BYTES = 1 << 20  # maximum size of the arrays in a prior file


@dataclass
class ABPrior:
    """Distributions over the 313 ab bins.

    Attributes:
        empirical: p (313,), the fraction of pixels that are nearest to each bin.
        smoothed: p̃ (313,), the soft encoding averaged over pixels.
        provenance: origin of the prior (data, images, pixels, neighbours, sigma, library version).
        packaged_name: name of the prior if it ships with the package, otherwise empty.
    """

    empirical: Tensor
    smoothed: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)
    packaged_name: str = ""

    def check_lam(self, lam: float) -> "ABPrior":
        """Check that the prior is accurate enough for a value of λ in Eq. 4, and return the prior.

        Raises:
            UserError: λ is 0 and the prior is a packaged one. Its 600 photographs hardly determine the frequencies of
                rare colours, which could get weights up to 2e7. λ = 0.5 bounds the weights.
        """
        if lam == 0 and self.packaged_name:
            images = self.provenance.get("images", "few")
            raise UserError(
                f"the packaged prior {self.packaged_name} is from {images} photographs, too few for a lam of 0; "
                "estimate a prior from your images with `crosschannel prior`"
            )
        return self

    def save(self, path: Path | str, write: Writer = atomic_write) -> None:
        """Write the prior to a ``.npz`` file (float64 arrays, and the provenance as JSON; no pickle)."""
        with write(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                empirical=self.empirical.double().numpy(),
                smoothed=self.smoothed.double().numpy(),
                provenance=np.array(json.dumps(self.provenance)),
            )


class PriorEstimator:
    """Estimator of p and p̃ from batches of images, in constant memory.

    Example::

        estimator = PriorEstimator()
        for rgb in batches:           # (N, 3, H, W) float in [0, 1] or uint8
            estimator.add(rgb)
        prior = estimator.prior()
    """

    def __init__(self, neighbours: int = 5, sigma: float = 5.0, device: str | torch.device = "cpu"):
        self.quantizer = ABQuantizer(neighbours, sigma).to(device)
        self.nearest = torch.zeros(Q, dtype=torch.float64, device=device)
        self.soft = torch.zeros(Q, dtype=torch.float64, device=device)
        self.images = self.pixels = 0

    def add(self, rgb: Tensor) -> None:
        """Add all pixels of images (N, 3, H, W)."""
        indices, weights = self.quantizer.encode(rgb_to_lab(rgb)[:, 1:])
        self.nearest += torch.bincount(indices[:, 0].flatten(), minlength=Q)
        self.soft += torch.bincount(indices.flatten(), weights.double().flatten(), minlength=Q)
        self.images += rgb.shape[0]
        self.pixels += rgb.shape[0] * rgb.shape[2] * rgb.shape[3]

    def prior(self, **provenance: Any) -> ABPrior:
        """Return the prior estimated from all images added so far."""
        if not self.pixels:
            raise ValueError("no images were added")
        return ABPrior(
            (self.nearest / self.nearest.sum()).cpu(),
            (self.soft / self.soft.sum()).cpu(),
            {
                "images": self.images,
                "pixels": self.pixels,
                "neighbours": self.quantizer.neighbours,
                "sigma": self.quantizer.sigma,
                **provenance,
            },
        )


def rebalancing_weights(prior: Tensor, lam: float = 0.5, uniform: str = "all") -> Tensor:
    """Return the weights w ∝ ((1 - λ)·p̃ + λ/Q)⁻¹, scaled so that Σ p̃·w = 1 (Eq. 4).

    λ = 1 gives every bin the weight 1. A bin whose terms are both 0 would have an infinite weight; it gets the largest
    finite weight instead.

    Args:
        prior: p̃ (313,), non-negative.
        lam: λ in [0, 1].
        uniform: bins of the uniform term: "all" Q bins (paper), or those "seen" in the prior, p̃ > 0 (release).

    Returns:
        (313,) float64 weights.

    Raises:
        ValueError: ``lam`` is outside [0, 1].
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must be within 0..1, got {lam}")
    p = prior.double() / prior.double().sum()
    support = (p > 0).double() if uniform == "seen" else torch.ones_like(p)
    mixture = (1 - lam) * p + lam * support / support.sum()
    mixture = mixture.clamp(min=mixture[mixture > 0].min())
    weights = 1 / mixture
    return weights / (p * weights).sum()


def load_prior(source: str = "imagenet-256") -> ABPrior:
    """Load a prior file written by ``crosschannel prior``, or a packaged prior.

    Args:
        source: a path, or ``imagenet-256`` for the packaged prior, estimated from 600 ImageNet photographs of 600
            classes (see its ``provenance``).

    Raises:
        UserError: the file does not exist or is not a prior.
    """
    packaged_path = files("crosschannel.color") / "priors" / f"{source}.npz"
    path = packaged_path if "/" not in source and packaged_path.is_file() else user_path(source)
    if not path.is_file():
        raise UserError(f"no prior at {source!r}; pass a file written by `crosschannel prior`, or 'imagenet-256'")
    try:
        arrays = read_arrays(path, _MAX_BYTES)
    except UserError as error:
        raise UserError(f"{source} is not a prior written by `crosschannel prior`: {error}") from None
    if arrays.keys() != {"empirical", "smoothed", "provenance"}:
        raise UserError(f"{source} is not a prior written by `crosschannel prior`: it contains {', '.join(arrays)}")
    distributions = []
    for p in (arrays["empirical"], arrays["smoothed"]):
        if p.shape != (Q,) or p.dtype != np.float64 or not np.isfinite(p).all() or (p < 0).any() or not p.sum() > 0:
            raise UserError(f"{source} does not contain distributions over {Q} bins")
        distributions.append(torch.from_numpy(p.copy()))
    provenance = parse_json(str(arrays["provenance"]), f"the provenance of {source}")
    provenance = provenance if isinstance(provenance, dict) else {}
    return ABPrior(*distributions, provenance, source if path == packaged_path else "")
