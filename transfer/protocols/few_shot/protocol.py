"""Few-shot evaluation with 1 % or 10 % of the labels, as is usual on ImageNet, or with k training images per class.

For each layer of a frozen backbone, logistic regressions are fitted to several random draws of training images. Their
penalty is selected by cross-validation on the drawn images.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from crosschannel.data.order import epoch_order, mix
from crosschannel.errors import UserError
from crosschannel.runs.result import Result, Rows
from crosschannel.training.task import Evaluation
from transfer.chance import majority_class
from transfer.feature_cache import extract_features
from transfer.features import centre_crop
from transfer.labelled import open_labelled
from transfer.layers import LayersSection, layers_table
from transfer.linear_models import Processes
from transfer.protocol import Measurement, MetricArrays, Protocol, unweighted_metrics, weighted_mean
from transfer.protocols.few_shot.config import FewShotConfig
from transfer.protocols.few_shot.regression import predict


def _measure(measurement: Measurement) -> Evaluation:
    """Extract features of both splits, then fit regressions layer by layer."""
    backbone, split, world = measurement.backbone, measurement.split, measurement.world
    layers = measurement.choose_layers()
    config: FewShotConfig = measurement.config
    settings = [f"shots/{k}" for k in config.shots] or [f"share/{fraction:g}" for fraction in config.share]
    _check_shots(split.train.labels, config, split.classes)
    measurement.announce(f"layers {', '.join(layers)}")
    train, test = extract_features(measurement, layers, centre_crop(backbone.input, config.size))
    _check_shots(train.images.labels, config, split.classes)  # again, because unreadable images are skipped
    rows = test.columns()
    draws = [(setting, draw) for setting in settings for draw in range(config.draws)]
    rank_draws, labels = draws[world.rank :: world.size], train.images.labels
    drawn_images = {(setting, draw): draw_images(labels, setting, config.seed, draw) for setting, draw in rank_draws}
    with Processes(config.jobs) as processes:
        for layer in layers:
            measurement.check_interrupt()
            predict_rank = partial(
                _predict, train.maps[layer], test.maps[layer], drawn_images, labels, config, processes
            )
            predictions = {draw: row for rank in world.gather_results(predict_rank) for draw, row in rank.items()}
            for setting in settings:
                hits = [predictions[setting, draw] == rows["labels"] for draw in range(config.draws)]
                rows[f"{layer}/{setting}"] = np.stack(hits, 1)
    return Evaluation(unweighted_metrics(compute_metrics, rows), len(rows["names"]), rows)


def _predict(
    train: Tensor,
    test: Tensor,
    drawn_images: dict[tuple[str, int], np.ndarray],
    labels: np.ndarray,
    config: FewShotConfig,
    processes: Processes,
) -> dict[tuple[str, int], np.ndarray]:
    """Predict the classes of the test images once per draw.

    Args:
        train, test: feature maps of one layer.
        drawn_images: indices of the drawn training images, by (setting, draw).
        labels: class indices of all training images.
        config: config of the protocol.
        processes: process pool that fits the regressions.

    Returns:
        (m,) predicted class indices, by (setting, draw).
    """
    unique_indices = np.unique(np.concatenate([np.empty(0, np.int64), *drawn_images.values()]))
    shared = [processes.share(maps.flatten(1).numpy()) for maps in (train[torch.from_numpy(unique_indices)], test)]
    settings = (config.costs, config.folds, config.seed)
    tasks = [(np.searchsorted(unique_indices, images), labels[images], *settings) for images in drawn_images.values()]
    return dict(zip(drawn_images, processes.run(predict, shared, tasks), strict=True))


def _check_shots(labels: np.ndarray, config: FewShotConfig, classes: Sequence[str]) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    smallest = int(counts.argmin())
    if config.shots and max(config.shots) > counts[smallest]:
        raise UserError(
            f"shots must not exceed the number of training images of any class: {classes[smallest]} has "
            f"{counts[smallest]}, got {max(config.shots)}"
        )


def draw_images(labels: np.ndarray, setting: str, seed: int, draw: int) -> np.ndarray:
    """Draw training images of each class at random, and return their indices.

    Args:
        labels: (n,) class index of each training image.
        setting: "shots/K" for K images per class, or "share/S" for the fraction S of each class.
        seed: seed of the run.
        draw: index of the draw.
    """
    kind, _, amount = setting.partition("/")
    order = epoch_order(len(labels), mix(seed, draw), 0)
    indices = []
    for label in np.unique(labels):
        class_indices = order[labels[order] == label]
        count = int(amount) if kind == "shots" else max(1, round(float(amount) * len(class_indices)))
        indices.append(class_indices[:count])
    return np.concatenate(indices)


def compute_metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Return the top-1 accuracy by layer and setting, averaged over draws."""
    hits = {name: row for name, row in rows.items() if name.partition("/")[2].startswith(("shots/", "share/"))}
    return {name: weighted_mean(row.mean(1), weights) for name, row in hits.items()}


def _show(result: Result) -> Table:
    """Format the top-1 accuracy by layer and setting."""
    return layers_table(result, lambda kind: f"{kind.replace('/', ' ')}, top-1 %")


few_shot = Protocol(
    config=FewShotConfig,
    open_data=open_labelled,
    measure=_measure,
    metrics=compute_metrics,
    show=_show,
    section=LayersSection("Few labels", r"(shots|share)/[\d.e-]+"),
    returns="``LAYER/shots/K`` or ``LAYER/share/S``, the top-1 accuracy averaged over draws",
    positional_key="layer",
    chance_level=majority_class,
)
