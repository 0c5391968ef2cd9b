"""The running average of weights against its recursion, number by number."""

import pytest
import torch
from torch import nn

from crosschannel.training.average import WeightAverage


def test_the_average_follows_its_recursion():
    net = nn.BatchNorm1d(1)
    average, expected = WeightAverage(net, decay=0.5), 1.0
    for step, value in enumerate([3.0, -2.0, 5.0, 0.5, 7.0, 2.0, 2.0, 9.0, -4.0, 1.0, 6.0, 8.0]):
        nn.init.constant_(net.weight, value)
        net.num_batches_tracked.fill_(step)
        average.update(net, step)
        decay = (1 + step) / (10 + step) if step < 8 else 0.5  # they meet at step 8
        expected = decay * expected + (1 - decay) * value
        assert average.net.weight.item() == pytest.approx(expected, rel=1e-5)
        assert average.net.num_batches_tracked.item() == step and not average.net.weight.requires_grad


def test_a_restart_forgets_what_was_averaged():
    net = nn.Linear(2, 2)
    average = WeightAverage(net, decay=0.9)
    nn.init.constant_(net.weight, 4.0)
    average.restart(net)
    assert torch.equal(average.net.weight, net.weight)
