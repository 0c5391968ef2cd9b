"""Large batches in parts: elementwise work on a CPU waits for memory unless its intermediate results stay in cache."""

from torch import Tensor

_NUMBERS = 1 << 19  # whose float32 intermediate results a few megabytes of cache hold


def cached_parts(batch: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """Split a batch along its first dimension; a GPU takes it whole.

    Args:
        batch: (N, ...).
        like: another batch of N, split the same way as it.
    """
    like = batch if like is None else like
    count = max(1, len(like))
    return batch.split(max(1, _NUMBERS * count // max(1, like.numel())) if like.device.type == "cpu" else count)
