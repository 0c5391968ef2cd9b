"""Interface between the training loop and tasks: a task has the methods ``step`` and ``evaluate``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from crosschannel.data import Batch, Stream


@dataclass
class Evaluation:
    """Results of an evaluation, the same on all ranks.

    Attributes:
        metrics: metrics by name, such as ``conv5/top1``.
        n: number of images scored.
        rows: per-image data from which the metrics are computed (see :data:`crosschannel.runs.result.Rows`).
        broken: reasons why images could not be read, by image name; these images are not scored.
        line: summary of the metrics, for the log.
        pictures: function that returns pictures by name, (H, W, 3) uint8; called only on rank 0.
    """

    metrics: dict[str, float]
    n: int
    rows: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    line: str = ""
    pictures: Callable[[], dict[str, np.ndarray]] = dict


class Task(Protocol):
    """Model, loss and evaluation for a training command.

    Attributes:
        net: net with the weights to train. The loop passes it to ``step`` and ``evaluate``, possibly wrapped (DDP,
            ``torch.compile``) or with averaged weights.
        rate_factors: learning-rate factors by parameter name; 1 for parameters not listed.
    """

    net: nn.Module
    rate_factors: Mapping[str, float]

    def initialise(self, stream: Stream) -> bool:
        """Set the initial weights; return whether this took so long that they should be saved at once."""
        ...

    def step(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a batch and the count by which the loop divides it, both scalars.

        A task may have an attribute ``phases``: a tuple of module names for each phase of a step. Each phase updates
        its modules with a separate optimiser, and ``step`` takes the index of the phase as ``phase=0``, ….
        """
        ...

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        """Score held-out images.

        Raises:
            Interrupted: ``should_stop`` returned True.
            UserError: there are no images to evaluate on; raised on all ranks.
        """
        ...
