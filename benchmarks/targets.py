"""Soft-encoded targets and their loss compared with a dense baseline: `python benchmarks/targets.py [--threads 2]`.

The baseline follows common re-implementations of the paper: distances of every pixel to all 313 bins, a full sort, a
dense N × 313 × h × w target, and cross-entropy on log-softmax. For torch's dense cross-entropy the targets are
precomputed and not timed.
"""

import argparse
import json
import sys

import torch
from timing import describe_machine, peak_memory, print_table, race, run_in_subprocess
from torch import Tensor

from crosschannel.color import ABQuantizer, load_prior, rgb_to_lab
from crosschannel.data import CropConfig, Stream, TrainingCrops, load_batches, open_images
from crosschannel.pretext.classification import Classification

N, GRID, Q = 16, 44, 313
objective = Classification(load_prior().smoothed)
quantizer: ABQuantizer = objective.quantizer


def real_ab() -> Tensor:
    """Return ab (16, 2, 44, 44) of every fourth pixel of 176-pixel crops of photographs."""
    stream = Stream(open_images("builtin:sample")[0], TrainingCrops(CropConfig(4 * GRID, 4 * GRID)), 0)
    return rgb_to_lab(next(load_batches(stream, 0, N, N)).images)[:, 1:, ::4, ::4].contiguous()


def baseline_targets(ab: Tensor) -> Tensor:
    points = ab.permute(0, 2, 3, 1).reshape(-1, 2)
    distances = torch.cdist(points, quantizer.bins)
    nearest = distances.argsort(1)[:, :5]
    weights = torch.exp(-(distances.gather(1, nearest) ** 2) / (2 * 5.0**2))
    dense = torch.zeros(len(points), Q).scatter_(1, nearest, weights / weights.sum(1, keepdim=True))
    return dense.view(N, GRID, GRID, Q).permute(0, 3, 1, 2)


def baseline_loss(logits: Tensor, ab: Tensor) -> Tensor:
    target = baseline_targets(ab)
    weights = objective.weights[target.argmax(1)]
    return (weights * -(target.clone() * torch.log_softmax(logits.clone(), 1)).sum(1)).sum()


def backward(loss, logits: Tensor, *targets: Tensor) -> None:
    logits.grad = None
    loss(logits, *targets).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", choices=["crosschannel", "baseline"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ab, logits = real_ab(), torch.randn(N, Q, GRID, GRID, requires_grad=True)
    if options.memory:
        loss = objective if options.memory == "crosschannel" else baseline_loss
        objective(logits[:1].detach(), ab[:1])  # builds the lookup tables, whose memory is not measured
        initial_memory = peak_memory()
        backward(loss, logits, ab)
        print(json.dumps({"extra": (peak_memory() - initial_memory) / (4 * logits.numel())}))
        return
    print(
        describe_machine(),
        f"{options.threads} threads; {N} × {GRID} × {GRID} pixels, k = 5; best of 15 alternating runs",
        sep="; ",
    )
    dense = baseline_targets(ab)
    indices, weights = quantizer.encode(ab)
    ours = torch.zeros_like(dense).scatter_(1, indices, weights)
    print(f"maximum difference of the targets: {(ours - dense).abs().max():.1e}")
    times = race({"baseline": lambda: baseline_targets(ab), "crosschannel": lambda: quantizer.encode(ab)})
    rows = [(name, 1e3 * seconds, times["baseline"] / seconds) for name, seconds in times.items()]
    print_table("Soft-encoding", ("", "ms", "speed-up"), rows)
    channels_last = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    bfloat16 = logits.detach().bfloat16().requires_grad_()
    times = race(
        {
            "baseline": lambda: backward(baseline_loss, logits, ab),
            "torch's dense cross-entropy, precomputed targets": lambda: backward(
                lambda x: torch.nn.functional.cross_entropy(x, dense, reduction="none"), logits
            ),
            "crosschannel": lambda: backward(objective, logits, ab),
            "crosschannel, channels_last": lambda: backward(objective, channels_last, ab),
            "crosschannel, bfloat16": lambda: backward(objective, bfloat16, ab),
            "copying the logits (lower bound)": lambda: logits.detach().clone(),
        }
    )
    rows = [(name, 1e3 * s, times["baseline"] / s) for name, s in times.items()]
    print_table("Targets and loss, forward and backward", ("", "ms", "speed-up"), rows)
    extra = [(name, run_in_subprocess(sys.argv[0], "--memory", name)["extra"]) for name in ("baseline", "crosschannel")]
    print_table("Peak memory in addition to the logits, including the gradient", ("", "relative to the logits"), extra)


if __name__ == "__main__":
    main()
