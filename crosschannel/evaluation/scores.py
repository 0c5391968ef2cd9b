"""Scores of batches of coloured images."""

import numpy as np
import torch
from torch import Tensor

from crosschannel.color.quantizer import Q

MAX_THRESHOLD = 150  # thresholds of the error curve are 0, 1, … 150, in ab units
LEVELS = MAX_THRESHOLD + 2  # error levels: ⌈distance⌉ in 0 … 150, and one for larger distances


def auc_weights(device: torch.device | str = "cpu") -> Tensor:
    """Return the fraction of thresholds that an error of each level does not exceed, (152,) float64."""
    level = torch.arange(LEVELS, dtype=torch.float64, device=device)
    return (MAX_THRESHOLD + 1 - level) / (MAX_THRESHOLD + 1)


def error_levels(ab: Tensor, truth: Tensor, bins: Tensor) -> Tensor:
    """Count the pixels of each true bin by error level.

    Args:
        ab: predicted ab, (N, 2, H, W).
        truth: true ab, (N, 2, H, W).
        bins: bins of the true ab, (N, H, W) int64.

    Returns:
        counts by image, true bin and ⌈distance⌉, (N, 313, 152) int64; the last level contains distances above 150.
    """
    level = (ab - truth).norm(dim=1).ceil().clamp(max=LEVELS - 1).long()
    image = torch.arange(len(ab), device=ab.device)[:, None, None]
    flat_indices = (image * Q + bins) * LEVELS + level
    return torch.bincount(flat_indices.flatten(), minlength=len(ab) * Q * LEVELS).view(len(ab), Q, LEVELS)


def colourfulness(rgb: Tensor) -> Tensor:
    """Compute the colourfulness of Hasler and Süsstrunk (2003): 0 is grey, 15 slightly and 45 quite colourful.

    Args:
        rgb: (N, 3, H, W) in [0, 1].

    Returns:
        (N,).
    """
    red, green, blue = (255 * channel.flatten(1) for channel in rgb.double().unbind(1))
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    std = (red_green.var(1, correction=0) + yellow_blue.var(1, correction=0)).sqrt()
    return (std + 0.3 * (red_green.mean(1).square() + yellow_blue.mean(1).square()).sqrt()).float()


def squared_error(rgb: Tensor, truth: Tensor) -> Tensor:
    """Compute the mean squared error of RGB in [0, 1] per image, (N,)."""
    return (rgb.double() - truth.double()).square().flatten(1).mean(1).float()


def as_array(rgb: Tensor) -> np.ndarray:
    """Convert the first image of a batch of float RGB to (H, W, 3) uint8."""
    return np.ascontiguousarray((rgb[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def to_8_bit(rgb: Tensor) -> Tensor:
    """Round float RGB in [0, 1] to 8 bits, as in an image file."""
    return (rgb * 255).round() / 255
