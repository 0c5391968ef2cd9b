"""Optimisers and learning-rate schedules. A learning rate is a pure function of the step."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from crosschannel.config.training import OptimConfig, ScheduleConfig


def build_optimizer(
    net: nn.Module, config: OptimConfig, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Build an optimiser with a parameter group for each learning-rate factor, separately for weights (two or more
    dimensions) and for biases and norms.

    Args:
        net: net whose trainable parameters are optimised.
        config: optimiser config.
        factors: learning-rate factors by parameter name; default 1. Each group stores its factor under ``scale``.
    """
    members: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            members.setdefault((parameter.ndim > 1, (factors or {}).get(name, 1.0)), []).append(parameter)
    groups = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if is_weight or config.bias_decay else 0.0,
            "scale": factor if is_weight else factor * config.bias_lr,
        }
        for (is_weight, factor), parameters in members.items()
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, config.lr, config.momentum, nesterov=config.nesterov)
    optimizer_class = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return optimizer_class(groups, config.lr, config.betas)


def rate(step: int, steps: int, lr: float, config: ScheduleConfig) -> float:
    """Return the learning rate for step ``step`` (counted from 0) of ``steps``."""
    if step < config.warmup_steps:
        progress = step / config.warmup_steps
        lr *= 0.001 * (1 - progress) + progress
    if config.kind == "multistep":
        for milestone, milestone_lr in zip(reversed(config.milestones), reversed(config.rates), strict=True):
            if step >= milestone:
                return milestone_lr
        return lr
    if config.kind == "constant":
        return lr
    if config.kind == "step":
        return lr * config.factor ** (step // config.every)
    if config.kind == "poly":
        return lr * (1 - step / steps) ** config.power
    if config.kind == "inverse-sqrt":
        return lr / math.sqrt(1 + config.decay * step)
    warmup_steps = config.warmup * steps
    if step < warmup_steps:
        progress = (step + 1) / (warmup_steps + 1)
        return lr * progress if config.kind == "cosine" else lr * (0.04 + 0.96 * (1 - math.cos(math.pi * progress)) / 2)
    return lr * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each group to ``lr`` times the factor of the group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
