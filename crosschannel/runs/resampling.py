"""Bootstrap over images: confidence intervals of metrics."""

from collections.abc import Callable, Iterator

import numpy as np

MetricArrays = dict[str, np.ndarray]  # metrics by name, (R,): one value per row of weights (R, n)

_MAX_WEIGHTS = 10_000_000  # maximum number of weights drawn at once


def intervals(
    metrics: Callable[[np.ndarray], MetricArrays], n: int, resamples: int, level: float, seed: int
) -> dict[str, tuple[float, float]]:
    """Compute percentile bootstrap intervals of metrics, by resampling the images.

    Args:
        metrics: function that maps image weights (R, n) to metrics by name, (R,) each.
        n: number of images.
        resamples: number of bootstrap resamples.
        level: confidence level, such as 0.95.
        seed: random seed of the resamples.

    Returns:
        (low, high) by metric name.
    """
    samples: dict[str, list[np.ndarray]] = {}
    for weights in bootstrap_weights(n, resamples, seed):
        for name, values in metrics(weights).items():
            samples.setdefault(name, []).append(values)
    tail = (1 - level) / 2
    bounds = {}
    for name, chunks in samples.items():
        low, high = np.nanquantile(np.concatenate(chunks), (tail, 1 - tail))
        bounds[name] = (float(low), float(high))
    return bounds


def bootstrap_weights(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each of n images occurs in each resample, (R, n) float64, in chunks of bounded memory."""
    generator = np.random.default_rng(seed)
    chunk = max(1, _MAX_WEIGHTS // n)
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        draws = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(draws.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
