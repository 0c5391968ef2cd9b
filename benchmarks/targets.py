"""Soft-encoded targets and their loss against the usual way: `python benchmarks/targets.py [--threads 2]`.

The usual way, as re-implementations of the paper have it: distances of every pixel to all 313 bins, a full sort, a
dense N × 313 × h × w target, and a cross-entropy on log-softmax. torch's own dense cross-entropy is given the target
for nothing.
"""

import argparse
import json
import sys

import torch
from timing import apart, machine, peak_memory, race, table
from torch import Tensor

from crosschannel.color import ABQuantizer, load_prior, rgb_to_lab
from crosschannel.data import CropConfig, Stream, TrainingCrops, load_batches, open_images
from crosschannel.pretext.classification import Classification

N, GRID, Q = 16, 44, 313
objective = Classification(load_prior().smoothed)
quantizer: ABQuantizer = objective.quantizer


def real_ab() -> Tensor:
    """ab of every fourth pixel of 176-pixel crops of photographs: (16, 2, 44, 44)."""
    stream = Stream(open_images("builtin:sample")[0], TrainingCrops(CropConfig(4 * GRID, 4 * GRID)), 0)
    return rgb_to_lab(next(load_batches(stream, 0, N, N)).images)[:, 1:, ::4, ::4].contiguous()


def usual_targets(ab: Tensor) -> Tensor:
    points = ab.permute(0, 2, 3, 1).reshape(-1, 2)
    distances = torch.cdist(points, quantizer.bins)
    nearest = distances.argsort(1)[:, :5]
    weights = torch.exp(-(distances.gather(1, nearest) ** 2) / (2 * 5.0**2))
    dense = torch.zeros(len(points), Q).scatter_(1, nearest, weights / weights.sum(1, keepdim=True))
    return dense.view(N, GRID, GRID, Q).permute(0, 3, 1, 2)


def usual_loss(logits: Tensor, ab: Tensor) -> Tensor:
    target = usual_targets(ab)
    weights = objective.weights[target.argmax(1)]
    return (weights * -(target.clone() * torch.log_softmax(logits.clone(), 1)).sum(1)).sum()


def backward(loss, logits: Tensor, *more: Tensor) -> None:
    logits.grad = None
    loss(logits, *more).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", choices=["ours", "usual"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ab, logits = real_ab(), torch.randn(N, Q, GRID, GRID, requires_grad=True)
    if options.memory:
        loss = objective if options.memory == "ours" else usual_loss
        objective(logits[:1].detach(), ab[:1])  # tables are made once
        before = peak_memory()
        backward(loss, logits, ab)
        print(json.dumps({"extra": (peak_memory() - before) / (4 * logits.numel())}))
        return
    print(machine(), f"threads {options.threads}; N = {N}, {GRID} × {GRID}, k = 5; best of 15, in turns", sep="; ")
    dense = usual_targets(ab)
    indices, weights = quantizer.encode(ab)
    ours = torch.zeros_like(dense).scatter_(1, indices, weights)
    print(f"largest difference of the targets: {(ours - dense).abs().max():.1e}")
    times = race({"usual": lambda: usual_targets(ab), "crosschannel": lambda: quantizer.encode(ab)})
    rows = [(name, 1e3 * seconds, times["usual"] / seconds) for name, seconds in times.items()]
    table("Soft-encoding", ("", "ms", "times faster"), rows)
    channels_last = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    bfloat16 = logits.detach().bfloat16().requires_grad_()
    times = race(
        {
            "usual targets and loss": lambda: backward(usual_loss, logits, ab),
            "torch's dense cross-entropy, targets given": lambda: backward(
                lambda x: torch.nn.functional.cross_entropy(x, dense, reduction="none"), logits
            ),
            "crosschannel": lambda: backward(objective, logits, ab),
            "crosschannel, channels_last": lambda: backward(objective, channels_last, ab),
            "crosschannel, bfloat16": lambda: backward(objective, bfloat16, ab),
            "a copy of the logits": lambda: logits.detach().clone(),
        }
    )
    rows = [(name, 1e3 * s, times["usual targets and loss"] / s) for name, s in times.items()]
    table("Targets and loss, forward and backward", ("", "ms", "times faster"), rows)
    extra = [(side, apart(sys.argv[0], "--memory", side)["extra"]) for side in ("usual", "ours")]
    table("Peak memory beyond the logits (their gradient included)", ("", "times the logits"), extra)


if __name__ == "__main__":
    main()
