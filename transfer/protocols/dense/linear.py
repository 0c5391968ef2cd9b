"""Training task of the linear dense probe: classifiers for all layers and learning rates, trained in one pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crosschannel.data import Batch, Stream
from crosschannel.training.ranks import World
from crosschannel.training.task import Evaluation
from transfer.feature_cache import StoredFeatures
from transfer.heads import LayerHeads
from transfer.interpolation import resample
from transfer.pascal.masks import IGNORED
from transfer.pascal.metrics import segmentation_metrics
from transfer.pascal.segmentation import confusion_of
from transfer.protocol import unweighted_metrics
from transfer.protocols.dense.points import Points
from transfer.protocols.dense.scoring import TEST_BATCH, compute_metrics, score_test_images


class PointHead(nn.Module):
    """Non-affine BatchNorm, followed by one linear classifier of map points per learning rate.

    BatchNorm uses the statistics of all training images. The classifiers are initialised with zeros.

    Shape:
        (N, C, g, g) → list of ``count`` scores (N, classes, g, g).
    """

    def __init__(self, channels: int, classes: int, count: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.classifiers = nn.ModuleList(nn.Conv2d(channels, classes, 1) for _ in range(count))
        for parameter in self.classifiers.parameters():
            nn.init.zeros_(parameter)

    def train(self, mode: bool = True) -> "PointHead":
        super().train(mode)
        self.norm.eval()  # its statistics are fixed by set_statistics, so they do not depend on batches and ranks
        return self

    @torch.no_grad()
    def set_statistics(self, maps: Tensor) -> None:
        """Set BatchNorm's mean and variance to those of the training maps (n, C, g, g)."""
        mean = torch.cat([chunk.double().mean((2, 3)) for chunk in maps.split(TEST_BATCH)]).mean(0)
        squares = [((chunk.double() - mean[:, None, None]) ** 2).mean((2, 3)) for chunk in maps.split(TEST_BATCH)]
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(torch.cat(squares).mean(0))

    def forward(self, maps: Tensor) -> list[Tensor]:
        normed = self.norm(maps)
        return [classifier(normed) for classifier in self.classifiers]


class DenseHeads(LayerHeads):
    """One :class:`PointHead` per layer.

    Shape:
        dict of maps by layer → dict of lists of scores by layer, one per learning rate.
    """

    def __init__(self, channels: Mapping[str, int], classes: int, rates: Sequence[float]):
        super().__init__({layer: PointHead(width, classes, len(rates)) for layer, width in channels.items()}, rates)


FeaturesAndMasks = tuple[StoredFeatures, Tensor]  # cached features and masks (n, L, L) of the same images


@dataclass(eq=False)
class DenseProbe:
    """Task that minimises the sum of the cross-entropies of all classifiers.

    Scores of points are resampled to the pixels of the squashed masks. Each cross-entropy is averaged over the labelled
    pixels of an image, then over images.

    Attributes:
        net: heads to train.
        points: sampling points of each layer's map.
        train: features and masks of the training images.
        held_out: features and masks of the held-out training images for selecting the learning rate; None for a single
            rate.
        test: features of the test images.
        classes: class names.
        rate_factors: factors of the learning rate by parameter name.
        world: ranks that share the evaluation.
    """

    net: DenseHeads
    points: Mapping[str, Points]
    train: FeaturesAndMasks
    held_out: FeaturesAndMasks | None
    test: StoredFeatures
    classes: Sequence[str]
    rate_factors: Mapping[str, float]
    world: World

    def initialise(self, stream: Stream) -> bool:
        for layer, head in zip(self.net.layers, self.net.probes, strict=True):
            head.set_statistics(self.train[0].maps[layer])
        return False

    def step(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        features, masks = self.train
        truth = masks[batch.indices].to(self.world.device, non_blocking=True).long()
        labelled = (truth != IGNORED).sum((1, 2)).clamp(min=1)
        losses = []
        for layer, layer_scores in net(features.rows(batch.indices, self.world.device)).items():
            weights = self.points[layer].weights(*truth.shape[1:])
            for scores in layer_scores:
                by_pixel = F.cross_entropy(resample(scores, *weights), truth, ignore_index=IGNORED, reduction="none")
                losses.append((by_pixel.sum((1, 2)) / labelled).sum())
        loss = torch.stack(losses).sum()
        return loss, loss.new_full((), len(truth))

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        layers = self.net.layers
        best_rates, metrics = dict.fromkeys(layers, 0), {}
        if self.held_out is not None:
            mean_ius = self._mean_iu_by_rate(net, should_stop)
            best_rates = {layer: int(np.argmax(by_rate)) for layer, by_rate in mean_ius.items()}
            for layer, rate in best_rates.items():
                metrics |= {f"{layer}/held_out_iu": mean_ius[layer][rate], f"{layer}/lr": self.net.rates[rate]}

        def score(indices: slice) -> dict[str, Tensor]:
            scores = net(self.test.rows(indices, self.world.device))
            return {layer: by_rate[best_rates[layer]] for layer, by_rate in scores.items()}

        rows = score_test_images(self.test, score, self.points, self.classes, self.world, should_stop, "linear")
        metrics |= unweighted_metrics(compute_metrics, rows)
        line = "mean IU " + "  ".join(f"{layer} {100 * metrics[f'{layer}/mean_iu']:.1f}" for layer in layers)
        return Evaluation(metrics, len(rows["names"]), rows, {}, line)

    def _mean_iu_by_rate(self, net: nn.Module, should_stop: Callable[[], bool]) -> dict[str, list[float]]:
        """Return the mean IU of the held-out images by layer and learning rate, at the size of the squashed masks."""
        features, masks = self.held_out
        count, device = len(self.classes), self.world.device
        shape = (len(self.net.layers), len(self.net.rates), count, count)
        confusions = torch.zeros(shape, dtype=torch.int64, device=device)
        for rows in features.rank_slices(TEST_BATCH, self.world, should_stop):
            if rows.start == rows.stop:
                continue
            truth = masks[features.indices[rows]].to(device)
            for i, (layer, layer_scores) in enumerate(net(features.rows(rows, device)).items()):
                for j, scores in enumerate(layer_scores):
                    predicted = self.points[layer].labels(scores, *truth.shape[1:])
                    confusions[i, j] += confusion_of(predicted, truth, count)
        totals = self.world.sum(confusions).cpu().numpy()
        return {layer: segmentation_metrics(totals[i])["mean_iu"].tolist() for i, layer in enumerate(self.net.layers)}
