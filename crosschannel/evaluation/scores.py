"""Scores of coloured pictures, as tensor functions on batches."""

import numpy as np
import torch
from torch import Tensor

from crosschannel.color.quantizer import Q

FARTHEST = 150  # of the thresholds t = 0, 1, … of the error curve, in ab units
LEVELS = FARTHEST + 2  # of ⌈distance⌉: 0 … 150, and beyond


def auc_shares(device: torch.device | str = "cpu") -> Tensor:
    """The share of thresholds that an error is within, by its level: (152,) float64."""
    level = torch.arange(LEVELS, dtype=torch.float64, device=device)
    return (FARTHEST + 1 - level) / (FARTHEST + 1)


def error_levels(ab: Tensor, truth: Tensor, bins: Tensor) -> Tensor:
    """How many pixels of each true bin have an error of each level.

    Args:
        ab, truth: (N, 2, H, W).
        bins: (N, H, W) int64, of the truth.

    Returns:
        (N, 313, 152) int64: by image, true bin and ⌈distance⌉; the last level is beyond 150.
    """
    level = (ab - truth).norm(dim=1).ceil().clamp(max=LEVELS - 1).long()
    image = torch.arange(len(ab), device=ab.device)[:, None, None]
    cells = (image * Q + bins) * LEVELS + level
    return torch.bincount(cells.flatten(), minlength=len(ab) * Q * LEVELS).view(len(ab), Q, LEVELS)


def colourfulness(rgb: Tensor) -> Tensor:
    """Hasler and Süsstrunk's measure (2003): 0 for grey, about 15 slightly and 45 quite colourful.

    Args:
        rgb: (N, 3, H, W) in [0, 1].

    Returns:
        (N,).
    """
    red, green, blue = (255 * channel.flatten(1) for channel in rgb.double().unbind(1))
    one, two = red - green, (red + green) / 2 - blue
    spread = (one.var(1, correction=0) + two.var(1, correction=0)).sqrt()
    return (spread + 0.3 * (one.mean(1).square() + two.mean(1).square()).sqrt()).float()


def squared_error(rgb: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of RGB in [0, 1], (N,)."""
    return (rgb.double() - truth.double()).square().flatten(1).mean(1).float()


def as_array(rgb: Tensor) -> np.ndarray:
    """The first of a batch of float RGB as a picture, (H, W, 3) uint8."""
    return np.ascontiguousarray((rgb[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def to_8_bit(rgb: Tensor) -> Tensor:
    """Float RGB as a file of 8 bits has it."""
    return (rgb * 255).round() / 255
