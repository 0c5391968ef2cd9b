"""Rebalanced classification over the 313 ab bins (Eq. 2–4), from sparse soft targets.

A dense N × 313 × h × w target is never built: the cross-entropy of a soft target with k bins needs only k logits
and the log-sum-exp of all logits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from crosschannel.color import ABQuantizer, rebalancing_weights
from crosschannel.color.chunks import cache_sized_chunks
from crosschannel.color.quantizer import Q
from crosschannel.pretext.task import PrimaryMetric, check_contrast, constant_cross_entropy


class _SparseCrossEntropy(torch.autograd.Function):
    """Cross-entropy that saves only its inputs for the backward pass, which recomputes the softmax.

    The gradient is the only other array as large as the logits. On a CPU, intermediate results are computed in
    chunks that fit into its cache.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(logits, indices, weights)
        losses = [
            -(chunk.float().log_softmax(1).gather(1, bins) * bin_weights).sum(1)
            for chunk, bins, bin_weights in _chunks(logits, logits, indices, weights)
        ]
        return torch.cat(losses).view(len(logits), *logits.shape[2:])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        logits, indices, weights = ctx.saved_tensors
        memory_format = torch.channels_last if _is_channels_last(logits) else torch.contiguous_format
        logits_gradient = torch.empty_like(logits, memory_format=memory_format)
        for out, chunk, bins, bin_weights, scale in _chunks(
            logits, logits_gradient, logits, indices, weights, gradient[:, None]
        ):
            softmax = chunk.float().softmax(1)
            out.copy_(softmax.scatter_add_(1, bins, -bin_weights).mul_(scale))
        return logits_gradient, None, None


def _is_channels_last(logits: Tensor) -> bool:
    return logits.is_contiguous(memory_format=torch.channels_last)


def _chunks(logits: Tensor, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split maps (N, C, h, w) into chunks (pixels, C) if the logits are channels-last, else (images, C, pixels): the
    layouts for which softmax kernels are fast."""
    channels_last = _is_channels_last(logits)
    views = [m.permute(0, 2, 3, 1).flatten(0, 2) if channels_last else m.flatten(2) for m in maps]
    return zip(*cache_sized_chunks(*views), strict=True)


def sparse_cross_entropy(logits: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Compute -Σ_q z_q log softmax(logits)_q at every pixel, with the target z given by its non-zero entries.

    Args:
        logits: (N, Q, h, w), any float dtype; computed in float32.
        indices: (N, k, h, w) int64 bins, distinct at each pixel.
        weights: (N, k, h, w) float32, summing to 1 over k.

    Returns:
        (N, h, w) float32 nats.
    """
    return _SparseCrossEntropy.apply(logits, indices, weights)


class Classification(nn.Module):
    """Class-rebalanced cross-entropy: v(z)·CE(z, softmax(logits)), where v is the weight of the target's nearest bin.

    Args:
        prior: p̃ (313,).
        lam: λ of the weights; with 1 the classes are not rebalanced.
        uniform: bins over which λ is spread: "all", or those "seen" in the prior.
        neighbours, sigma: number of bins and std of the soft encoding.
        grey_threshold: crops in which no target |a| or |b| exceeds this value give no gradient (the release: 5);
            0 keeps all crops.

    Shape:
        logits (N, 313, h, w) and ab (N, 2, h, w) → (N, h, w).
    """

    outputs = Q
    primary_metric = PrimaryMetric.ratio("kl_share", "best constant colour", "KL divergence")
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
        """Return sums over pixels for :meth:`metrics`, float64: pixel count, v·CE, v·H(z), then v·z (313,)."""
        indices, weights = self.quantizer.encode(ab)
        v = self.weights[indices[:, 0]].double()
        cross_entropy = (v * sparse_cross_entropy(logits, indices, weights)).sum()
        entropy = -(v[:, None] * torch.special.xlogy(weights, weights)).sum()
        histogram = torch.zeros(Q, dtype=v.dtype, device=v.device)
        histogram.scatter_add_(0, indices.flatten(), (v[:, None] * weights).flatten())
        return torch.cat((torch.stack((torch.tensor(float(v.numel())).to(v), cross_entropy, entropy)), histogram))

    @staticmethod
    def metrics(sums: Tensor) -> dict[str, float]:
        """Compute metrics per pixel, in nats, from summed scores.

        ``loss`` is the rebalanced cross-entropy. ``kl`` is the loss minus the (rebalanced) entropy of the targets,
        ``target_entropy``. ``kl_constant`` is the KL divergence of the best constant distribution for these images.
        ``kl_share`` is ``kl / kl_constant``: below 1 the net predicts better than a constant.
        """
        pixels, cross_entropy, entropy = sums[:3].tolist()
        histogram = sums[3:]
        constant = constant_cross_entropy(histogram)
        kl, kl_constant = (cross_entropy - entropy) / pixels, (constant - entropy) / pixels
        check_contrast(kl_constant)
        return {
            "loss": cross_entropy / pixels,
            "target_entropy": entropy / pixels,
            "kl": kl,
            "kl_constant": kl_constant,
            "kl_share": kl / kl_constant,
        }


def without_grey_gradient(loss: Tensor, ab: Tensor, threshold: float) -> Tensor:
    """Detach the loss of crops in which no |a| or |b| exceeds the threshold; its values do not change."""
    if not threshold:
        return loss
    has_colour = (ab.abs() > threshold).flatten(1).any(1)[:, None, None]
    return torch.where(has_colour, loss, loss.detach())
