"""Training task of the linear probe: classifiers on all layers of a frozen backbone, trained in one pass."""

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

Images = ImageSet | StoredFeatures  # images, or cached features of images


class LayerProbe(nn.Module):
    """Non-affine BatchNorm, followed by one linear classifier per learning rate.

    Args:
        shape: shape (C, g, g) of the features.
        classes: number of classes.
        count: number of classifiers.
        norm: BatchNorm statistics per "channel" (the paper) or per "feature"; "none" for no BatchNorm.
        zero: initialise the classifiers with zeros (the released code) instead of PyTorch's default.

    Shape:
        (N, C, g, g) → list of ``count`` logits (N, classes).
    """

    def __init__(self, shape: Sequence[int], classes: int, count: int = 1, norm: Norm = "channel", zero: bool = True):
        super().__init__()
        length = int(np.prod(shape))
        # momentum=None averages over all batches. The features of a frozen backbone do not drift, so this estimate is
        # better than a moving average.
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
    """One :class:`LayerProbe` per layer.

    Shape:
        dict of features by layer → dict of lists of logits by layer, one per learning rate.
    """

    def __init__(self, shapes: dict[str, Sequence[int]], classes: int, rates: Sequence[float], norm: Norm, zero: bool):
        count = len(rates)
        super().__init__(
            {layer: LayerProbe(shape, classes, count, norm, zero) for layer, shape in shapes.items()}, rates
        )


@dataclass(eq=False)
class LinearProbe:
    """Task that minimises the sum of the cross-entropies of all classifiers.

    Attributes:
        net: classifiers to train.
        features: extractor of the frozen backbone's features.
        train: training images, or their cached features.
        held_out: held-out training images for selecting the learning rate; None for a single rate.
        test: test images, or their cached features.
        classes: class names.
        view: view of the evaluation images.
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
        logits = [rate_logits for layer_logits in net(features).values() for rate_logits in layer_logits]
        loss = torch.stack([F.cross_entropy(scores, labels, reduction="sum") for scores in logits]).sum()
        return loss, loss.new_full((), len(labels))

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        layers, broken = self.net.layers, {}
        best_rates, rate_metrics = dict.fromkeys(layers, 0), {}
        if self.held_out is not None:
            top_classes, columns = self._rank_classes(net, self.held_out, should_stop, broken)
            for layer in layers:
                accuracies = [
                    unweighted_metrics(accuracy, self._rows({layer: classes}, columns))[f"{layer}/top1"]
                    for classes in top_classes[layer]
                ]
                best_rates[layer] = int(np.argmax(accuracies))
                rate_metrics |= {
                    f"{layer}/held_out_top1": max(accuracies),
                    f"{layer}/lr": self.net.rates[best_rates[layer]],
                }
        top_classes, columns = self._rank_classes(net, self.test, should_stop, broken)
        rows = self._rows({layer: top_classes[layer][best_rates[layer]] for layer in layers}, columns)
        # Per-class accuracies are computed once, after training.
        metrics = rate_metrics | unweighted_metrics(accuracy, rows)
        line = "top-1 " + "  ".join(f"{layer} {100 * metrics[f'{layer}/top1']:.1f}" for layer in layers)
        return Evaluation(metrics, len(rows["names"]), {**rows, "classes": np.array(self.classes)}, broken, line)

    def _rows(self, top_classes: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> Rows:
        """Return the per-image rows ``LAYER/prediction``, ``LAYER/top1`` and, for five or more classes, ``LAYER/top5``.

        Args:
            top_classes: (n, ≤ 5) class indices by layer, the most likely first.
            columns: names and labels of the n images.
        """
        rows = dict(columns)
        for layer, classes in top_classes.items():
            hits = classes == columns["labels"][:, None]
            rows |= {f"{layer}/prediction": classes[:, 0], f"{layer}/top1": hits[:, 0]}
            if classes.shape[1] >= 5:
                rows[f"{layer}/top5"] = hits[:, :5].any(1)
        return rows

    def _rank_classes(
        self, net: nn.Module, images: Images, should_stop: Callable[[], bool], broken: dict[str, str]
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, np.ndarray]]:
        """Rank the classes of each image by their softmax outputs, averaged over its views (ten crops).

        Args:
            net: classifiers.
            images: images to classify, or their cached features.
            should_stop: checked before every batch.
            broken: filled with the reason for each unreadable image, by name.

        Returns:
            top_classes: by layer, for each learning rate, (n, ≤ 5) class indices, the most likely first.
            columns: names and labels of the n images.
        """
        layers, rates = self.net.layers, self.net.rates
        width = min(5, self.net.probes[0].classifiers[0].out_features)
        empty = torch.empty(0, width, dtype=torch.int64, device=self.world.device)
        top_classes = {(layer, rate): [empty] for layer in layers for rate in range(len(rates))}
        batch_indices: list[Tensor] = []
        for features, view_indices in self._batches(images, should_stop, broken):
            image_indices, views = torch.unique_consecutive(view_indices, return_counts=True)
            batch_indices.append(image_indices)
            owner = torch.repeat_interleave(torch.arange(len(image_indices)), views).to(self.world.device)
            for layer, layer_logits in net(features).items():
                for rate, logits in enumerate(layer_logits):
                    probabilities = logits.new_zeros(len(image_indices), logits.shape[1]).index_add_(
                        0, owner, logits.softmax(1)
                    )
                    top_classes[layer, rate].append(probabilities.topk(width).indices)
        indices, ordered = in_order(self.world, batch_indices, top_classes)
        if not len(indices):
            raise UserError("none of the validation images can be read")
        image_set = _image_set(images)
        columns = {
            "names": np.array([image_set.names[int(i)] for i in indices]),
            "labels": image_set.labels[indices.numpy()],
        }
        return {layer: [ordered[layer, rate].numpy() for rate in range(len(rates))] for layer in layers}, columns

    def _batches(
        self, images: Images, should_stop: Callable[[], bool], broken: dict[str, str]
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield batches of this rank: features by layer, and the image index of each row.

        All views of an image are in the same batch.
        """
        if isinstance(images, StoredFeatures):
            for rows in images.rank_slices(self.batch, self.world, should_stop):
                if rows.start < rows.stop:
                    yield images.rows(rows, self.world.device), images.indices[rows]
            return

        def compute(batch: ImageBatch) -> dict[str, Tensor]:
            return self.features(batch.images) if len(batch) else {}

        held_out = HeldOut(Stream(images, self.view), compute, self.world, self.batch, self.workers, should_stop)
        yield from ((features, batch.indices) for batch, features in held_out if len(batch))
        broken |= held_out.broken


def compute_metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Return the accuracies ``LAYER/top1``, ``LAYER/top5`` and ``LAYER/top1/CLASS``."""
    return accuracy(rows, weights) | accuracy_by_class(rows, weights)


def accuracy(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Return the top-1 and top-5 accuracies, ``LAYER/top1`` and ``LAYER/top5``."""
    return {name: weighted_mean(hits, weights) for name, hits in rows.items() if name.endswith(("/top1", "/top5"))}


def accuracy_by_class(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Return the top-1 accuracy within each class that has images, ``LAYER/top1/CLASS``."""
    metrics: MetricArrays = {}
    for column in [name for name in rows if name.endswith("/top1")]:
        for label, name in enumerate(rows.get("classes", ())):
            in_class = rows["labels"] == label
            if in_class.any():
                metrics[f"{column}/{name}"] = weighted_mean(rows[column][in_class], weights[:, in_class])
    return metrics


def _image_set(images: Images) -> ImageSet:
    return images.images if isinstance(images, StoredFeatures) else images
