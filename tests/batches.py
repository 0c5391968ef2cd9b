"""Batches that tests make without a stream."""

import torch

from crosschannel.data import Batch


def base_batch(count: int, labels: torch.Tensor | None = None) -> Batch:
    """The fields that all batches have."""
    numbers = torch.arange(count)
    return Batch(numbers, torch.zeros(count, dtype=torch.int64) if labels is None else labels, numbers, [])
