"""Metrics of an evaluation, computed from its rows for all images or for bootstrap resamples."""

import numpy as np

from crosschannel.runs.result import Rows

_AUC = "auc"  # columns METHOD/auc, (n, 313): AuC summed over the pixels of each true bin
_AUC_WEIGHTED = "auc_weighted"  # columns METHOD/auc_weighted, (n,): the sum over bins, weighted by a prior
_MEANS = ("lpips", "colourfulness", "top1")  # columns METHOD/…, (n,): scores to average over images
_MIN_ERROR = 1 / 12 / 255**2  # mean squared error due to rounding to 8 bits; limits PSNR to 58.9 dB
FIGURES = {  # metric → (column title, factor, decimals)
    "auc_raw": ("Raw AuC, %", 100, 1),
    "auc_rebalanced": ("Rebalanced AuC, %", 100, 1),
    "top1": ("Top-1, %", 100, 1),
    "fooled": ("People fooled, %", 100, 1),
    "psnr": ("PSNR, dB", 1, 2),
    "lpips": ("LPIPS", 1, 3),
    "colourfulness": ("Colourfulness", 1, 1),
    "parameters_mb": ("Parameters, MB", 1, 0),
    "features_mb": ("Features, MB", 1, 0),
    "runtime_ms": ("Runtime, ms", 1, 1),
}


def method_prefixes(rows: Rows) -> list[str]:
    """Return the column prefix of every method: ``NAME/``, or "" if the rows belong to a single method."""
    return [name.removesuffix(_AUC) for name in rows if name == _AUC or name.endswith(f"/{_AUC}")]


def metrics(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Compute all metrics, (R,) each, by name.

    Without a prior, a pixel of a bin has the weight 1 / (number of pixels of this bin in all images). Resamples use the
    same weights: with their own counts, in which rare colours are often missing, AuC would be overestimated.

    Args:
        rows: ``pixels`` (n, 313), pixel counts by true bin; for each method ``METHOD/auc`` (n, 313), ``METHOD/mse``
            (n,) and optional scores; with a prior also ``pixels_weighted`` and ``METHOD/auc_weighted``, both (n,).
        weights: weights of the images, (R, n): one row per resample.
    """
    pixels = rows["pixels"].astype(np.float64)
    counts = pixels.sum(0)
    bin_weights = np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)
    values: dict[str, np.ndarray] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for method in method_prefixes(rows):
            auc = rows[method + _AUC].astype(np.float64)
            values[f"{method}auc_raw"] = (weights @ auc.sum(1)) / (weights @ pixels.sum(1))
            if method + _AUC_WEIGHTED in rows:
                auc_weighted, pixels_weighted = rows[method + _AUC_WEIGHTED].astype(np.float64), rows["pixels_weighted"]
            else:
                auc_weighted, pixels_weighted = auc @ bin_weights, pixels @ bin_weights
            values[f"{method}auc_rebalanced"] = (weights @ auc_weighted) / (
                weights @ pixels_weighted.astype(np.float64)
            )
            error = np.maximum(rows[f"{method}mse"].astype(np.float64), _MIN_ERROR)
            values[f"{method}psnr"] = _mean(-10 * np.log10(error), weights)
            for name in _MEANS:
                if method + name in rows:
                    column = rows[method + name].astype(np.float64)
                    is_known = column >= 0  # -1: the image has no class
                    if is_known.any():
                        values[method + name] = _mean(column[is_known], weights[:, is_known])
    return values


def _mean(column: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ column / weights.sum(1)
