"""Linear classifiers on the layers of a frozen backbone, all trained in one pass: a task for the one loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosschannel.data import Batch, ImageBatch, ImageSet, Stream, View
from crosschannel.errors import UserError
from crosschannel.runs.result import Rows
from crosschannel.training.held_out import HeldOut, in_order
from crosschannel.training.ranks import World
from crosschannel.training.task import Evaluation
from transfer.feature_cache import StoredFeatures
from transfer.features import FrozenFeatures
from transfer.heads import LayerHeads
from transfer.protocol import MetricArrays, unweighted_metrics, weighted_mean
from transfer.protocols.linear_probe.config import Norm

Images = ImageSet | StoredFeatures


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


class Probes(LayerHeads):
    """A :class:`LayerProbe` a layer: features by layer → logits by layer, a list of one a learning rate."""

    def __init__(self, shapes: dict[str, Sequence[int]], classes: int, rates: Sequence[float], norm: Norm, zero: bool):
        count = len(rates)
        super().__init__({n: LayerProbe(shape, classes, count, norm, zero) for n, shape in shapes.items()}, rates)


@dataclass(eq=False)
class LinearProbe:
    """The task: features without gradients, logits, and the sum of all classifiers' cross-entropies.

    Attributes:
        net: the classifiers.
        features: the frozen backbone.
        train: training images, or their stored features.
        held_out: held-out training images for selecting the learning rate; None for a single rate.
        test: test images, or their stored features.
        classes: their names.
        view: view of images in evaluations.
        rate_factors: factors of the learning rate by parameter name.
        world: ranks that share the evaluation.
        batch: evaluation batch size per rank.
        workers: loader workers for evaluation.
    """

    net: Probes
    features: FrozenFeatures
    train: Images
    held_out: Images | None
    test: Images
    classes: Sequence[str]
    view: View
    rate_factors: Mapping[str, float]
    world: World
    batch: int
    workers: int

    def initialise(self, stream: Stream) -> bool:
        return False

    def step(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if isinstance(self.train, StoredFeatures):
            features = self.train.rows(batch.indices, self.world.device)
        else:
            features = self.features(batch.images)
        labels = batch.labels.to(self.world.device, non_blocking=True)
        logits = [one for layer in net(features).values() for one in layer]
        loss = torch.stack([F.cross_entropy(one, labels, reduction="sum") for one in logits]).sum()
        return loss, loss.new_full((), len(labels))

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        layers, broken = self.net.layers, {}
        chosen, rates = dict.fromkeys(layers, 0), {}
        if self.held_out is not None:
            ranked, names = self._rank(net, self.held_out, should_stop, broken)
            for layer in layers:
                tried = [
                    unweighted_metrics(accuracy, self._rows({layer: one}, names))[f"{layer}/top1"]
                    for one in ranked[layer]
                ]
                chosen[layer] = int(np.argmax(tried))
                rates |= {f"{layer}/held_out_top1": max(tried), f"{layer}/lr": self.net.rates[chosen[layer]]}
        ranked, names = self._rank(net, self.test, should_stop, broken)
        rows = self._rows({layer: ranked[layer][chosen[layer]] for layer in layers}, names)
        figures = rates | unweighted_metrics(accuracy, rows)  # those of classes only after training
        line = "top-1 " + "  ".join(f"{layer} {100 * figures[f'{layer}/top1']:.1f}" for layer in layers)
        return Evaluation(figures, len(rows["names"]), {**rows, "classes": np.array(self.classes)}, broken, line)

    def _rows(self, ranked: dict[str, np.ndarray], named: dict[str, np.ndarray]) -> Rows:
        """``LAYER/prediction``, ``LAYER/top1`` and, where there are five classes, ``LAYER/top5`` of every image."""
        rows = dict(named)
        for layer, likeliest in ranked.items():
            hits = likeliest == named["labels"][:, None]
            rows |= {f"{layer}/prediction": likeliest[:, 0], f"{layer}/top1": hits[:, 0]}
            if likeliest.shape[1] >= 5:
                rows[f"{layer}/top5"] = hits[:, :5].any(1)
        return rows

    def _rank(
        self, net: nn.Module, images: Images, should_stop: Callable[[], bool], broken: dict[str, str]
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, np.ndarray]]:
        """The likeliest classes by layer and learning rate, (n, ≤ 5) each, and names and labels of the n images.

        The views of an image (ten crops) vote with the mean of their softmax outputs.

        Args:
            net: the classifiers.
            images: to be ranked.
            should_stop: asked before every batch.
            broken: gets the images that cannot be read.
        """
        layers, rates = self.net.layers, self.net.rates
        width = min(5, self.net.probes[0].classifiers[0].out_features)
        none = torch.empty(0, width, dtype=torch.int64, device=self.world.device)
        found = {(layer, number): [none] for layer in layers for number in range(len(rates))}
        seen: list[Tensor] = []
        for features, indices in self._batches(images, should_stop, broken):
            owners, views = torch.unique_consecutive(indices, return_counts=True)
            seen.append(owners)
            owner = torch.repeat_interleave(torch.arange(len(owners)), views).to(self.world.device)
            for layer, logits in net(features).items():
                for number, one in enumerate(logits):
                    votes = one.new_zeros(len(owners), one.shape[1]).index_add_(0, owner, one.softmax(1))
                    found[layer, number].append(votes.topk(width).indices)
        indices, columns = in_order(self.world, seen, found)
        if not len(indices):
            raise UserError("none of the validation images can be read")
        shown = images_of(images)
        named = {"names": np.array([shown.names[int(i)] for i in indices]), "labels": shown.labels[indices.numpy()]}
        return {layer: [columns[layer, n].numpy() for n in range(len(rates))] for layer in layers}, named

    def _batches(
        self, images: Images, should_stop: Callable[[], bool], broken: dict[str, str]
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """(features, image of every row) of this rank's share; an image's views are in one batch."""
        if isinstance(images, StoredFeatures):
            for part in images.shares(self.batch, self.world, should_stop):
                if part.start < part.stop:
                    yield images.rows(part, self.world.device), images.indices[part]
            return

        def compute(batch: ImageBatch) -> dict[str, Tensor]:
            return self.features(batch.images) if len(batch) else {}

        held_out = HeldOut(Stream(images, self.view), compute, self.world, self.batch, self.workers, should_stop)
        yield from ((features, batch.indices) for batch, features in held_out if len(batch))
        broken |= held_out.broken


def metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """``LAYER/top1``, ``LAYER/top5`` and ``LAYER/top1/CLASS``."""
    return accuracy(rows, weights) | accuracy_by_class(rows, weights)


def accuracy(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """``LAYER/top1``, ``LAYER/top5``: shares of images whose class is the likeliest, or one of the five likeliest."""
    return {name: weighted_mean(row, weights) for name, row in rows.items() if name.endswith(("/top1", "/top5"))}


def accuracy_by_class(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """``LAYER/top1/CLASS``: top-1 accuracy within each class that has images."""
    figures: MetricArrays = {}
    for layer_top1 in [name for name in rows if name.endswith("/top1")]:
        for number, name in enumerate(rows.get("classes", ())):
            of_class = rows["labels"] == number
            if of_class.any():
                figures[f"{layer_top1}/{name}"] = weighted_mean(rows[layer_top1][of_class], weights[:, of_class])
    return figures


def images_of(images: Images) -> ImageSet:
    return images.images if isinstance(images, StoredFeatures) else images
