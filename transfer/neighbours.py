"""Nearest neighbours by cosine: exact, in chunks of bounded memory."""

import torch
from torch import Tensor
from torch.nn import functional as F


def neighbours(
    queries: Tensor, bank: Tensor, k: int, device: torch.device | str = "cpu", chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a bank by cosine.

    Args:
        queries: (N, D) float.
        bank: (M, D) float, M ≥ k; it may be memory-mapped.
        k: how many.
        device: where the products are computed.
        chunk: rows of either side that are multiplied at once.

    Returns:
        indices (N, k) int64 and cosines (N, k) float32 on the CPU, nearest first; equal ones by lower index.
    """
    best = torch.empty(len(queries), 0, device=device)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    for start in range(0, len(bank), chunk):
        rows = F.normalize(bank[start : start + chunk].to(device).float(), dim=1).T
        found: list[tuple[Tensor, Tensor]] = []
        for part, values, places in zip(queries.split(chunk), best.split(chunk), where.split(chunk), strict=True):
            cosines = F.normalize(part.to(device).float(), dim=1) @ rows
            found.append(_better(values, places, cosines, start, k))
        best, where = (torch.cat(parts) for parts in zip(*found, strict=True))
    return where.cpu(), best.cpu()


def _better(best: Tensor, where: Tensor, cosines: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of those found before and of a chunk whose rows begin at ``start``."""
    values, places = _greatest(cosines, min(k, cosines.shape[1]))
    values, places = torch.cat((best, values), 1), torch.cat((where, places + start), 1)
    values, order = values.sort(dim=1, descending=True, stable=True)  # those found before have lower indices
    return values[:, :k], places.gather(1, order[:, :k])


def _greatest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of every row (N, M), of equal ones those with lower indices, by value and then by index."""
    found, places = values.topk(k, 1)
    crowded = ((values >= found[:, -1:]).sum(1) > k).nonzero()[:, 0]  # topk takes any of those that tie for its last
    if len(crowded):
        ranked = values[crowded].sort(dim=1, descending=True, stable=True)
        found[crowded], places[crowded] = ranked[0][:, :k], ranked[1][:, :k]
    places, order = places.sort(1)
    found, by_value = found.gather(1, order).sort(dim=1, descending=True, stable=True)
    return found, places.gather(1, by_value)
