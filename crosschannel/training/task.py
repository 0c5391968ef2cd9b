"""What the loop trains: a task has ``step`` and ``evaluate``, which returns an :class:`Evaluation`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from crosschannel.data import Batch, Stream


@dataclass
class Evaluation:
    """What an evaluation found, the same on all ranks.

    Attributes:
        figures: a flat map, such as ``conv5/top1``.
        n: images that they are over.
        rows: what they are computed from, a row per image (see :data:`crosschannel.runs.result.Rows`).
        broken: reasons by name of the images that could not be read; they are left out.
        line: the figures in a few words.
        pictures: makes them, by name, (H, W, 3) uint8; called on rank 0 alone.
    """

    metrics: dict[str, float]
    n: int
    rows: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    line: str = ""
    pictures: Callable[[], dict[str, np.ndarray]] = dict


class Task(Protocol):
    """What a command trains. ``net`` holds the weights; the loop hands back the same net, wrapped or averaged.

    ``rate_factors`` are factors of the learning rate by parameter name (empty: 1 for all).
    """

    net: nn.Module
    rate_factors: Mapping[str, float]

    def initialise(self, stream: Stream) -> bool:
        """Set the initial weights; whether that took so long that they should be saved at once."""
        ...

    def step(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss of a batch and the count that it is to be divided by (both scalars).

        A task with ``phases`` (names of the modules that each phase of a step updates, with an optimiser of its own)
        also takes the index of the phase, ``phase=0``, ….
        """
        ...

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        """Score held-out images. Raises Interrupted when told to stop, and a UserError (on all ranks) where there is
        nothing to evaluate on."""
        ...
