"""Optimisers and learning-rate schedules; a rate is a pure function of the step."""

import math

import torch
from torch import nn

from crosschannel.training.config import OptimConfig, ScheduleConfig


def build_optimizer(net: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Weights (two or more dimensions) and the rest (biases, norms) as two groups; ``scale`` is their rate's factor."""
    weights = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
    decay = config.weight_decay
    groups = [
        {"params": weights, "weight_decay": decay, "scale": 1.0},
        {"params": rest, "weight_decay": decay if config.bias_decay else 0.0, "scale": config.bias_lr},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, config.lr, config.momentum)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, config.lr, config.betas)


def rate(step: int, steps: int, lr: float, config: ScheduleConfig) -> float:
    """The learning rate of step ``step`` (from 0) of ``steps``."""
    if config.kind == "multistep":
        for milestone, value in zip(reversed(config.milestones), reversed(config.rates), strict=True):
            if step >= milestone:
                return value
        return lr
    if config.kind == "constant":
        return lr
    rise = config.warmup * steps
    if step < rise:
        share = (step + 1) / (rise + 1)
        return lr * share if config.kind == "cosine" else lr * (0.04 + 0.96 * (1 - math.cos(math.pi * share)) / 2)
    return lr * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value * group["scale"]
