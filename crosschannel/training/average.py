"""Exponential moving average (EMA) of a net's weights."""

import copy

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of weights and BatchNorm statistics.

    The decay is smaller in the first steps, so that the initial weights are forgotten quickly.

    Args:
        net: net whose weights are averaged.
        decay: decay per step, after the first steps.

    Attributes:
        net: copy of the net with the averaged weights.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay

    def restart(self, net: nn.Module) -> None:
        """Restart the average from the current weights of a net."""
        self.net.load_state_dict(net.state_dict())

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Update the average with the weights after a step (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, current in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:
                average.copy_(current)
