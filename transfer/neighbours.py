"""Exact nearest neighbours by cosine similarity, in chunks of bounded memory."""

import torch
from torch import Tensor
from torch.nn import functional as F


def neighbours(
    queries: Tensor, bank: Tensor, k: int, device: torch.device | str = "cpu", chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """Find the k nearest rows of a bank for each query, by cosine similarity.

    Args:
        queries: (N, D) float.
        bank: (M, D) float with M ≥ k; may be memory-mapped.
        k: number of neighbours.
        device: device for the matrix products.
        chunk: number of queries, and of bank rows, per matrix product.

    Returns:
        indices (N, k), int64, and cosines (N, k), float32, on the CPU; nearest first, ties by ascending index.
    """
    cosines = torch.empty(len(queries), 0, device=device)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    for start in range(0, len(bank), chunk):
        rows = F.normalize(bank[start : start + chunk].to(device).float(), dim=1).T
        merged: list[tuple[Tensor, Tensor]] = []
        for query_chunk, best, best_indices in zip(
            queries.split(chunk), cosines.split(chunk), indices.split(chunk), strict=True
        ):
            products = F.normalize(query_chunk.to(device).float(), dim=1) @ rows
            merged.append(_merge_chunk(best, best_indices, products, start, k))
        cosines, indices = (torch.cat(chunks) for chunks in zip(*merged, strict=True))
    return indices.cpu(), cosines.cpu()


def _merge_chunk(
    best_cosines: Tensor, best_indices: Tensor, cosines: Tensor, start: int, k: int
) -> tuple[Tensor, Tensor]:
    """Merge the best neighbours so far with those of a chunk whose first row has index ``start``; keep the k best."""
    values, indices = _stable_topk(cosines, min(k, cosines.shape[1]))
    values, indices = torch.cat((best_cosines, values), 1), torch.cat((best_indices, indices + start), 1)
    values, order = values.sort(dim=1, descending=True, stable=True)  # earlier chunks have lower indices
    return values[:, :k], indices.gather(1, order[:, :k])


def _stable_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row (N, M) and their indices; ties are broken by ascending index."""
    top, indices = values.topk(k, 1)
    tied = ((values >= top[:, -1:]).sum(1) > k).nonzero()[:, 0]  # topk chooses arbitrarily among ties for the last rank
    if len(tied):
        ranked = values[tied].sort(dim=1, descending=True, stable=True)
        top[tied], indices[tied] = ranked[0][:, :k], ranked[1][:, :k]
    indices, order = indices.sort(1)
    top, by_value = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    return top, indices.gather(1, by_value)
