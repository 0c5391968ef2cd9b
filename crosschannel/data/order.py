"""Counter-based random numbers: order and augmentation as pure functions of (seed, epoch, position, attempt).

As the generator has no state, the random numbers depend neither on workers and ranks nor on restarts. It is SplitMix64
(Steele, Lea, Flood, OOPSLA 2014), implemented here so that no library update changes it.
"""

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(*keys: int) -> int:
    """Hash integers into 64 well-mixed bits; the order of the keys matters."""
    state = 0
    for key in keys:
        state = (state + _GOLDEN + key) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def uniforms(count: int, *keys: int) -> list[float]:
    """Return ``count`` uniform random numbers in [0, 1), a pure function of the keys."""
    base = mix(*keys)
    return [(mix(base, i) >> 11) * 2.0**-53 for i in range(count)]


def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch visits its images, a permutation of ``range(length)``: (length,) int64."""
    state = np.arange(length, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(mix(seed, epoch))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(state ^ (state >> np.uint64(31)), kind="stable")
