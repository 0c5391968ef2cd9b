"""A pretext task for the loop: initial weights, steps, and the pass over held-out images."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crosschannel.data import CentreCrop, CropConfig, ImageBatch, ImageSet, Stream, load_batches
from crosschannel.models import initialisation as init
from crosschannel.pretext.colorizer import coloured_rows
from crosschannel.pretext.start import start_from
from crosschannel.pretext.task import Pretext
from crosschannel.training.held_out import HeldOut
from crosschannel.training.ranks import World
from crosschannel.training.task import Evaluation

_PICTURES = 8


class Pretraining:
    """What the loop trains.

    Args:
        net: of the task.
        pretext: the task.
        train: training images, whose labels a task may need.
        val: held-out images, whose centre crops are scored.
        crop: how they are cropped.
        world: shares out the held-out images.
        initial: "default", "gaussian", "kmeans" or "unit-variance".
        start_state: weights to start from instead, by name; those that fit are taken.
        seed: of the initial weights.
        batch: held-out images a rank scores at once.
        workers: that decode held-out images.
    """

    def __init__(
        self,
        net: nn.Module,
        pretext: Pretext,
        train: ImageSet,
        val: ImageSet,
        crop: CropConfig,
        world: World,
        initial: str,
        start_state: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        batch: int = 64,
        workers: int = 0,
    ):
        self.net, self.pretext = net, pretext.to(world.device)
        self.rate_factors: dict[str, float] = {}
        self.train, self.world = train, world
        self.held_out = Stream(val, CentreCrop(crop.size, crop.resize))
        self.initial, self.start_state = initial, start_state
        self.seed, self.batch, self.workers = seed, batch, workers

    def initialise(self, stream: Stream) -> bool:
        """Initial weights; k-means takes a while and is saved."""
        if self.start_state is not None:
            start_from(self.net, self.start_state)
            return False
        if self.initial == "gaussian":
            init.gaussian(self.net)
        if self.initial in ("kmeans", "unit-variance"):
            batches = [self.pretext.inputs(b.images.to(self.world.device)) for b in load_batches(stream, 0, 800, 80)]
            if self.initial == "kmeans":
                init.kmeans(self.net, batches, self.seed)  # the convolutions; fc6 and fc7 keep their own start
                head = getattr(self.net, "head", None)
                if getattr(head, "is_zeroed_by_kmeans", False):
                    for parameter in head.parameters():
                        nn.init.zeros_(parameter)
            else:
                init.unit_variance(self.net, batches)
        return self.initial in ("kmeans", "unit-variance")

    def step(self, net: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        outputs, targets = self._predicted(net, batch, self.train)
        loss = self.pretext.loss(outputs, targets)
        return loss.sum(), self.pretext.count(loss, targets)

    def _predicted(self, net: nn.Module, batch: ImageBatch, images: ImageSet) -> tuple[Any, Any]:
        """Outputs and targets of a batch."""
        rgb = batch.images.to(self.world.device, non_blocking=True)
        labels = torch.from_numpy(images.labels[batch.indices.numpy()]).to(self.world.device, non_blocking=True)
        return net(self.pretext.inputs(rgb)), self.pretext.targets(rgb, labels)

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        pretext, length = self.pretext, self.pretext.score_length

        def score(batch: ImageBatch) -> Tensor:
            if not len(batch):
                return torch.zeros(length, dtype=torch.float64, device=self.world.device)
            return pretext.score(*self._predicted(net, batch, self.held_out.images))

        held_out = HeldOut(self.held_out, score, self.world, self.batch, self.workers, should_stop)
        sums = torch.zeros(length, dtype=torch.float64, device=self.world.device)
        for _, scored in held_out:
            sums += scored
        figures = pretext.metrics(self.world.sum(sums))
        headline = pretext.headline
        return Evaluation(
            figures,
            len(self.held_out.images) - len(held_out.broken),
            broken=held_out.broken,
            line=f"held-out: loss {figures['loss']:.4f}, {figures[headline.figure]:.4f} {headline.words}",
            pictures=lambda: self.pictures(net),
        )

    def pictures(self, net: nn.Module) -> dict[str, np.ndarray]:
        """Rows of what the task makes of up to eight held-out images, where any can be read."""
        chosen = np.unique(np.linspace(0, len(self.held_out.images) - 1, _PICTURES).astype(int))
        crops = [sample.content for sample in (self.held_out[int(i)] for i in chosen) if sample.is_whole]
        if not crops:
            return {}
        pretext = self.pretext
        found = coloured_rows(net, pretext, crops) if pretext.colours else pretext.pictures(net, crops)
        return {} if found is None else {"step": found}
