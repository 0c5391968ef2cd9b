"""Linear segmentation on frozen layers, every layer and learning rate at once: a task for the one loop."""

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
from transfer.pascal.metrics import segmentation_figures
from transfer.pascal.segmentation import confusion_of
from transfer.protocol import unweighted_metrics
from transfer.protocols.dense.points import Points
from transfer.protocols.dense.scoring import AT_ONCE, metrics, score_test_images


class PointHead(nn.Module):
    """Affine-free BatchNorm with the statistics of all images that are learned from, and one or more linear classifiers
    of a map's points, one a learning rate, from zero.

    Shape:
        (N, C, g, g) → count times (N, classes, g, g).
    """

    def __init__(self, channels: int, classes: int, count: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.classifiers = nn.ModuleList(nn.Conv2d(channels, classes, 1) for _ in range(count))
        for parameter in self.classifiers.parameters():
            nn.init.zeros_(parameter)

    def train(self, mode: bool = True) -> "PointHead":
        super().train(mode)
        self.norm.eval()  # the features are known: so are their statistics, on any number of ranks
        return self

    @torch.no_grad()
    def measure(self, maps: Tensor) -> None:
        """Take the statistics of training images, (n, C, g, g)."""
        mean = torch.cat([part.double().mean((2, 3)) for part in maps.split(AT_ONCE)]).mean(0)
        squares = [((part.double() - mean[:, None, None]) ** 2).mean((2, 3)) for part in maps.split(AT_ONCE)]
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(torch.cat(squares).mean(0))

    def forward(self, maps: Tensor) -> list[Tensor]:
        normed = self.norm(maps)
        return [classifier(normed) for classifier in self.classifiers]


class DenseHeads(LayerHeads):
    """A :class:`PointHead` a layer: maps by layer → scores by layer, a list of one a learning rate."""

    def __init__(self, channels: Mapping[str, int], classes: int, rates: Sequence[float]):
        super().__init__({layer: PointHead(count, classes, len(rates)) for layer, count in channels.items()}, rates)


FeaturesAndMasks = tuple[StoredFeatures, Tensor]  # of training images; masks (n, L, L)


@dataclass(eq=False)
class DenseProbe:
    """The task: scores of points brought to the pixels of the squashed masks, and the sum of all classifiers'
    cross-entropies, each averaged over an image's labelled pixels, and over images.

    Attributes:
        net: the heads.
        points: sampling points of each layer's map.
        train: features of training images and their masks (n, L, L).
        held_out: held-out training images for selecting the learning rate; None for a single rate.
        test: features of test images.
        classes: names.
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
            head.measure(self.train[0].maps[layer])
        return False

    def step(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        features, masks = self.train
        truth = masks[batch.indices].to(self.world.device, non_blocking=True).long()
        counted = (truth != IGNORED).sum((1, 2)).clamp(min=1)
        losses = []
        for layer, scores in net(features.rows(batch.indices, self.world.device)).items():
            weights = self.points[layer].weights(*truth.shape[1:])
            for one in scores:
                by_pixel = F.cross_entropy(resample(one, *weights), truth, ignore_index=IGNORED, reduction="none")
                losses.append((by_pixel.sum((1, 2)) / counted).sum())
        loss = torch.stack(losses).sum()
        return loss, loss.new_full((), len(truth))

    def evaluate(self, net: nn.Module, should_stop: Callable[[], bool]) -> Evaluation:
        layers = self.net.layers
        chosen, figures = dict.fromkeys(layers, 0), {}
        if self.held_out is not None:
            tried = self._mean_iu_by_rate(net, should_stop)
            chosen = {layer: int(np.argmax(found)) for layer, found in tried.items()}
            for layer, place in chosen.items():
                figures |= {f"{layer}/held_out_iu": tried[layer][place], f"{layer}/lr": self.net.rates[place]}

        def scores(part: slice) -> dict[str, Tensor]:
            found = net(self.test.rows(part, self.world.device))
            return {layer: one[chosen[layer]] for layer, one in found.items()}

        rows = score_test_images(self.test, scores, self.points, self.classes, self.world, should_stop, "linear")
        figures |= unweighted_metrics(metrics, rows)
        line = "mean IU " + "  ".join(f"{layer} {100 * figures[f'{layer}/mean_iu']:.1f}" for layer in layers)
        return Evaluation(figures, len(rows["names"]), rows, {}, line)

    def _mean_iu_by_rate(self, net: nn.Module, should_stop: Callable[[], bool]) -> dict[str, list[float]]:
        """Mean IU of held-out images at the size of their masks, by layer and learning rate."""
        features, masks = self.held_out
        count, device = len(self.classes), self.world.device
        shape = (len(self.net.layers), len(self.net.rates), count, count)
        totals = torch.zeros(shape, dtype=torch.int64, device=device)
        for part in features.shares(AT_ONCE, self.world, should_stop):
            if part.start == part.stop:
                continue
            truth = masks[features.indices[part]].to(device)
            for i, (layer, scores) in enumerate(net(features.rows(part, device)).items()):
                for j, one in enumerate(scores):
                    predicted = self.points[layer].labels(one, *truth.shape[1:])
                    totals[i, j] += confusion_of(predicted, truth, count)
        summed = self.world.sum(totals).cpu().numpy()
        return {layer: segmentation_figures(summed[i])["mean_iu"].tolist() for i, layer in enumerate(self.net.layers)}
