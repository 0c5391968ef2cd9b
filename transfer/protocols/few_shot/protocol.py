"""Few labels, ImageNet style: of 1 % or 10 % of the labels, or of so many images a class, logistic regression on each
layer of a frozen backbone; several draws, and a penalty that is chosen by cross-validation on the drawn images alone.
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
from transfer.feature_cache import features_of_both
from transfer.features import centre_crop
from transfer.labelled import open_labelled
from transfer.layers import LayersSection, layers_table
from transfer.linear_models import Processes
from transfer.protocol import Measurement, MetricArrays, Protocol, unweighted_metrics, weighted_mean
from transfer.protocols.few_shot.config import FewShotConfig
from transfer.protocols.few_shot.regression import predict


def _measure(measurement: Measurement) -> Evaluation:
    """Features of both parts, then regressions layer by layer."""
    backbone, split, world = measurement.backbone, measurement.split, measurement.world
    layers = measurement.choose_layers()
    config: FewShotConfig = measurement.config
    settings = [f"shots/{k}" for k in config.shots] or [f"share/{share:g}" for share in config.share]
    _check_shots(split.train.labels, config, split.classes)
    measurement.announce(f"layers {', '.join(layers)}")
    train, test = features_of_both(measurement, layers, centre_crop(backbone.input, config.size))
    _check_shots(train.images.labels, config, split.classes)  # without those that could not be read
    rows = test.columns()
    tasks = [(setting, draw) for setting in settings for draw in range(config.draws)]
    own, labels = tasks[world.rank :: world.size], train.images.labels
    drawn = {task: draw_images(labels, task[0], config.seed, task[1]) for task in own}
    with Processes(config.jobs) as processes:
        for layer in layers:
            measurement.check_interrupt()
            mine = partial(_predictions, train.maps[layer], test.maps[layer], drawn, labels, config, processes)
            found = {task: one for rank in world.gather_results(mine) for task, one in rank.items()}
            for setting in settings:
                hits = [found[setting, draw] == rows["labels"] for draw in range(config.draws)]
                rows[f"{layer}/{setting}"] = np.stack(hits, 1)
    return Evaluation(unweighted_metrics(metrics, rows), len(rows["names"]), rows)


def _predictions(
    train: Tensor,
    test: Tensor,
    drawn: dict[tuple[str, int], np.ndarray],
    labels: np.ndarray,
    config: FewShotConfig,
    processes: Processes,
) -> dict[tuple[str, int], np.ndarray]:
    """Classes of the test images by draw, from a layer's maps."""
    used = np.unique(np.concatenate([np.empty(0, np.int64), *drawn.values()]))
    shared = [processes.share(maps.flatten(1).numpy()) for maps in (train[torch.from_numpy(used)], test)]
    told = (config.costs, config.folds, config.seed)
    work = [(np.searchsorted(used, images), labels[images], *told) for images in drawn.values()]
    return dict(zip(drawn, processes.run(predict, shared, work), strict=True))


def _check_shots(labels: np.ndarray, config: FewShotConfig, classes: Sequence[str]) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    fewest = int(counts.argmin())
    if config.shots and max(config.shots) > counts[fewest]:
        raise UserError(
            f"shots must not be above the images of a class: {classes[fewest]} has {counts[fewest]}, "
            f"got {max(config.shots)}"
        )


def draw_images(labels: np.ndarray, setting: str, seed: int, draw: int) -> np.ndarray:
    """The training images of one draw, by index: so many of each class.

    Args:
        labels: (n,).
        setting: "shots/K" or "share/S".
        seed, draw: which draw.
    """
    kind, _, amount = setting.partition("/")
    order = epoch_order(len(labels), mix(seed, draw), 0)
    found = []
    for number in np.unique(labels):
        of_class = order[labels[order] == number]
        count = int(amount) if kind == "shots" else max(1, round(float(amount) * len(of_class)))
        found.append(of_class[:count])
    return np.concatenate(found)


def metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Shares of images that were classified right, averaged over draws."""
    wanted = {name: row for name, row in rows.items() if name.partition("/")[2].startswith(("shots/", "share/"))}
    return {name: weighted_mean(row.mean(1), weights) for name, row in wanted.items()}


def _show(result: Result) -> Table:
    """Top-1 by layer and number of labels."""
    return layers_table(result, lambda kind: f"{kind.replace('/', ' ')}, top-1 %")


few_shot = Protocol(
    config=FewShotConfig,
    open_data=open_labelled,
    measure=_measure,
    metrics=metrics,
    show=_show,
    section=LayersSection("Few labels", r"(shots|share)/[\d.e-]+"),
    returns="``LAYER/shots/K`` or ``LAYER/share/S``: top-1, mean over draws",
    positional_key="layer",
    chance_level=majority_class,
)
