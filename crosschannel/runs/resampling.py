"""The bootstrap over images: what a figure could have been on other images of the same kind."""

from collections.abc import Callable, Iterator

import numpy as np

MetricArrays = dict[str, np.ndarray]  # by name, (R,): one for each row of weights

_AT_ONCE = 10_000_000  # weights drawn at once


def intervals(
    figures: Callable[[np.ndarray], MetricArrays], n: int, resamples: int, level: float, seed: int
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of figures under resampling of the images.

    Args:
        figures: weights (R, n) of the images → figures by name, (R,) each.
        n: images.
        resamples: how many.
        level: such as 0.95.
        seed: of the draws.

    Returns:
        (low, high) by name.
    """
    drawn: dict[str, list[np.ndarray]] = {}
    for weights in resampled(n, resamples, seed):
        for name, values in figures(weights).items():
            drawn.setdefault(name, []).append(values)
    tail = (1 - level) / 2
    found = {}
    for name, parts in drawn.items():
        low, high = np.nanquantile(np.concatenate(parts), (tail, 1 - tail))
        found[name] = (float(low), float(high))
    return found


def resampled(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n images is drawn in a resample of n: (R, n) float64, in parts of bounded memory."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // n)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        draws = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(draws.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
