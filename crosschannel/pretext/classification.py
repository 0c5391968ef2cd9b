"""Rebalanced classification over the 313 ab bins (Eq. 2–4), from sparse soft targets.

A dense N × 313 × h × w target never exists: the cross-entropy of a soft target with k bins needs the log-sum-exp
of the logits and k of them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from crosschannel.color import ABQuantizer, rebalancing_weights
from crosschannel.color.chunks import cache_sized_chunks
from crosschannel.color.quantizer import Q
from crosschannel.pretext.task import PrimaryMetric, check_contrast, constant_cross_entropy


class _SparseCrossEntropy(torch.autograd.Function):
    """Saves nothing but its inputs: the softmax is taken anew for the gradient, which is the only other array of the
    logits' size. On a CPU all intermediate results are those of one part, which its cache holds."""

    @staticmethod
    def forward(ctx, logits: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(logits, indices, weights)
        losses = [
            -(part.float().log_softmax(1).gather(1, bins) * soft).sum(1)
            for part, bins, soft in _parts(logits, logits, indices, weights)
        ]
        return torch.cat(losses).view(len(logits), *logits.shape[2:])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        logits, indices, weights = ctx.saved_tensors
        dense = torch.channels_last if _side_by_side(logits) else torch.contiguous_format
        change = torch.empty_like(logits, memory_format=dense)
        for out, part, bins, soft, scale in _parts(logits, change, logits, indices, weights, gradient[:, None]):
            softmax = part.float().softmax(1)
            out.copy_(softmax.scatter_add_(1, bins, -soft).mul_(scale))
        return change, None, None


def _side_by_side(logits: Tensor) -> bool:
    return logits.is_contiguous(memory_format=torch.channels_last)


def _parts(logits: Tensor, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Maps (N, C, h, w) in parts, as (pixels, C) where a pixel's logits lie side by side in memory, else as
    (images, C, pixels): the layouts that softmax kernels are made for."""
    rows = _side_by_side(logits)
    views = [m.permute(0, 2, 3, 1).flatten(0, 2) if rows else m.flatten(2) for m in maps]
    return zip(*cache_sized_chunks(*views), strict=True)


def sparse_cross_entropy(logits: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """-Σ_q z_q log softmax(logits)_q at every pixel, z given by its non-zero entries.

    Args:
        logits: (N, Q, h, w), any float dtype; computed in float32.
        indices: (N, k, h, w) int64 bins, distinct at a pixel.
        weights: (N, k, h, w) float32, summing to 1 over k.

    Returns:
        (N, h, w) float32 nats.
    """
    return _SparseCrossEntropy.apply(logits, indices, weights)


class Classification(nn.Module):
    """Class-rebalanced cross-entropy: v(z)·CE(z, softmax(logits)), v the weight of the target's likeliest bin.

    Args:
        prior: p̃ (313,).
        lam: λ of the weights; 1 is plain classification.
        uniform: the bins that λ is spread over, "all" or those "seen".
        neighbours, sigma: of the soft-encoding.
        grey_threshold: crops none of whose target |a| or |b| exceeds it give no gradient (the release's 5);
            0 keeps all.

    Shape:
        logits (N, 313, h, w) and ab (N, 2, h, w) → (N, h, w).
    """

    outputs = Q
    primary_metric = PrimaryMetric.ratio("kl_share", "best constant colour")
    score_length = 3 + Q

    def __init__(
        self,
        prior: Tensor,
        lam: float = 0.5,
        neighbours: int = 5,
        sigma: float = 5.0,
        grey_threshold: float = 0.0,
        uniform: str = "all",
    ):
        super().__init__()
        self.quantizer = ABQuantizer(neighbours, sigma)
        self.register_buffer("weights", rebalancing_weights(prior, lam, uniform).float(), persistent=False)
        self.grey_threshold = grey_threshold

    def forward(self, logits: Tensor, ab: Tensor) -> Tensor:
        indices, weights = self.quantizer.encode(ab)
        loss = self.weights[indices[:, 0]] * sparse_cross_entropy(logits, indices, weights)
        return without_grey_gradient(loss, ab, self.grey_threshold)

    @torch.no_grad()
    def score(self, logits: Tensor, ab: Tensor) -> Tensor:
        """Sums for :meth:`metrics`, float64: the count of pixels, v·CE, v·H(z), then Σ v·z over pixels (313)."""
        indices, weights = self.quantizer.encode(ab)
        v = self.weights[indices[:, 0]].double()
        cross = (v * sparse_cross_entropy(logits, indices, weights)).sum()
        entropy = -(v[:, None] * torch.special.xlogy(weights, weights)).sum()
        histogram = torch.zeros(Q, dtype=v.dtype, device=v.device)
        histogram.scatter_add_(0, indices.flatten(), (v[:, None] * weights).flatten())
        return torch.cat((torch.stack((torch.tensor(float(v.numel())).to(v), cross, entropy)), histogram))

    @staticmethod
    def metrics(sums: Tensor) -> dict[str, float]:
        """Per-pixel nats from summed scores.

        ``loss`` is the rebalanced cross-entropy, ``kl`` the same less the (rebalanced) entropy of the targets,
        ``kl_constant`` the kl of the constant distribution that fits these very images best, ``kl_share`` their
        ratio: below 1 the net knows something of the pictures.
        """
        pixels, cross, entropy = sums[:3].tolist()
        histogram = sums[3:]
        constant = constant_cross_entropy(histogram)
        kl, kl_constant = (cross - entropy) / pixels, (constant - entropy) / pixels
        check_contrast(kl_constant)
        return {
            "loss": cross / pixels,
            "target_entropy": entropy / pixels,
            "kl": kl,
            "kl_constant": kl_constant,
            "kl_share": kl / kl_constant,
        }


def without_grey_gradient(loss: Tensor, ab: Tensor, threshold: float) -> Tensor:
    """The same values, but crops whose |a| and |b| all stay within the threshold pass no gradient."""
    if not threshold:
        return loss
    coloured = (ab.abs() > threshold).flatten(1).any(1)[:, None, None]
    return torch.where(coloured, loss, loss.detach())
