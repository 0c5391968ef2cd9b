"""The ab prior: how often each bin occurs in photographs, and the loss weights that follow from it (Eq. 4)."""

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

_LARGEST = 1 << 20  # bytes of a prior file's arrays


@dataclass
class ABPrior:
    """Distributions over the 313 bins.

    Attributes:
        empirical: p (313,), share of pixels whose nearest bin this is.
        smoothed: p̃ (313,), the mean soft-encoding of the pixels.
        provenance: what it was estimated from (data, images, pixels, neighbours, sigma, library version).
        packaged: its name, where it ships with the package.
    """

    empirical: Tensor
    smoothed: Tensor
    provenance: dict[str, Any] = field(default_factory=dict)
    packaged: str = ""

    def fit_for(self, lam: float) -> "ABPrior":
        """This prior, where it can be divided by at that λ of Eq. 4.

        Raises:
            UserError: λ = 0 and a packaged prior: 600 photographs say next to nothing of rare colours, whose weights it
                would put anywhere up to 2e7. With λ = 0.5 they are bounded.
        """
        if lam == 0 and self.packaged:
            images = self.provenance.get("images", "few")
            raise UserError(
                f"the packaged prior {self.packaged} is of {images} photographs, too few for a lam of 0: "
                "estimate one of your images with `crosschannel prior`"
            )
        return self

    def save(self, path: Path | str, write: Writer = atomic_write) -> None:
        """Write a ``.npz`` file (float64 arrays and the provenance as JSON; no pickle)."""
        with write(Path(path)) as part, part.open("wb") as file:
            np.savez(
                file,
                empirical=self.empirical.double().numpy(),
                smoothed=self.smoothed.double().numpy(),
                provenance=np.array(json.dumps(self.provenance)),
            )


class PriorEstimator:
    """Accumulates p and p̃ over batches of images in constant memory.

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
        """Count every pixel of (N, 3, H, W) images."""
        indices, weights = self.quantizer.encode(rgb_to_lab(rgb)[:, 1:])
        self.nearest += torch.bincount(indices[:, 0].flatten(), minlength=Q)
        self.soft += torch.bincount(indices.flatten(), weights.double().flatten(), minlength=Q)
        self.images += rgb.shape[0]
        self.pixels += rgb.shape[0] * rgb.shape[2] * rgb.shape[3]

    def prior(self, **provenance: Any) -> ABPrior:
        """The distributions of everything added so far."""
        if not self.pixels:
            raise ValueError("no image was added")
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
    """w ∝ ((1 - λ)·p̃ + λ/Q)⁻¹, scaled so that Σ p̃·w = 1 (Eq. 4). λ = 1 gives every bin weight 1.

    A bin that would get an infinite weight, since neither part covers it, gets that of the rarest seen bin.

    Args:
        prior: p̃ (313,), non-negative.
        lam: λ in [0, 1].
        uniform: the bins that λ is spread over: "all" Q, as the paper has it, or those "seen" (p̃ ≠ 0), as the release.

    Returns:
        (313,) float64 weights.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must be within 0..1, got {lam}")
    p = prior.double() / prior.double().sum()
    covered = (p > 0).double() if uniform == "seen" else torch.ones_like(p)
    mixed = (1 - lam) * p + lam * covered / covered.sum()
    mixed = mixed.clamp(min=mixed[mixed > 0].min())
    weights = 1 / mixed
    return weights / (p * weights).sum()


def load_prior(source: str = "imagenet-256") -> ABPrior:
    """Read a prior file written by ``crosschannel prior``, or the packaged one.

    Args:
        source: a path, or ``imagenet-256`` for the prior that ships with the package (600 ImageNet photographs
            of 600 classes; see its ``provenance``).

    Raises:
        UserError: no such file, or not a prior.
    """
    packaged = files("crosschannel.color") / "priors" / f"{source}.npz"
    path = packaged if "/" not in source and packaged.is_file() else user_path(source)
    if not path.is_file():
        raise UserError(f"no prior at {source!r}: give a file that `crosschannel prior` wrote, or 'imagenet-256'")
    try:
        arrays = read_arrays(path, _LARGEST)
    except UserError as error:
        raise UserError(f"{source} is not a prior file that `crosschannel prior` wrote: {error}") from None
    if arrays.keys() != {"empirical", "smoothed", "provenance"}:
        raise UserError(f"{source} is not a prior file that `crosschannel prior` wrote: it holds {', '.join(arrays)}")
    distributions = []
    for p in (arrays["empirical"], arrays["smoothed"]):
        if p.shape != (Q,) or p.dtype != np.float64 or not np.isfinite(p).all() or (p < 0).any() or not p.sum() > 0:
            raise UserError(f"{source} does not hold distributions over {Q} bins")
        distributions.append(torch.from_numpy(p.copy()))
    provenance = parse_json(str(arrays["provenance"]), f"the provenance of {source}")
    provenance = provenance if isinstance(provenance, dict) else {}
    return ABPrior(*distributions, provenance, source if path == packaged else "")
