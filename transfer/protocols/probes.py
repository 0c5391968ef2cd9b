"""Linear classifiers on the layers of a frozen backbone, all trained in one pass: a task for the one loop."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosschannel.data import Batch, CropStream, ImageSet, crop_loader
from crosschannel.errors import UserError
from crosschannel.training.interrupts import Interrupted
from crosschannel.training.log import TrainingLog
from crosschannel.training.ranks import World
from transfer.feature_cache import StoredFeatures
from transfer.features import FrozenFeatures
from transfer.result import classification_rows

Norm = Literal["channel", "feature", "none"]


class LayerProbe(nn.Module):
    """Affine-free BatchNorm and one linear classifier, or several that share it (one a learning rate).

    Args:
        shape: (C, g, g) of the features.
        classes: of the classifiers.
        count: how many classifiers.
        norm: statistics by "channel" (the paper), by "feature", or "none".
        zero: start from zero weights (the release) rather than PyTorch's.

    Shape:
        (N, C, g, g) → count times (N, classes).
    """

    def __init__(self, shape: Sequence[int], classes: int, count: int = 1, norm: Norm = "channel", zero: bool = True):
        super().__init__()
        length = int(np.prod(shape))
        # The backbone is frozen, so the average over all batches so far is a better estimate than a moving one.
        if norm == "channel":
            self.norm = nn.BatchNorm2d(shape[0], affine=False, momentum=None)
        else:
            flat = nn.BatchNorm1d(length, affine=False, momentum=None) if norm == "feature" else nn.Identity()
            self.norm = nn.Sequential(nn.Flatten(), flat)
        self.classifiers = nn.ModuleList(nn.Linear(length, classes) for _ in range(count))
        if zero:
            for parameter in self.classifiers.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> list[Tensor]:
        flat = self.norm(features).flatten(1)
        return [classifier(flat) for classifier in self.classifiers]


class Probes(nn.Module):
    """A :class:`LayerProbe` a layer: features by layer → logits by layer, a list of one a learning rate."""

    def __init__(self, shapes: dict[str, Sequence[int]], classes: int, rates: Sequence[float], norm: Norm, zero: bool):
        super().__init__()
        self.layers, self.rates = tuple(shapes), tuple(rates)
        self.probes = nn.ModuleList(LayerProbe(shape, classes, len(rates), norm, zero) for shape in shapes.values())

    def forward(self, features: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        with torch.autocast(next(iter(features.values())).device.type, enabled=False):
            return {layer: probe(features[layer]) for layer, probe in zip(self.layers, self.probes, strict=True)}

    def rate_factors(self, base: float) -> dict[str, float]:
        """Factors of the base learning rate by parameter name."""
        return {
            f"probes.{i}.classifiers.{j}.{kind}": rate / base
            for i in range(len(self.layers))
            for j, rate in enumerate(self.rates)
            for kind in ("weight", "bias")
        }


class LinearProbe:
    """The task: features without gradients, logits, and the sum of all classifiers' cross-entropies.

    Args:
        net: the classifiers.
        features: the frozen backbone.
        train: training images, or their stored features.
        held_out: a part of the training images by which learning rates are chosen, where there are several.
        val: validation images, or their stored features.
        evaluation: (images) → their unaugmented crops.
        rate: the base learning rate.
        world: shares out the images of evaluations.
        batch: images a rank evaluates at once.
        workers: that decode for evaluations.
    """

    def __init__(
        self,
        net: Probes,
        features: FrozenFeatures,
        train: ImageSet | StoredFeatures,
        held_out: ImageSet | StoredFeatures | None,
        val: ImageSet | StoredFeatures,
        evaluation: Callable[[ImageSet], CropStream],
        rate: float,
        world: World,
        batch: int,
        workers: int,
    ):
        self.net, self.features, self.rate_factors = net, features, net.rate_factors(rate)
        self.train, self.held_out, self.val, self.evaluation = train, held_out, val, evaluation
        self.world, self.batch, self.workers = world, batch, workers
        self.labels = torch.from_numpy(images_of(train).labels).to(world.device)
        self.rows: dict[str, np.ndarray] | None = None  # of the last evaluation
        self._broken: dict[str, str] = {}  # images that the last evaluation could not read, and why
        self._named: set[str] = set()

    def initialise(self, stream: CropStream) -> bool:
        return False

    def step(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(self.train, StoredFeatures):
            features = self.train.rows(batch.indices, self.world.device)
        else:
            features = self.features(batch.images)
        labels = self.labels[batch.indices.to(self.world.device)]
        logits = [one for layer in net(features).values() for one in layer]
        loss = torch.stack([F.cross_entropy(one, labels, reduction="sum") for one in logits]).sum()
        return loss, loss.new_full((), len(labels))

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float]:
        self._broken = {}
        layers, rates = self.net.layers, self.net.rates
        chosen, figures = dict.fromkeys(layers, 0), {}
        if self.held_out is not None:
            ranked, indices = self._rank(net, self.held_out, should_stop)
            labels = images_of(self.held_out).labels[indices]
            for layer in layers:
                accuracy = [float((one[:, 0] == labels).mean()) for one in ranked[layer]]
                chosen[layer] = int(np.argmax(accuracy))
                figures[f"{layer}/held_out_top1"] = accuracy[chosen[layer]]
                figures[f"{layer}/lr"] = rates[chosen[layer]]
        ranked, indices = self._rank(net, self.val, should_stop)
        images = images_of(self.val)
        labels = images.labels[indices]
        self.rows = {"names": np.array([images.names[int(i)] for i in indices]), "labels": labels}
        for layer in layers:
            self.rows |= classification_rows(layer, ranked[layer][chosen[layer]], labels)
            figures |= {m: float(self.rows[m].mean()) for m in (f"{layer}/top1", f"{layer}/top5") if m in self.rows}
        return figures

    def report(self, net: nn.Module, step: int, figures: dict[str, float], log: TrainingLog) -> str:
        for name in self._broken.keys() - self._named:
            log.say(f"broken image {name}: {self._broken[name]}")
        self._named |= self._broken.keys()
        return "top-1 " + "  ".join(f"{layer} {100 * figures[f'{layer}/top1']:.1f}" for layer in self.net.layers)

    def _rank(self, net: nn.Module, images, should_stop) -> tuple[dict[str, list[np.ndarray]], np.ndarray]:
        """The five likeliest classes by layer and learning rate, (n, ≤ 5) each, and the images that they are for.

        The views of an image (ten crops) vote with the mean of their softmax outputs.
        """
        found: dict[str, list[list[Tensor]]] = {layer: [[] for _ in self.net.rates] for layer in self.net.layers}
        seen: list[Tensor] = []
        broken: list[tuple[int, str]] = []
        for features, indices, unread in self.world.together(self._batches(images)):
            if should_stop():
                raise Interrupted
            broken += unread
            if not len(indices):
                continue
            owners, views = torch.unique_consecutive(indices, return_counts=True)
            seen.append(owners)
            owner = torch.repeat_interleave(torch.arange(len(owners)), views).to(self.world.device)
            for layer, logits in net(features).items():
                for entry, one in zip(found[layer], logits, strict=True):
                    votes = one.new_zeros(len(owners), one.shape[1]).index_add_(0, owner, one.softmax(1))
                    entry.append(votes.topk(min(5, votes.shape[1])).indices)
        names = images_of(images).names
        self._broken |= {names[index]: reason for rank in self.world.gather(broken) for index, reason in rank}
        device = self.world.device
        indices = self.world.concatenate(torch.cat([*seen, torch.empty(0, dtype=torch.int64)]).to(device)).cpu()
        if not len(indices):
            raise UserError("none of the validation images can be read")
        order = indices.argsort()
        width = min(5, self.net.probes[0].classifiers[0].out_features)
        none = torch.empty(0, width, dtype=torch.int64, device=device)
        ranked = {
            layer: [self.world.concatenate(torch.cat([*one, none])).cpu()[order].numpy() for one in entries]
            for layer, entries in found.items()
        }
        return ranked, indices[order].numpy()

    def _batches(
        self, images: ImageSet | StoredFeatures
    ) -> Iterator[tuple[dict[str, Tensor], Tensor, list[tuple[int, str]]]]:
        """(features, image of every row, broken images) of this rank's share; an image's views are in one batch."""
        own, size = self.world.share(self.batch), self.world.size
        if isinstance(images, StoredFeatures):
            for start in range(0, len(images), self.batch * size):
                part = slice(start + own.start, start + own.stop)
                yield images.rows(part, self.world.device), images.indices[part], []
            return
        stream = self.evaluation(images)
        total = len(images) * stream.views
        pin = self.world.device.type == "cuda"
        loader = crop_loader(stream, 0, total, self.batch * size, own, self.workers, pin)
        for batch in loader:
            yield (self.features(batch.images) if len(batch.images) else {}), batch.indices, batch.broken


def images_of(images: ImageSet | StoredFeatures) -> ImageSet:
    return images.images if isinstance(images, StoredFeatures) else images
