"""The running average of a net's weights."""

import copy

import torch
from torch import nn


class WeightAverage:
    """An exponential average of weights and BatchNorm statistics.

    The first steps are averaged faster, so that the start is forgotten.

    Args:
        net: what it follows.
        decay: of the average, once the run is under way.

    Attributes:
        net: the average.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay

    def restart(self, net: nn.Module) -> None:
        """Begin anew at a net's weights."""
        self.net.load_state_dict(net.state_dict())

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Follow the net after a step (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, new in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(new, 1 - decay)
            else:
                mean.copy_(new)
