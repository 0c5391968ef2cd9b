"""Colour conversion (sRGB ↔ Lab), quantization of ab into 313 bins, and the ab prior, for batches on any device."""

from crosschannel.color.lab import fit_gamut, lab_to_rgb, rgb_to_lab, rgb_to_lightness
from crosschannel.color.prior import ABPrior, PriorEstimator, load_prior, rebalancing_weights
from crosschannel.color.quantizer import ABQuantizer, annealed_mean

__all__ = [
    "ABPrior",
    "ABQuantizer",
    "PriorEstimator",
    "annealed_mean",
    "fit_gamut",
    "lab_to_rgb",
    "load_prior",
    "rebalancing_weights",
    "rgb_to_lab",
    "rgb_to_lightness",
]
