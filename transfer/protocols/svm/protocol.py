"""Linear SVMs on the layers of a frozen backbone, with all labels and low-shot: the protocol of VISSL and of FAIR's
benchmark (Goyal et al., "Scaling and benchmarking self-supervised visual representation learning", ICCV 2019).

C is chosen by cross-validation on training images. Both benchmarks choose the C of low-shot on the test images
(``choose: test``); only figures with this choice are comparable with theirs.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table
from torch import Tensor

from crosschannel.data.order import epoch_order, mix
from crosschannel.data.views import Squashed
from crosschannel.errors import UserError
from crosschannel.models import InputSpec
from crosschannel.runs.result import Result, Rows, load_rows, save_rows
from crosschannel.training.task import Evaluation
from transfer.chance import random_ranking
from transfer.feature_cache import features_of_both
from transfer.features import interpolation_of
from transfer.groups import Group
from transfer.layers import LayersSection, layers_table
from transfer.linear_models import Processes, project_onto_span
from transfer.pascal.annotations import IGNORED, POSITIVE
from transfer.pascal.devkit import open_devkit
from transfer.pascal.metrics import average_precision
from transfer.protocol import Measurement, MetricArrays, Protocol, unweighted_metrics
from transfer.protocols.svm.classifiers import chosen_scores, scores_by_cost
from transfer.protocols.svm.config import SVMConfig

_NEGATIVES = 19  # of a low-shot classifier, for each positive


def _measure(measurement: Measurement) -> Evaluation:
    """Features of both parts, then the classifiers layer by layer; a layer that is done is kept."""
    backbone, split, world, run = measurement.backbone, measurement.split, measurement.world, measurement.run
    layers = measurement.choose_layers()
    config: SVMConfig = measurement.config
    measurement.announce(f"layers {', '.join(layers)}")
    shots = _fillable(split.train.labels, config, measurement)
    view = _view(config, backbone.input)
    train, test = features_of_both(measurement, layers, view)
    labels = train.images.labels  # without those that could not be read
    if len(labels) < len(split.train):
        shots = _fillable(labels, config, measurement)
    rows = {
        "names": np.array(list(test.images.names)),
        "classes": np.array(split.classes),
        "labels": test.images.labels,
    }
    figures, scored = {}, {}
    with Processes(config.jobs) as processes:
        for number, layer in enumerate(layers):
            kept = run.checkpoints / f"layer-{number}"
            done = world.broadcast_from_main(partial(_kept, kept, rows["names"]))
            if not done:
                done = _classify(
                    *(part.maps[layer] for part in (train, test)), labels, rows, shots, measurement, processes
                )
                world.broadcast_from_main(partial(_keep, kept, {"names": rows["names"], **done}))
            columns = {f"{layer}/{kind}": column for kind, column in done.items() if kind != "names"}
            layer_figures = unweighted_metrics(metrics, {**rows, **columns})
            words = "  ".join(f"{kind} {100 * value:.1f}" for kind, value in layer_figures.items())
            measurement.console.print(f"mAP {words}")
            figures, scored = figures | layer_figures, scored | columns
    return Evaluation(figures, len(rows["names"]), {**rows, **scored})


def _view(config: SVMConfig, input: InputSpec) -> Squashed:
    size = config.size or input.size
    resize = round(size * input.resize / input.size) if config.resize_first else 0
    return Squashed(size, interpolation_of(input), resize)


def _keep(folder: Path, rows: Rows) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_rows(folder, rows)


def _kept(folder: Path, names: np.ndarray) -> Rows:
    """What was kept of a layer, if it is of the same images."""
    try:
        rows = load_rows(folder, len(names))
    except UserError:
        return {}
    return rows if rows and np.array_equal(rows["names"], names) else {}


def _normalised(maps: Tensor) -> np.ndarray:
    """Features of length 1, (n, d)."""
    flat = maps.flatten(1)
    return (flat / (flat.norm(dim=1, keepdim=True) + 1e-5)).numpy()


def _fillable(labels: np.ndarray, config: SVMConfig, measurement: Measurement) -> list[int]:
    """The numbers of positives that every class has, with their negatives; others are named.

    Raises:
        UserError: nothing is left to do, or a class has no positives.
    """
    positives, negatives = (labels == POSITIVE).sum(0), (labels != POSITIVE).sum(0) - (labels == IGNORED).sum(0)
    for what, counts in (("positive", positives), ("negative", negatives)):
        if (counts == 0).any():
            name = measurement.split.classes[int((counts == 0).argmax())]
            raise UserError(f"the training images of {measurement.split.source!r} have no {what} of the class {name!r}")
    found = []
    for k in config.low_shot:
        short = (positives < k) | (negatives < _NEGATIVES * k)
        if short.any():
            number = int(short.argmax())
            measurement.console.print(
                f"low-shot {k} is left out: {measurement.split.classes[number]} has {positives[number]} positives and "
                f"{negatives[number]} negatives, {k} and {_NEGATIVES * k} are needed",
            )
        else:
            found.append(k)
    if not found and not config.full:
        raise UserError("no class can fill any of the numbers of low_shot, and full is off: nothing is left to do")
    return found


def _classify(
    train: Tensor,
    test: Tensor,
    labels: np.ndarray,
    scored: Rows,
    shots: Sequence[int],
    measurement: Measurement,
    processes: Processes,
) -> dict[str, np.ndarray]:
    """``svm`` (n, K) decision values, and ``low_shot/k`` (n, draws, K), from a layer's maps of both parts."""
    world, config = measurement.world, measurement.config
    learned, directions = project_onto_span(_normalised(train))
    others = _normalised(test) if directions is None else _normalised(test) @ directions
    shared = [processes.share(learned), processes.share(others)]
    by_rank, count = -(-labels.shape[1] // world.size), min(world.gather(processes.count))

    def scores(labels: np.ndarray, all_costs: bool) -> np.ndarray:
        settings = (config.costs, config.seed) if all_costs else (config.costs, config.folds, config.seed)
        call, found = scores_by_cost if all_costs else chosen_scores, {}
        for start in range(0, by_rank, count):  # so many classes a rank at once: stops are heard in between
            measurement.check_interrupt()
            classes = range(labels.shape[1])
            parts = [classes[rank :: world.size][start : start + count] for rank in range(world.size)]
            tasks = [(labels[:, number], *settings) for number in parts[world.rank]]
            made = world.gather_results(partial(processes.run, call, shared, tasks))
            for part, values in zip(parts, made, strict=True):
                found |= dict(zip(part, values, strict=True))
        return np.stack([found[number] for number in range(labels.shape[1])], -1)

    found = {}
    if config.full:
        as_negative = np.where(labels == POSITIVE, 1, 0)  # difficult ones too
        found["svm"] = scores(as_negative, all_costs=False).astype(np.float32)
    on_test = config.choose == "test"
    for k in shots:
        draws = [scores(draw_labels(labels, k, config.seed, draw), on_test) for draw in range(config.draws)]
        by_draw = best_on_test(np.stack(draws), scored["labels"]) if on_test else np.stack(draws)
        found[f"low_shot/{k}"] = by_draw.swapaxes(0, 1).astype(np.float32)
    return found


def best_on_test(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Choose the cost with the greatest test mAP averaged over draws: (draws, costs, n, K) → (draws, n, K)."""
    ones = np.ones((1, len(truth)))
    figures = np.array([[_mean_ap(of_cost, truth, ones)[0] for of_cost in draw] for draw in scores])
    return scores[:, int(figures.mean(0).argmax())]


def draw_labels(labels: np.ndarray, k: int, seed: int, draw: int) -> np.ndarray:
    """k positives and 19 · k negatives of each class: (n, K) of 1, 0, and -1 for all others; difficult ones are never
    drawn."""
    found = np.full(labels.shape, -1, np.int8)
    for number in range(labels.shape[1]):
        order = epoch_order(len(labels), mix(seed, draw, k), number)
        positive, negative = (order[labels[order, number] == kind] for kind in (POSITIVE, 0))
        found[positive[:k], number] = 1
        found[negative[: _NEGATIVES * k], number] = 0
    return found


def metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """``LAYER/svm_map`` and ``LAYER/low_shot/K``: areas under precision envelopes, averaged over classes (and draws).
    Images that have difficult objects of a class alone are left out of it."""
    found: MetricArrays = {}
    for name, scores in rows.items():
        if name.endswith("/svm"):
            found[f"{name}_map"] = _mean_ap(scores, rows["labels"], weights)
        elif "/low_shot/" in name:
            draws = [_mean_ap(scores[:, draw], rows["labels"], weights) for draw in range(scores.shape[1])]
            found[name] = np.mean(draws, 0)
    return found


def _mean_ap(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    by_class = []
    for number in range(labels.shape[1]):
        counted = labels[:, number] != IGNORED
        positive = labels[counted, number] == POSITIVE
        if positive.any():
            by_class.append(average_precision(scores[counted, number], positive, weights[:, counted], "envelope"))
    return np.nanmean(by_class, 0)


def _show(result: Result) -> Table:
    """Mean average precision by layer."""
    on_test = result.config.get("choose") == "test"

    def title(kind: str) -> str:
        if kind == "svm_map":
            return "all labels, mAP %"
        return f"{kind.replace('_', '-')}, mAP %" + (" (C chosen on the test images)" if on_test else "")

    return layers_table(result, title)


def _chosen_on_test(kind: str, groups: Sequence[Group]) -> str:
    choices = {entry.first.config.get("choose") for entry in groups} if kind.startswith("low_shot") else set()
    if "test" not in choices:
        return ""
    return "; C is chosen on the test images" + (" if choose=test" if len(choices) > 1 else "")


svm = Protocol(
    config=SVMConfig,
    open_data=open_devkit,
    measure=_measure,
    metrics=metrics,
    show=_show,
    section=LayersSection(
        "Linear SVMs", r"svm_map|low_shot/\d+", what="Test mean average precision", note=_chosen_on_test
    ),
    returns="``LAYER/svm_map``, and ``LAYER/low_shot/K`` for K positives, mean over draws",
    positional_key="layer",
    chance_level=random_ranking,
)
