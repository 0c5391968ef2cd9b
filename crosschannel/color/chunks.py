"""Split large batches into chunks whose intermediate results fit in the CPU cache.

Otherwise elementwise operations on a CPU are limited by memory bandwidth.
"""

import torch
from torch import Tensor

_MAX_ELEMENTS = 1 << 19  # their float32 intermediate results fit in a few megabytes of cache


def cache_sized_chunks(*batches: Tensor) -> list[tuple[Tensor, ...]]:
    """Split batches of equal length at the same points of the first dimension. On a GPU they are not split.

    Args:
        batches: tensors (N, ...); the one with the most elements determines the length of the chunks.

    Returns:
        The chunks of each batch.
    """
    if torch.compiler.is_compiling():  # compilers fuse elementwise operations, and lengths may be symbolic
        return [(batch,) for batch in batches]
    count = max(1, len(batches[0]))
    largest = max(batch.numel() for batch in batches) or 1
    length = max(1, _MAX_ELEMENTS * count // largest) if batches[0].device.type == "cpu" else count
    return [batch.split(length) for batch in batches]
