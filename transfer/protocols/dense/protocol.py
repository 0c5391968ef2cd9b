"""Dense probes: what the maps of a frozen backbone say of pixels, with no net on top that could learn it itself.

A linear classifier of every point, as DINOv2 (Oquab et al., 2023) has it, and nearest neighbours among the points of
training images (Balazevic et al., 2023). For any net with maps: CNNs and ViTs alike.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from crosschannel.data import Stream
from crosschannel.data.decode import EncodedImage
from crosschannel.data.open import hold_out
from crosschannel.data.views import IndexOnly, Squashed
from crosschannel.errors import UserError
from crosschannel.hub.files import load_state
from crosschannel.models import Backbone
from crosschannel.runs.interrupts import Interrupted
from crosschannel.runs.result import Result, load_result
from crosschannel.training.device import settle_auto
from crosschannel.training.loop import Loop
from crosschannel.training.task import Evaluation
from transfer.feature_cache import Extraction, StoredFeatures
from transfer.features import FrozenFeatures, as_key, choose_layers, interpolation_of
from transfer.layers import by_layer, layers_section
from transfer.pascal.masks import open_masks
from transfer.pascal.segmentation import mask_predictor
from transfer.prediction import Predictor, choose_layer, load_heads, measured_backbone, save_heads, views_of
from transfer.protocol import Data, Measurement, Protocol, figures_of, measure, table
from transfer.protocols.dense.config import DenseConfig
from transfer.protocols.dense.linear import DenseHeads, DenseProbe, PointHead, metrics, score_test_images
from transfer.protocols.dense.memory import PointMemory
from transfer.protocols.dense.points import Points, small_masks


def dense(
    backbone: Backbone | nn.Module | str,
    data: Data,
    layers: str | Sequence[str] = "all",
    config: DenseConfig | str | None = None,
    out: Path | str | None = None,
    quiet: bool = True,
    **keys: Any,
) -> Result:
    """Segment by the layers of a frozen backbone.

    Like :func:`transfer.linear_probe` it can be called in the middle of a training.

    Args:
        backbone: a source string, a Backbone, or any module with named layers (see :func:`crosschannel.wrap`).
        data: the VOCdevkit folder, or (training, test) image sets whose annotations are masks, (H, W) integers: 255 is
            neither learned nor scored.
        layers: "all" that have more than one position, names, or patterns such as ``conv*``.
        config: the recipe, or the name of a packaged one: "voc", "voc-mini"; None is the command without ``--config``.
            Its backbone, data and layer are not looked at.
        out: run folder; default none is kept.
        quiet: say nothing.
        keys: of the config, over what it has, such as ``k=0``.

    Returns:
        a :class:`~crosschannel.runs.result.Result` with ``LAYER/mean_iu`` and ``LAYER/iu/CLASS`` of the linear
        classifiers, ``LAYER/knn_mean_iu`` of neighbours, and the pixel accuracy of both.

    Raises:
        UserError: bad input.
        Interrupted: told to stop; with ``out`` the run is saved and the same call goes on.
    """
    return measure(PROTOCOL, backbone, data, config, out, quiet, layer=as_key(layers), **keys)


def _measure(given: Measurement) -> Evaluation:
    """Features and masks, the linear classifiers, then neighbours."""
    split, world, run, backbone = given.split, given.world, given.run, given.backbone
    config: DenseConfig = replace(given.config, train=settle_auto(given.config.train, run, world))
    layers = _layers_with_maps(given, config)
    given.announce(f"layers {', '.join(layers)}")
    size = config.size or backbone.input.size
    features = FrozenFeatures(backbone, layers, config.grid, world.device, size)
    shapes = features.shapes()
    points = {layer: Points.of(backbone, layer, shape[1], size) for layer, shape in shapes.items()}
    extract = Extraction(
        features,
        world,
        run.flag,
        config.train.precision,
        max(64, config.train.batch),
        config.runtime.workers,
        config.cache,
        config.runtime.broken_limit,
        given.console,
    )
    rates = config.rates or [config.optim.lr]
    train, held_out = hold_out(split.train, config.held_out, split.source) if len(rates) > 1 else (split.train, None)
    view = Squashed(size, interpolation_of(backbone.input))
    stored = extract(Stream(train, view), "training")
    kept_out = held_out and extract(Stream(held_out, view), "held-out")
    test = extract(Stream(split.test, view), "test")
    count = len(split.classes)

    def with_masks(part: StoredFeatures) -> tuple[StoredFeatures, torch.Tensor]:
        return part, small_masks(part.images, config.mask_size, count)

    learned = with_masks(stored)
    torch.manual_seed(config.seed)
    heads = DenseHeads({layer: shape[0] for layer, shape in shapes.items()}, count, rates)
    task = DenseProbe(
        heads, points, learned, kept_out and with_masks(kept_out), test, split.classes, config.optim.lr, world
    )
    stream = Stream(stored.images, IndexOnly(), config.seed)
    loop = Loop(task, stream, config, run, world, given.console.quiet)
    found = loop.fit()
    places = {layer: rates.index(found.figures[f"{layer}/lr"]) if kept_out else 0 for layer in layers}
    world.from_main(lambda: save_heads(run.path, loop.evaluated_net.chosen(places), layers, split.classes))
    if not config.k:
        return found
    rows = dict(found.rows)
    for layer in layers:
        rows |= _by_neighbours(given, config, layer, points[layer], learned, test)
    return replace(found, rows=rows, figures=found.figures | figures_of(metrics, rows))


def _layers_with_maps(given: Measurement, config: DenseConfig) -> tuple[str, ...]:
    """The layers asked for that have more than one position.

    Raises:
        UserError: none has.
    """
    wanted = choose_layers(given.backbone, config.layer)
    size = config.size or given.backbone.input.size
    shapes = FrozenFeatures(given.backbone, wanted, config.grid, given.world.device, size).shapes()
    found = tuple(layer for layer, shape in shapes.items() if min(shape[1:]) > 1)
    flat = [layer for layer in shapes if layer not in found]
    if flat and (not found or config.layer in flat):
        raise UserError(f"layer {flat[0]!r} has one position only; a dense probe needs a map")
    return found


def _by_neighbours(
    given: Measurement,
    config: DenseConfig,
    layer: str,
    points: Points,
    learned: tuple[StoredFeatures, torch.Tensor],
    test: StoredFeatures,
) -> dict[str, Any]:
    """``LAYER/knn`` of the test images."""
    world, flag = given.world, given.run.flag
    stored, masks = learned
    histograms = points.histograms(masks[stored.indices], len(given.split.classes))
    memory = PointMemory.of(
        stored.maps[layer], histograms, config.memory, config.seed, config.k, config.temperature, world.device
    )
    if not len(memory.features):
        raise UserError(f"no pixel of the {len(stored)} training images is labelled: all of their masks are 255")
    try:
        rows = score_test_images(
            test,
            lambda part: {layer: memory.scores(test.maps[layer][part])},
            {layer: points},
            given.split.classes,
            world,
            lambda: world.any(flag.is_set),
            "knn",
        )
    except Interrupted:
        raise Interrupted(flag.name or "another rank") from None
    figures = figures_of(metrics, rows)
    given.console.print(
        f"{layer}: {len(memory.features):,} points remembered, mean IU of neighbours "
        f"{100 * figures[f'{layer}/knn_mean_iu']:.1f}",
        markup=False,
    )
    return rows


def _predictor(run: Path, config: DenseConfig, device: torch.device, layer: str) -> Predictor:
    tensors, layers, classes = load_heads(run)
    layer = choose_layer(layers, load_result(run).metrics, "mean_iu", layer)
    backbone = measured_backbone(config, open_masks, device)
    size = config.size or backbone.input.size
    features = FrozenFeatures(backbone, [layer], config.grid, device, size)
    channels, side, _ = features.shapes()[layer]
    points, view = Points.of(backbone, layer, side, size), Squashed(size, interpolation_of(backbone.input))
    head = PointHead(channels, len(classes), 1).to(device).eval()
    own = f"heads.{layers.index(layer)}."
    load_state(head, {k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)}, str(run))

    def labels(image: EncodedImage) -> torch.Tensor:
        (scores,) = head(features(views_of(image.data, view).images)[layer])
        return points.upsampled(scores, image.height, image.width)[0].argmax(0)

    return mask_predictor(labels)


def _show(result: Result) -> Table:
    """Mean IU by layer."""
    kinds = {"mean_iu": "linear, mean IU %", "knn_mean_iu": "neighbours, mean IU %"}
    kinds = {kind: words for kind, words in kinds.items() if any(m.endswith(f"/{kind}") for m in result.metrics)}
    layers = [layer for layer in by_layer(result.metrics) if f"{layer}/mean_iu" in result.metrics]
    rows = {layer: [f"{100 * result.metrics[f'{layer}/{kind}']:.1f}" for kind in kinds] for layer in layers}
    return table(rows, ["layer", *kinds.values()])


PROTOCOL = Protocol(
    "dense",
    DenseConfig,
    open_masks,
    _measure,
    metrics,
    _show,
    layers_section("Dense probes", r"mean_iu|knn_mean_iu", what="Test mean IU"),
    predict=_predictor,
)
