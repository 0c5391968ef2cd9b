"""Batches for tests that do not use a stream."""

import torch

from crosschannel.data import Batch


def base_batch(count: int, labels: torch.Tensor | None = None) -> Batch:
    """Return a batch with only the fields that all batches share."""
    indices = torch.arange(count)
    return Batch(indices, torch.zeros(count, dtype=torch.int64) if labels is None else labels, indices, [])
