"""Large batches in parts: elementwise work on a CPU waits for memory unless its intermediate results stay in cache."""

import torch
from torch import Tensor

_NUMBERS = 1 << 19  # whose float32 intermediate results a few megabytes of cache hold


def cache_sized_chunks(*batches: Tensor) -> list[tuple[Tensor, ...]]:
    """Split batches of equal length along their first dimension, all alike; a GPU takes them whole.

    Args:
        batches: each (N, ...); the largest of them sets the length of a part.

    Returns:
        the parts of each batch.
    """
    if torch.compiler.is_compiling():  # a compiler fuses what is elementwise, and lengths may be unknown
        return [(batch,) for batch in batches]
    count = max(1, len(batches[0]))
    largest = max(batch.numel() for batch in batches) or 1
    length = max(1, _NUMBERS * count // largest) if batches[0].device.type == "cpu" else count
    return [batch.split(length) for batch in batches]
