"""Dense probes: what the maps of a frozen backbone say of pixels, with no net on top that could learn it itself.

A linear classifier of every point, as DINOv2 (Oquab et al., 2023) has it, and nearest neighbours among the points of
training images (Balazevic et al., 2023). For any net with maps: CNNs and ViTs alike.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.table import Table

from crosschannel.console import table
from crosschannel.data import Stream
from crosschannel.data.decode import EncodedImage
from crosschannel.data.open import hold_out
from crosschannel.data.views import IndexOnly, Squashed
from crosschannel.errors import UserError
from crosschannel.hub.files import load_state
from crosschannel.models import Backbone
from crosschannel.runs.result import Result
from crosschannel.training.loop import Loop
from crosschannel.training.task import Evaluation
from transfer.chance import constant_class
from transfer.feature_cache import Extraction, StoredFeatures
from transfer.features import FrozenFeatures, interpolation_of, with_input_size
from transfer.heads import load_head, save_heads
from transfer.layers import LayersSection, by_layer
from transfer.pascal.masks import open_masks
from transfer.pascal.segmentation import mask_predictor
from transfer.prediction import FinishedRun, Predictor, views_of
from transfer.protocol import Measurement, Protocol, unweighted_metrics
from transfer.protocols.dense.config import DenseConfig
from transfer.protocols.dense.linear import DenseHeads, DenseProbe, FeaturesAndMasks, PointHead
from transfer.protocols.dense.memory import PointMemory
from transfer.protocols.dense.points import Points
from transfer.protocols.dense.scoring import metrics, read_masks, score_test_images


def _measure(measurement: Measurement) -> Evaluation:
    """Features and masks, the linear classifiers, then neighbours."""
    split, world, run = measurement.split, measurement.world, measurement.run
    config: DenseConfig = measurement.config
    size = config.size or measurement.backbone.input.size
    backbone = with_input_size(measurement.backbone, size)
    layers = _layers_with_maps(measurement, backbone, size)
    measurement.announce(f"layers {', '.join(layers)}")
    features = FrozenFeatures(backbone, layers, config.grid, world.device, size)
    shapes = features.shapes()
    points = {layer: Points.of(backbone, layer, shape[1], size) for layer, shape in shapes.items()}
    rates = config.rates or [config.optim.lr]
    learned, test = _features_and_masks(measurement, config, features, is_chosen=len(rates) > 1)
    torch.manual_seed(config.seed)
    heads = DenseHeads({layer: shape[0] for layer, shape in shapes.items()}, len(split.classes), rates)
    train, held_out = learned[0], learned[1] if len(learned) > 1 else None
    factors = heads.rate_factors(config.optim.lr)
    task = DenseProbe(heads, points, train, held_out, test, split.classes, factors, world)
    stream = Stream(learned[0][0].images, IndexOnly(), config.seed)
    loop = Loop(task, stream, config, run, world, measurement.console.quiet)
    found = loop.fit()
    chosen = loop.evaluated_net.chosen({layer: found.metrics.get(f"{layer}/lr") for layer in layers})
    world.broadcast_from_main(lambda: save_heads(run.path, chosen, split.classes))
    rows, figures = dict(found.rows), dict(found.metrics)
    for layer in layers if config.k else ():
        by_neighbours = _by_neighbours(measurement, config, layer, points[layer], learned, test)
        rows, figures = rows | by_neighbours.rows, figures | by_neighbours.metrics
    return replace(found, rows=rows, metrics=figures)


def _features_and_masks(
    measurement: Measurement, config: DenseConfig, features: FrozenFeatures, is_chosen: bool
) -> tuple[list[FeaturesAndMasks], StoredFeatures]:
    """Of training images, where a learning rate is chosen then of those by which it is; and features of test images."""
    split, world = measurement.split, measurement.world
    extract = Extraction(
        features,
        world,
        measurement.run.flag,
        config.train.precision,
        max(64, config.train.batch),
        config.runtime.workers,
        config.cache,
        config.runtime.broken_limit,
        measurement.console,
    )
    view = Squashed(features.size, interpolation_of(features.backbone.input))
    parts = {"training": split.train}
    if is_chosen:
        parts["training"], parts["held-out"] = hold_out(split.train, config.held_out, split.source)
    stored = [extract(Stream(images, view), what) for what, images in parts.items()]
    test = extract(Stream(split.test, view), "test")
    count = len(split.classes)
    masks = [read_masks(part, config.mask_size, count, world, measurement.should_stop) for part in stored]
    return list(zip(stored, masks, strict=True)), test


def _layers_with_maps(measurement: Measurement, backbone: Backbone, size: int) -> tuple[str, ...]:
    """The layers asked for that have more than one position.

    Raises:
        UserError: none has.
    """
    wanted, config = measurement.choose_layers(), measurement.config
    shapes = FrozenFeatures(backbone, wanted, config.grid, measurement.world.device, size).shapes()
    found = tuple(layer for layer, shape in shapes.items() if min(shape[1:]) > 1)
    named = [name.strip() for name in config.layer.split(",")]
    flat = [layer for layer in shapes if layer not in found and (layer in named or not found)]
    if flat:
        raise UserError(f"layer {flat[0]!r} has one position only; a dense probe needs a map")
    return found


def _by_neighbours(
    measurement: Measurement,
    config: DenseConfig,
    layer: str,
    points: Points,
    learned: Sequence[FeaturesAndMasks],
    test: StoredFeatures,
) -> Evaluation:
    """Score nearest neighbours on a layer; the memory includes the held-out training images."""
    world, count = measurement.world, len(measurement.split.classes)
    parts = [(part.maps[layer], points.histograms(masks, count)) for part, masks in learned]
    memory = PointMemory.of(parts, config.memory, config.seed, config.k, config.temperature, world.device)
    rows = score_test_images(
        test,
        lambda part: {layer: memory.scores(test.maps[layer][part])},
        {layer: points},
        measurement.split.classes,
        world,
        measurement.should_stop,
        "knn",
    )
    figures = unweighted_metrics(metrics, rows)
    measurement.console.print(
        f"{layer}: {len(memory.features):,} points remembered, mean IU of neighbours "
        f"{100 * figures[f'{layer}/knn_mean_iu']:.1f}",
    )
    return Evaluation(figures, len(rows["names"]), rows)


def _predictor(run: FinishedRun) -> Predictor:
    config: DenseConfig = run.config
    head = load_head(run, "mean_iu")
    backbone = run.measured(open_masks)
    size = config.size or backbone.input.size
    backbone = with_input_size(backbone, size)
    features = FrozenFeatures(backbone, [head.layer], config.grid, run.device, size)
    channels, side, _ = features.shapes()[head.layer]
    points, view = Points.of(backbone, head.layer, side, size), Squashed(size, interpolation_of(backbone.input))
    classifier = PointHead(channels, len(head.classes), 1).to(run.device).eval()
    load_state(classifier, head.tensors, str(run.path))

    def labels(image: EncodedImage) -> torch.Tensor:
        (scores,) = classifier(features(views_of(image.data, view).images)[head.layer])
        return points.labels(scores, image.height, image.width)[0]

    return mask_predictor(labels, head.classes)


def _show(result: Result) -> Table:
    """Mean IU by layer."""
    kinds = {"mean_iu": "linear, mean IU %", "knn_mean_iu": "neighbours, mean IU %"}
    kinds = {kind: words for kind, words in kinds.items() if any(m.endswith(f"/{kind}") for m in result.metrics)}
    layers = [layer for layer in by_layer(result.metrics) if f"{layer}/mean_iu" in result.metrics]
    rows = {layer: [f"{100 * result.metrics[f'{layer}/{kind}']:.1f}" for kind in kinds] for layer in layers}
    return table(rows, ["layer", *kinds.values()])


dense = Protocol(
    config=DenseConfig,
    open_data=open_masks,
    measure=_measure,
    metrics=metrics,
    show=_show,
    section=LayersSection("Dense probes", r"mean_iu|knn_mean_iu", what="Test mean IU"),
    returns="``LAYER/mean_iu``, ``LAYER/iu/CLASS`` and ``LAYER/pixel_accuracy`` of the linear "
    "classifiers, and ``LAYER/knn_mean_iu`` and ``LAYER/knn_pixel_accuracy`` of neighbours",
    positional_key="layer",
    predict=_predictor,
    chance_level=constant_class,
    annotations="whose field mask is (H, W) integers",
)
