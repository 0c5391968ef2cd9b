"""Dense probes: segmentation by simple classifiers on the feature maps of a frozen backbone.

Each point of a map is classified by a linear classifier, as in DINOv2 (Oquab et al., 2023), and by its nearest
neighbours among the points of training images (Balazevic et al., 2023). Both classifiers are simple, so the results
mainly reflect the features. Any backbone with feature maps can be measured, including ViTs.
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
from transfer.layers import LayersSection, layer_names
from transfer.pascal.masks import open_masks
from transfer.pascal.segmentation import mask_predictor
from transfer.prediction import FinishedRun, Predictor, load_views
from transfer.protocol import Measurement, Protocol, unweighted_metrics
from transfer.protocols.dense.config import DenseConfig
from transfer.protocols.dense.linear import DenseHeads, DenseProbe, FeaturesAndMasks, PointHead
from transfer.protocols.dense.memory import PointMemory
from transfer.protocols.dense.points import Points
from transfer.protocols.dense.scoring import compute_metrics, read_masks, score_test_images


def _measure(measurement: Measurement) -> Evaluation:
    """Extract features and read masks, then evaluate linear and nearest-neighbour classifiers."""
    split, world, run = measurement.split, measurement.world, measurement.run
    config: DenseConfig = measurement.config
    size = config.size or measurement.backbone.input.size
    backbone = with_input_size(measurement.backbone, size)
    layers = _layers_with_maps(measurement, backbone, size)
    measurement.announce(f"layers {', '.join(layers)}")
    features = FrozenFeatures(backbone, layers, config.grid, world.device, size)
    shapes = features.shapes()
    points = {layer: Points.from_layer(backbone, layer, shape[1], size) for layer, shape in shapes.items()}
    rates = config.rates or [config.optim.lr]
    train_sets, test = _features_and_masks(measurement, config, features, hold_out_images=len(rates) > 1)
    torch.manual_seed(config.seed)
    heads = DenseHeads({layer: shape[0] for layer, shape in shapes.items()}, len(split.classes), rates)
    train, held_out = train_sets[0], train_sets[1] if len(train_sets) > 1 else None
    factors = heads.rate_factors(config.optim.lr)
    task = DenseProbe(heads, points, train, held_out, test, split.classes, factors, world)
    stream = Stream(train_sets[0][0].images, IndexOnly(), config.seed)
    loop = Loop(task, stream, config, run, world, measurement.console.quiet)
    evaluation = loop.fit()
    best_heads = loop.evaluated_net.select_rates({layer: evaluation.metrics.get(f"{layer}/lr") for layer in layers})
    world.broadcast_from_main(lambda: save_heads(run.path, best_heads, split.classes))
    rows, metrics = dict(evaluation.rows), dict(evaluation.metrics)
    for layer in layers if config.k else ():
        knn = _evaluate_neighbours(measurement, config, layer, points[layer], train_sets, test)
        rows, metrics = rows | knn.rows, metrics | knn.metrics
    return replace(evaluation, rows=rows, metrics=metrics)


def _features_and_masks(
    measurement: Measurement, config: DenseConfig, features: FrozenFeatures, hold_out_images: bool
) -> tuple[list[FeaturesAndMasks], StoredFeatures]:
    """Extract the features of all images, and read the masks of the training images.

    Args:
        measurement: the measurement in progress.
        config: config of the protocol.
        features: extractor of the frozen backbone's features.
        hold_out_images: hold out training images to select the learning rate.

    Returns:
        features and masks of the training images and, if ``hold_out_images``, of the held-out ones; features of the
        test images.
    """
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
    image_sets = {"training": split.train}
    if hold_out_images:
        image_sets["training"], image_sets["held-out"] = hold_out(split.train, config.held_out, split.source)
    train_features = [extract(Stream(images, view), name) for name, images in image_sets.items()]
    test = extract(Stream(split.test, view), "test")
    count = len(split.classes)
    masks = [read_masks(cached, config.mask_size, count, world, measurement.should_stop) for cached in train_features]
    return list(zip(train_features, masks, strict=True)), test


def _layers_with_maps(measurement: Measurement, backbone: Backbone, size: int) -> tuple[str, ...]:
    """Return the requested layers whose output is larger than 1 × 1.

    Raises:
        UserError: a layer requested by its full name, or every requested layer, has a 1 × 1 output.
    """
    layers, config = measurement.choose_layers(), measurement.config
    shapes = FrozenFeatures(backbone, layers, config.grid, measurement.world.device, size).shapes()
    spatial_layers = tuple(layer for layer, shape in shapes.items() if min(shape[1:]) > 1)
    requested = [name.strip() for name in config.layer.split(",")]
    invalid_layers = [
        layer for layer in shapes if layer not in spatial_layers and (layer in requested or not spatial_layers)
    ]
    if invalid_layers:
        raise UserError(f"layer {invalid_layers[0]!r} has a 1 × 1 output; a dense probe needs a larger feature map")
    return spatial_layers


def _evaluate_neighbours(
    measurement: Measurement,
    config: DenseConfig,
    layer: str,
    points: Points,
    train_sets: Sequence[FeaturesAndMasks],
    test: StoredFeatures,
) -> Evaluation:
    """Evaluate nearest neighbours on one layer; the search covers all training images, including held-out ones."""
    world, count = measurement.world, len(measurement.split.classes)
    pairs = [(features.maps[layer], points.histograms(masks, count)) for features, masks in train_sets]
    memory = PointMemory.from_maps(pairs, config.memory, config.seed, config.k, config.temperature, world.device)
    rows = score_test_images(
        test,
        lambda indices: {layer: memory.scores(test.maps[layer][indices])},
        {layer: points},
        measurement.split.classes,
        world,
        measurement.should_stop,
        "knn",
    )
    metrics = unweighted_metrics(compute_metrics, rows)
    measurement.console.print(
        f"{layer}: mean IU of nearest neighbours among {len(memory.features):,} training points: "
        f"{100 * metrics[f'{layer}/knn_mean_iu']:.1f}",
    )
    return Evaluation(metrics, len(rows["names"]), rows)


def _predictor(run: FinishedRun) -> Predictor:
    config: DenseConfig = run.config
    head = load_head(run, "mean_iu")
    backbone = run.load_backbone(open_masks)
    size = config.size or backbone.input.size
    backbone = with_input_size(backbone, size)
    features = FrozenFeatures(backbone, [head.layer], config.grid, run.device, size)
    channels, side, _ = features.shapes()[head.layer]
    points, view = Points.from_layer(backbone, head.layer, side, size), Squashed(size, interpolation_of(backbone.input))
    classifier = PointHead(channels, len(head.classes), 1).to(run.device).eval()
    load_state(classifier, head.tensors, str(run.path))

    def labels(image: EncodedImage) -> torch.Tensor:
        (scores,) = classifier(features(load_views(image.data, view).images)[head.layer])
        return points.labels(scores, image.height, image.width)[0]

    return mask_predictor(labels, head.classes)


def _show(result: Result) -> Table:
    """Format the mean IUs by layer."""
    titles = {"mean_iu": "linear, mean IU %", "knn_mean_iu": "nearest neighbours, mean IU %"}
    titles = {kind: title for kind, title in titles.items() if any(m.endswith(f"/{kind}") for m in result.metrics)}
    layers = [layer for layer in layer_names(result.metrics) if f"{layer}/mean_iu" in result.metrics]
    rows = {layer: [f"{100 * result.metrics[f'{layer}/{kind}']:.1f}" for kind in titles] for layer in layers}
    return table(rows, ["layer", *titles.values()])


dense = Protocol(
    config=DenseConfig,
    open_data=open_masks,
    measure=_measure,
    metrics=compute_metrics,
    show=_show,
    section=LayersSection("Dense probes", r"mean_iu|knn_mean_iu", what="Test mean IU"),
    returns="``LAYER/mean_iu``, ``LAYER/iu/CLASS`` and ``LAYER/pixel_accuracy`` of the linear "
    "classifiers, and ``LAYER/knn_mean_iu`` and ``LAYER/knn_pixel_accuracy`` of nearest neighbours",
    positional_key="layer",
    predict=_predictor,
    chance_level=constant_class,
    annotations="whose field mask is (H, W) integers",
)
