"""Rows of an evaluation → its figures, for all images or under resampling."""

import numpy as np

from crosschannel.runs.result import Rows

_OF_A_BIN = "auc"  # columns METHOD/auc: (n, 313), summed shares of thresholds by true bin
_WEIGHTED = "auc_weighted"  # METHOD/auc_weighted: (n,), the same under the weights of a prior
_MEANS = ("lpips", "colourfulness", "top1")  # METHOD/…: (n,)
_ROUNDING = 1 / 12 / 255**2  # mean squared error of 8 bits: nothing comes closer than its 58.9 dB
FIGURES = {  # of a method: (head of its column, factor, digits)
    "auc_raw": ("AuC raw %", 100, 1),
    "auc_rebalanced": ("AuC rebalanced %", 100, 1),
    "top1": ("top-1 %", 100, 1),
    "fooled": ("people fooled %", 100, 1),
    "psnr": ("PSNR dB", 1, 2),
    "lpips": ("LPIPS", 1, 3),
    "colourfulness": ("colourfulness", 1, 1),
    "parameters_mb": ("parameters MB", 1, 0),
    "features_mb": ("features MB", 1, 0),
    "runtime_ms": ("runtime ms", 1, 1),
}


def methods_of(rows: Rows) -> list[str]:
    """What stands before the columns of each method: ``NAME/``, or nothing where there is one method."""
    return [name.removesuffix(_OF_A_BIN) for name in rows if name == _OF_A_BIN or name.endswith(f"/{_OF_A_BIN}")]


def metrics(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Figures by name, (R,) each.

    Args:
        rows: ``pixels`` (n, 313) by true bin; for each method ``METHOD/auc`` (n, 313), ``METHOD/mse`` (n,) and what
            else was scored; under the weights of a prior ``pixels_weighted`` and ``METHOD/auc_weighted`` (n,).
            Without, a pixel weighs one over how many of its bin all these images have, however they are weighted: a
            resample of the images has seen fewer rare colours, and would be too good by its own.
        weights: (R, n) of the images.
    """
    pixels = rows["pixels"].astype(np.float64)
    counts = pixels.sum(0)
    of_bins = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)
    found: dict[str, np.ndarray] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for method in methods_of(rows):
            within = rows[method + _OF_A_BIN].astype(np.float64)
            found[f"{method}auc_raw"] = (weights @ within.sum(1)) / (weights @ pixels.sum(1))
            if method + _WEIGHTED in rows:
                good, all_of_them = rows[method + _WEIGHTED].astype(np.float64), rows["pixels_weighted"]
            else:
                good, all_of_them = within @ of_bins, pixels @ of_bins
            found[f"{method}auc_rebalanced"] = (weights @ good) / (weights @ all_of_them.astype(np.float64))
            error = np.maximum(rows[f"{method}mse"].astype(np.float64), _ROUNDING)
            found[f"{method}psnr"] = _mean(-10 * np.log10(error), weights)
            for name in _MEANS:
                if method + name in rows:
                    column = rows[method + name].astype(np.float64)
                    known = column >= 0  # -1: of no class
                    if known.any():
                        found[method + name] = _mean(column[known], weights[:, known])
    return found


def _mean(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ column / weights.sum(1)
