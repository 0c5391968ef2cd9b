"""Adapter from pretext tasks to the training loop: initialisation, steps and evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crosschannel.data import Batch, CropConfig, ImageSet, Stream, load_batches
from crosschannel.errors import UserError
from crosschannel.models import initialisation as init
from crosschannel.pretext.start import load_initial_weights
from crosschannel.pretext.task import Pretext
from crosschannel.training.held_out import HeldOut
from crosschannel.training.ranks import World
from crosschannel.training.task import Evaluation

_MAX_PICTURES = 8


@dataclass(eq=False)
class Pretraining:
    """Pretraining as a task for the training loop.

    Attributes:
        net: the net of the pretext task.
        pretext: the pretext task.
        val: held-out images for evaluation.
        crop: settings of the evaluation crops.
        world: ranks among which the evaluation is divided.
        initial: initialisation method: "default", "gaussian", "kmeans" or "unit-variance".
        start_state: state dict of a pretext net, used instead of ``initial``; see :func:`load_initial_weights`.
        seed: seed of the k-means initialisation.
        batch: evaluation batch size per rank.
        workers: loader workers for evaluation.
        draw: function (net, task, held-out batch) → rows of pictures, (H, W, 3) uint8, or None; default: the
            ``pictures`` method of the task.
    """

    net: nn.Module
    pretext: Pretext
    val: ImageSet
    crop: CropConfig
    world: World
    initial: str
    start_state: Mapping[str, Tensor] | None = None
    seed: int = 0
    batch: int = 64
    workers: int = 0
    draw: Callable[[nn.Module, Pretext, Batch], np.ndarray | None] | None = None
    rate_factors: ClassVar[Mapping[str, float]] = MappingProxyType({})

    def __post_init__(self) -> None:
        self.pretext.to(self.world.device)
        self.held_out = Stream(self.val, self.pretext.view(self.crop, train=False))

    def initialise(self, stream: Stream) -> bool:
        """Initialise the net; return whether that took so long that a checkpoint should be saved at once."""
        if self.start_state is not None:
            load_initial_weights(self.net, self.start_state)
            return False
        if self.initial == "gaussian":
            init.gaussian(self.net)
        if self.initial in ("kmeans", "unit-variance"):
            batches = [self.pretext.net_inputs(b.to(self.world.device)) for b in load_batches(stream, 0, 800, 80)]
            if self.initial == "kmeans":
                init.kmeans(self.net, batches, self.seed)  # convolutions only; fc6 and fc7 keep their default weights
                head = getattr(self.net, "head", None)
                if getattr(head, "is_zeroed_by_kmeans", False):
                    for parameter in head.parameters():
                        nn.init.zeros_(parameter)
            else:
                init.unit_variance(self.net, batches)
        return self.initial in ("kmeans", "unit-variance")

    @property
    def phases(self) -> tuple[tuple[str, ...], ...]:
        return self.pretext.phases

    def step(self, net: nn.Module, batch: Batch, phase: int = 0) -> tuple[Tensor, Tensor]:
        return self.pretext.losses(net, batch.to(self.world.device), phase)

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        pretext, length = self.pretext, self.pretext.score_length

        def score(batch: Batch) -> Tensor:
            if not len(batch):
                return torch.zeros(length, dtype=torch.float64, device=self.world.device)
            return pretext.scores(net, batch.to(self.world.device))

        held_out = HeldOut(self.held_out, score, self.world, self.batch, self.workers, should_stop)
        sums = torch.zeros(length, dtype=torch.float64, device=self.world.device)
        for _, batch_sums in held_out:
            sums += batch_sums
        metrics = pretext.metrics(self.world.sum(sums))
        primary = pretext.primary_metric
        for name in ("loss", primary.name):
            if name not in metrics:
                raise UserError(f"metrics() of the task {pretext.name} must return {name!r}")
        return Evaluation(
            metrics,
            len(self.held_out.images) - len(held_out.broken),
            broken=held_out.broken,
            line=f"held-out: loss {metrics['loss']:.4f}, {metrics[primary.name]:.4f} {primary.description}",
            pictures=lambda: self.pictures(net),
        )

    def pictures(self, net: nn.Module) -> dict[str, np.ndarray]:
        """Draw predictions for up to eight held-out images; empty if none can be read."""
        indices = np.unique(np.linspace(0, len(self.held_out.images) - 1, _MAX_PICTURES).astype(int))
        batch = self.held_out.collate([self.held_out[int(i)] for i in indices])
        if not len(batch):
            return {}
        batch = batch.to(self.world.device)
        pictures = self.draw(net, self.pretext, batch) if self.draw else self.pretext.pictures(net, batch)
        return {} if pictures is None else {"step": pictures}
