"""Linear SVMs on the layers of a frozen backbone, with all or few (low-shot) labels, as in VISSL and in FAIR's
benchmark (Goyal et al., "Scaling and benchmarking self-supervised visual representation learning", ICCV 2019).

C is selected by cross-validation on training images. Both benchmarks select the C of low-shot SVMs on the test images;
for low-shot results that are comparable with theirs, set ``choose: test``.
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
from transfer.feature_cache import extract_features
from transfer.features import interpolation_of
from transfer.groups import Group
from transfer.layers import LayersSection, layers_table
from transfer.linear_models import Processes, project_onto_span
from transfer.pascal.annotations import IGNORED, POSITIVE
from transfer.pascal.devkit import open_devkit
from transfer.pascal.metrics import average_precision
from transfer.protocol import Measurement, MetricArrays, Protocol, unweighted_metrics
from transfer.protocols.svm.classifiers import cross_validated_scores, scores_by_cost
from transfer.protocols.svm.config import SVMConfig

_NEGATIVES = 19  # negatives per positive of a low-shot SVM


def _measure(measurement: Measurement) -> Evaluation:
    """Extract features of both splits, then train SVMs layer by layer; finished layers are saved to resume from."""
    backbone, split, world, run = measurement.backbone, measurement.split, measurement.world, measurement.run
    layers = measurement.choose_layers()
    config: SVMConfig = measurement.config
    measurement.announce(f"layers {', '.join(layers)}")
    shots = _feasible_shots(split.train.labels, config, measurement)
    view = _view(config, backbone.input)
    train, test = extract_features(measurement, layers, view)
    labels = train.images.labels  # labels of the readable images only
    if len(labels) < len(split.train):
        shots = _feasible_shots(labels, config, measurement)
    rows = {
        "names": np.array(list(test.images.names)),
        "classes": np.array(split.classes),
        "labels": test.images.labels,
    }
    metrics, scores = {}, {}
    with Processes(config.jobs) as processes:
        for index, layer in enumerate(layers):
            folder = run.checkpoints / f"layer-{index}"
            layer_scores = world.broadcast_from_main(partial(_load_layer, folder, rows["names"]))
            if not layer_scores:
                layer_scores = _classify(
                    *(features.maps[layer] for features in (train, test)), labels, rows, shots, measurement, processes
                )
                world.broadcast_from_main(partial(_save_layer, folder, {"names": rows["names"], **layer_scores}))
            columns = {f"{layer}/{kind}": column for kind, column in layer_scores.items() if kind != "names"}
            layer_metrics = unweighted_metrics(compute_metrics, {**rows, **columns})
            summary = "  ".join(f"{name} {100 * value:.1f}" for name, value in layer_metrics.items())
            measurement.console.print(f"mAP {summary}")
            metrics, scores = metrics | layer_metrics, scores | columns
    return Evaluation(metrics, len(rows["names"]), {**rows, **scores})


def _view(config: SVMConfig, input: InputSpec) -> Squashed:
    size = config.size or input.size
    resize = round(size * input.resize / input.size) if config.resize_first else 0
    return Squashed(size, interpolation_of(input), resize)


def _save_layer(folder: Path, rows: Rows) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_rows(folder, rows)


def _load_layer(folder: Path, names: np.ndarray) -> Rows:
    """Load the saved scores of a layer; return {} if there are none for these images."""
    try:
        rows = load_rows(folder, len(names))
    except UserError:
        return {}
    return rows if rows and np.array_equal(rows["names"], names) else {}


def _normalise(maps: Tensor) -> np.ndarray:
    """Flatten feature maps and scale them to unit L2 norm: (n, C, g, g) → (n, d)."""
    flat = maps.flatten(1)
    return (flat / (flat.norm(dim=1, keepdim=True) + 1e-5)).numpy()


def _feasible_shots(labels: np.ndarray, config: SVMConfig, measurement: Measurement) -> list[int]:
    """Return the values of ``low_shot`` for which every class has enough positives and negatives; log the others.

    Raises:
        UserError: a class has no positives or no negatives, or there is nothing to train.
    """
    positives, negatives = (labels == POSITIVE).sum(0), (labels != POSITIVE).sum(0) - (labels == IGNORED).sum(0)
    for kind, counts in (("positives", positives), ("negatives", negatives)):
        if (counts == 0).any():
            name = measurement.split.classes[int((counts == 0).argmax())]
            raise UserError(f"the training images of {measurement.split.source!r} have no {kind} of the class {name!r}")
    feasible = []
    for k in config.low_shot:
        infeasible = (positives < k) | (negatives < _NEGATIVES * k)
        if infeasible.any():
            label = int(infeasible.argmax())
            measurement.console.print(
                f"low-shot {k} is skipped: {measurement.split.classes[label]} has {positives[label]} positives and "
                f"{negatives[label]} negatives, but needs {k} and {_NEGATIVES * k}",
            )
        else:
            feasible.append(k)
    if not feasible and not config.full:
        raise UserError("the classes have too few images for every k in low_shot, and full is off: nothing to train")
    return feasible


def _classify(
    train: Tensor,
    test: Tensor,
    labels: np.ndarray,
    test_rows: Rows,
    shots: Sequence[int],
    measurement: Measurement,
    processes: Processes,
) -> dict[str, np.ndarray]:
    """Train the SVMs of one layer, and score the test images.

    Args:
        train, test: feature maps of both splits.
        labels: (N, K) labels of the training images.
        test_rows: names, classes and labels of the test images.
        shots: numbers of positives of the low-shot SVMs.
        measurement: the measurement in progress.
        processes: process pool that fits the SVMs.

    Returns:
        decision values of the test images: ``svm`` (n, K), and ``low_shot/k`` (n, draws, K).
    """
    world, config = measurement.world, measurement.config
    train_features, directions = project_onto_span(_normalise(train))
    test_features = _normalise(test) if directions is None else _normalise(test) @ directions
    shared = [processes.share(train_features), processes.share(test_features)]
    classes_per_rank, chunk = -(-labels.shape[1] // world.size), min(world.gather(processes.count))

    def score_classes(labels: np.ndarray, all_costs: bool) -> np.ndarray:
        settings = (config.costs, config.seed) if all_costs else (config.costs, config.folds, config.seed)
        score_class, by_class = scores_by_cost if all_costs else cross_validated_scores, {}
        for start in range(0, classes_per_rank, chunk):  # in chunks, to check for interrupts between them
            measurement.check_interrupt()
            classes = range(labels.shape[1])
            by_rank = [classes[rank :: world.size][start : start + chunk] for rank in range(world.size)]
            tasks = [(labels[:, label], *settings) for label in by_rank[world.rank]]
            gathered = world.gather_results(partial(processes.run, score_class, shared, tasks))
            for rank_classes, rank_scores in zip(by_rank, gathered, strict=True):
                by_class |= dict(zip(rank_classes, rank_scores, strict=True))
        return np.stack([by_class[label] for label in range(labels.shape[1])], -1)

    scores = {}
    if config.full:
        binary = np.where(labels == POSITIVE, 1, 0)  # images with only difficult objects count as negatives
        scores["svm"] = score_classes(binary, all_costs=False).astype(np.float32)
    select_on_test = config.choose == "test"
    for k in shots:
        draws = [
            score_classes(draw_labels(labels, k, config.seed, draw), select_on_test) for draw in range(config.draws)
        ]
        by_draw = best_on_test(np.stack(draws), test_rows["labels"]) if select_on_test else np.stack(draws)
        scores[f"low_shot/{k}"] = by_draw.swapaxes(0, 1).astype(np.float32)
    return scores


def best_on_test(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Select the scores of the C with the highest test mAP, averaged over draws.

    Args:
        scores: (draws, costs, n, K) decision values.
        truth: (n, K) labels.

    Returns:
        (draws, n, K) decision values.
    """
    unit_weights = np.ones((1, len(truth)))
    mean_aps = np.array([[_mean_ap(cost_scores, truth, unit_weights)[0] for cost_scores in draw] for draw in scores])
    return scores[:, int(mean_aps.mean(0).argmax())]


def draw_labels(labels: np.ndarray, k: int, seed: int, draw: int) -> np.ndarray:
    """Draw k positives and 19 k negatives of each class at random.

    Images with only difficult objects of a class are never drawn for it.

    Returns:
        (n, K) int8: 1 for the positives, 0 for the negatives, -1 for all other images.
    """
    drawn_labels = np.full(labels.shape, -1, np.int8)
    for label in range(labels.shape[1]):
        order = epoch_order(len(labels), mix(seed, draw, k), label)
        positives, negatives = (order[labels[order, label] == value] for value in (POSITIVE, 0))
        drawn_labels[positives[:k], label] = 1
        drawn_labels[negatives[: _NEGATIVES * k], label] = 0
    return drawn_labels


def compute_metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Return the mAPs ``LAYER/svm_map`` and ``LAYER/low_shot/K``, the latter averaged over draws.

    AP is the area under the envelope of the precision-recall curve. Images with only difficult objects of a class are
    ignored for that class.
    """
    metrics: MetricArrays = {}
    for name, scores in rows.items():
        if name.endswith("/svm"):
            metrics[f"{name}_map"] = _mean_ap(scores, rows["labels"], weights)
        elif "/low_shot/" in name:
            draws = [_mean_ap(scores[:, draw], rows["labels"], weights) for draw in range(scores.shape[1])]
            metrics[name] = np.mean(draws, 0)
    return metrics


def _mean_ap(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    aps = []
    for label in range(labels.shape[1]):
        counted = labels[:, label] != IGNORED
        positive = labels[counted, label] == POSITIVE
        if positive.any():
            aps.append(average_precision(scores[counted, label], positive, weights[:, counted], "envelope"))
    return np.nanmean(aps, 0)


def _show(result: Result) -> Table:
    """Format the mAP by layer."""
    select_on_test = result.config.get("choose") == "test"

    def title(kind: str) -> str:
        if kind == "svm_map":
            return "all labels, mAP %"
        return f"{kind.replace('_', '-')}, mAP %" + (" (C selected on test images)" if select_on_test else "")

    return layers_table(result, title)


def _selection_note(kind: str, groups: Sequence[Group]) -> str:
    """Return a note for a table's caption if any of its runs selected C on the test images, otherwise ""."""
    choices = {entry.first.config.get("choose") for entry in groups} if kind.startswith("low_shot") else set()
    if "test" not in choices:
        return ""
    return "; C is selected on the test images" + (" if choose=test" if len(choices) > 1 else "")


svm = Protocol(
    config=SVMConfig,
    open_data=open_devkit,
    measure=_measure,
    metrics=compute_metrics,
    show=_show,
    section=LayersSection(
        "Linear SVMs", r"svm_map|low_shot/\d+", what="Test mean average precision", note=_selection_note
    ),
    returns="the mAPs ``LAYER/svm_map``, and ``LAYER/low_shot/K`` for K positives, averaged over draws",
    positional_key="layer",
    chance_level=random_ranking,
)
