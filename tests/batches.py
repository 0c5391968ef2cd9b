"""Batches that tests make without a stream."""

import torch

from crosschannel.data import Batch


def info(count: int, labels: torch.Tensor | None = None) -> Batch:
    """What is common to all batches, for so many samples."""
    numbers = torch.arange(count)
    return Batch(numbers, torch.zeros(count, dtype=torch.int64) if labels is None else labels, numbers, [])
