"""k-NN evaluation of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018).

Features are L2-normalised. Each of the k training images nearest to a query by cosine similarity votes for its class
with weight exp(cosine / temperature).
"""

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from crosschannel.errors import UserError
from crosschannel.runs.result import Result, Rows
from crosschannel.training.task import Evaluation
from transfer.chance import majority_class
from transfer.feature_cache import extract_features
from transfer.features import centre_crop
from transfer.labelled import open_labelled
from transfer.layers import LayersSection, layers_table
from transfer.neighbours import neighbours
from transfer.protocol import Measurement, MetricArrays, Protocol, unweighted_metrics, weighted_mean
from transfer.protocols.knn.config import KNNConfig


def _measure(measurement: Measurement) -> Evaluation:
    """Extract features of both splits, then classify layer by layer."""
    backbone, split, world = measurement.backbone, measurement.split, measurement.world
    layers = measurement.choose_layers()
    config: KNNConfig = measurement.config
    _check_k(config, len(split.train))
    measurement.announce(f"layers {', '.join(layers)}")
    train, test = extract_features(measurement, layers, centre_crop(backbone.input, config.size))
    _check_k(config, len(train))  # again, because unreadable images are skipped
    rows = test.columns()
    labels = torch.from_numpy(train.images.labels)
    for layer in layers:
        measurement.check_interrupt()
        bank, queries = (features.maps[layer].flatten(1) for features in (train, test))
        rank_queries = queries.tensor_split(world.size)[world.rank]
        rank_neighbours = neighbours(rank_queries, bank, max(config.k), world.device)
        indices, cosines = (world.concatenate(tensor.to(world.device)).cpu() for tensor in rank_neighbours)
        for k in config.k:
            for temperature in config.temperature:
                top_classes = vote(labels[indices[:, :k]], cosines[:, :k], temperature, len(split.classes))
                name = f"{layer}/knn{k}" + ("" if temperature == config.temperature[0] else f"/t{temperature:g}")
                rows[name] = top_classes[:, 0].numpy() == rows["labels"]
    return Evaluation(unweighted_metrics(compute_metrics, rows), len(rows["names"]), rows)


def compute_metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Return the top-1 accuracy by layer, k and temperature."""
    return {name: weighted_mean(hits, weights) for name, hits in rows.items() if "/knn" in name}


def _check_k(config: KNNConfig, images: int) -> None:
    if max(config.k) > images:
        raise UserError(f"k must not exceed the number of training images ({images}), got {max(config.k)}")


def vote(labels: Tensor, cosines: Tensor, temperature: float, classes: int) -> Tensor:
    """Rank classes by the votes of neighbours, weighted by exp(cosine / temperature).

    Args:
        labels, cosines: (N, k) class index and cosine similarity of each neighbour, nearest first.
        temperature: temperature of the weights.
        classes: number of classes.

    Returns:
        (N, ≤ 5) class indices, highest total weight first.
    """
    # Subtracting the highest cosine scales all weights by the same factor, and avoids overflow.
    weights = ((cosines - cosines[:, :1]) / temperature).double().exp()
    votes = torch.zeros(len(labels), classes, dtype=torch.float64).scatter_add_(1, labels, weights)
    return votes.topk(min(5, classes), 1).indices


def _show(result: Result) -> Table:
    """Format the accuracy by layer, k and temperature."""
    return layers_table(result, lambda kind: f"{kind}, top-1 %")


knn = Protocol(
    config=KNNConfig,
    open_data=open_labelled,
    measure=_measure,
    metrics=compute_metrics,
    show=_show,
    section=LayersSection("Nearest neighbours", r"knn\d+(/t.*)?"),
    returns="the top-1 accuracies ``LAYER/knnK`` (first temperature) and ``LAYER/knnK/tT`` (other temperatures)",
    positional_key="layer",
    chance_level=majority_class,
)
