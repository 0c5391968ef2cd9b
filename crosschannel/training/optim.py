"""Optimisers and learning-rate schedules; a rate is a pure function of the step."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from crosschannel.config.training import OptimConfig, ScheduleConfig


def build_optimizer(
    net: nn.Module, config: OptimConfig, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """An optimiser whose groups are weights (two or more dimensions) and the rest (biases, norms), by rate.

    Args:
        net: whose parameters move.
        config: how.
        factors: of the learning rate, by parameter name; default 1 for all. A group keeps its own as ``scale``.
    """
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            found.setdefault((parameter.ndim > 1, (factors or {}).get(name, 1.0)), []).append(parameter)
    groups = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if is_weight or config.bias_decay else 0.0,
            "scale": factor if is_weight else factor * config.bias_lr,
        }
        for (is_weight, factor), parameters in found.items()
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, config.lr, config.momentum, nesterov=config.nesterov)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, config.lr, config.betas)


def rate(step: int, steps: int, lr: float, config: ScheduleConfig) -> float:
    """The learning rate of step ``step`` (from 0) of ``steps``."""
    if step < config.warmup_steps:
        share = step / config.warmup_steps
        lr *= 0.001 * (1 - share) + share
    if config.kind == "multistep":
        for milestone, value in zip(reversed(config.milestones), reversed(config.rates), strict=True):
            if step >= milestone:
                return value
        return lr
    if config.kind == "constant":
        return lr
    if config.kind == "step":
        return lr * config.factor ** (step // config.every)
    if config.kind == "poly":
        return lr * (1 - step / steps) ** config.power
    if config.kind == "inverse-sqrt":
        return lr / math.sqrt(1 + config.decay * step)
    rise = config.warmup * steps
    if step < rise:
        share = (step + 1) / (rise + 1)
        return lr * share if config.kind == "cosine" else lr * (0.04 + 0.96 * (1 - math.cos(math.pi * share)) / 2)
    return lr * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value * group["scale"]
