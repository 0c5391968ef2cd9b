"""Linear probes as in the paper's Fig. 7 or, with the config ``deepcluster``, as in DeepCluster.

The classifiers of all layers are trained in one pass over the frozen backbone. With several learning rates, each layer
has one classifier per rate, and the best rate is selected on held-out training images, never on validation images.
"""

from dataclasses import replace

import torch
from rich.table import Table

from crosschannel.console import table
from crosschannel.data import CentreCrop, Stream, TenCrops, TrainingCrops, View
from crosschannel.data.open import hold_out
from crosschannel.data.views import IndexOnly
from crosschannel.hub.files import load_state
from crosschannel.models import InputSpec
from crosschannel.runs.result import Result
from crosschannel.training.loop import Loop
from crosschannel.training.task import Evaluation
from transfer.chance import majority_class
from transfer.feature_cache import Extraction
from transfer.features import FrozenFeatures, interpolation_of, resolve_crop
from transfer.heads import load_head, save_heads
from transfer.labelled import open_labelled
from transfer.layers import LayersSection
from transfer.prediction import FinishedRun, Prediction, Predictor, class_scores, load_views
from transfer.protocol import Measurement, Protocol, unweighted_metrics
from transfer.protocols.linear_probe.config import LinearProbeConfig
from transfer.protocols.linear_probe.published import ATTRIBUTION, IMAGENET_PROBES
from transfer.protocols.linear_probe.task import LayerProbe, LinearProbe, Probes, accuracy_by_class, compute_metrics


def _measure(measurement: Measurement) -> Evaluation:
    """Cache the features if possible, then train the classifiers."""
    split, world, run = measurement.split, measurement.world, measurement.run
    layers = measurement.choose_layers()
    config: LinearProbeConfig = measurement.config
    measurement.announce(f"layers {', '.join(layers)}")
    input = measurement.backbone.input
    crop, interpolation = resolve_crop(config.crop, input), interpolation_of(input)
    features = FrozenFeatures(measurement.backbone, layers, config.pooling, world.device, crop.size)
    train, held_out, test = split.train, None, split.test
    if len(config.rates) > 1:
        train, held_out = hold_out(train, config.held_out, split.source)
    batch = -(-max(64, config.train.batch // world.size) // 10) * 10  # keeps ten crops of an image in one batch
    centre, view = CentreCrop(crop.size, crop.resize, interpolation), _test_view(config, input)
    stream = Stream(train, TrainingCrops(crop, interpolation), config.seed)
    if config.cache != "off":
        limit, workers = config.runtime.broken_limit, config.runtime.workers
        extract = Extraction(
            features, world, run.flag, config.train.precision, batch, workers, config.cache, limit, measurement.console
        )
        test = extract(Stream(test, view), "validation")
        held_out = held_out and extract(Stream(held_out, view), "held-out")
        if crop.kind != "centre" or crop.mirror:
            measurement.console.print("training crops are augmented: their features are not cached")
        else:
            train = extract(Stream(train, centre), "training")
            stream = Stream(train.images, IndexOnly(), config.seed)
    torch.manual_seed(config.seed)
    net = Probes(features.shapes(), len(split.classes), config.rates or [config.optim.lr], config.norm, config.zero)
    task = LinearProbe(
        net,
        features,
        train,
        held_out,
        test,
        split.classes,
        view,
        net.rate_factors(config.optim.lr),
        world,
        batch,
        config.runtime.workers,
    )
    loop = Loop(task, stream, config, run, world, measurement.console.quiet)
    evaluation = loop.fit()
    best_probes = loop.evaluated_net.select_rates({layer: evaluation.metrics.get(f"{layer}/lr") for layer in layers})
    world.broadcast_from_main(lambda: save_heads(run.path, best_probes, split.classes))
    return replace(evaluation, metrics=evaluation.metrics | unweighted_metrics(accuracy_by_class, evaluation.rows))


def _test_view(config: LinearProbeConfig, input: InputSpec) -> View:
    crop, interpolation = resolve_crop(config.crop, input), interpolation_of(input)
    return (TenCrops if config.ten_crops else CentreCrop)(crop.size, crop.resize, interpolation)


def _predictor(run: FinishedRun) -> Predictor:
    config: LinearProbeConfig = run.config
    head = load_head(run, "top1")
    backbone = run.load_backbone(open_labelled)
    view = _test_view(config, backbone.input)
    features = FrozenFeatures(backbone, [head.layer], config.pooling, run.device, view.size)
    probe = LayerProbe(features.shapes()[head.layer], len(head.classes), 1, config.norm).to(run.device).eval()
    load_state(probe, head.tensors, str(run.path))

    def predict(data: bytes) -> Prediction:
        (logits,) = probe(features(load_views(data, view).images)[head.layer])
        return class_scores(logits.softmax(1).mean(0), head.classes)

    return predict


def _show(result: Result) -> Table:
    """Format the accuracies and the selected learning rate by layer."""
    layers = [name.removesuffix("/top1") for name in result.metrics if name.endswith("/top1")]
    columns = [
        ("top1", "top-1, %", "{:.1f}", 100),
        ("top5", "top-5, %", "{:.1f}", 100),
        ("lr", "learning rate", "{:g}", 1),
    ]
    available = [column for column in columns if f"{layers[0]}/{column[0]}" in result.metrics]
    rows = {
        layer: [
            template.format(factor * result.metrics[f"{layer}/{metric}"]) for metric, _, template, factor in available
        ]
        for layer in layers
    }
    return table(rows, ["layer", *(title for _, title, _, _ in available)])


linear_probe = Protocol(
    config=LinearProbeConfig,
    open_data=open_labelled,
    measure=_measure,
    metrics=compute_metrics,
    show=_show,
    section=LayersSection("Linear probes", r"top\d", IMAGENET_PROBES, attribution=ATTRIBUTION),
    returns="the accuracies ``LAYER/top1``, ``LAYER/top5`` and ``LAYER/top1/CLASS``",
    positional_key="layer",
    predict=_predictor,
    chance_level=majority_class,
)
