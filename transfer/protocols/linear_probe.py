"""Linear probes on frozen layers: what can a linear classifier read out of each layer?

The protocol of the paper's Fig. 7 (and DeepCluster's, by config). All layers are trained in one pass over the frozen
net; with several learning rates each layer has a classifier a rate, and the rate is chosen on a held-out part of the
training images, never on validation images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from crosschannel.command_line import Command, Program, parse
from crosschannel.data import CropConfig, CropStream, ImageSet
from crosschannel.data.open import hold_out
from crosschannel.data.stream import IndexStream
from crosschannel.keys import Part, above, require
from crosschannel.models import Backbone
from crosschannel.training.config import OptimConfig, RuntimeConfig, ScheduleConfig, TrainConfig
from crosschannel.training.loop import Loop, Settings
from crosschannel.training.ranks import World
from crosschannel.training.run_folder import RunFolder, settle_auto
from transfer.feature_cache import Cache, Extraction
from transfer.features import FrozenFeatures, choose_layers
from transfer.labelled import LabelledData
from transfer.pooling import Pooling
from transfer.protocols.probes import LinearProbe, Norm, Probes
from transfer.protocols.running import (
    MeasureConfig,
    call,
    command,
    crops_of,
    finish,
    interpolation_of,
    introduce,
    print_captioned,
)
from transfer.result import Result, class_accuracy


@dataclass
class LinearProbeConfig(MeasureConfig):
    """Train linear classifiers on the layers of a frozen backbone."""

    protocol: ClassVar[str] = "linear-probe"

    pooling: Pooling = "average"
    """to fewer than 10,000 numbers: average, or bilinear (the release), for any net; windows (the paper), for AlexNet;
    global; deepcluster is windows"""
    norm: Norm = "channel"
    """statistics of the affine-free BatchNorm before each classifier: by channel, by feature, or none of it"""
    zero: bool = True
    """start from zero weights rather than PyTorch's"""
    rates: Annotated[list[float], above(0)] = field(default_factory=list)
    """learning rates to try, one classifier each in the same pass; none: optim.lr alone"""
    held_out: Part = 0.1
    """share of the training images by which a rate is chosen, where there are several"""
    ten_crops: bool = False
    """validate on ten crops an image, their softmax outputs averaged"""
    cache: Cache = "off"
    """keep features: off, memory or disk; training features are kept only where crops are not augmented"""
    crop: CropConfig = field(default_factory=lambda: CropConfig(0, 0, "random"))
    """crops; size and resize of 0: what the backbone was trained on"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig("sgd", 0.01, weight_decay=5e-4))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(compile=False))
    runtime: RuntimeConfig = field(default_factory=lambda: RuntimeConfig(eval_every=5000, checkpoint_every=1000))

    def check(self) -> None:
        require(len(set(self.rates)) == len(self.rates), "rates must differ", self.rates)


def linear_probe(
    backbone: Backbone | nn.Module | str,
    data: str | tuple[ImageSet, ImageSet],
    layers: str | Sequence[str] = "all",
    config: LinearProbeConfig | None = None,
    out: Path | str | None = None,
    quiet: bool = True,
) -> Result:
    """Probe the layers of a backbone.

    It can be called in the middle of another training: the backbone's weights, statistics and modes and torch's
    random state are afterwards as they were, and ranks of an existing process group share the work.

    Args:
        backbone: a source string, a Backbone, or any module with named layers (taken for an RGB net at 224 px).
        data: what ``--data`` takes, or (training, validation) image sets.
        layers: "all", names, or patterns such as ``conv*``.
        config: the recipe; default the config ``imagenette``: cached centre crops. Its backbone, data and layer are
            not looked at.
        out: run folder; default none is kept.
        quiet: say nothing.

    Returns:
        a :class:`~transfer.result.Result` with ``LAYER/top1``, ``LAYER/top5`` and accuracy by class.

    Raises:
        UserError: bad input.
        Interrupted: told to stop; with ``out`` the run is saved and the same call goes on.

    Example::

        result = transfer.linear_probe("runs/imagenette-0", "torchvision:imagenette", "conv*")
        result.metrics["conv4/top1"]
    """
    return call(_probe, backbone, data, layers, config or packaged("imagenette"), out, quiet)


def packaged(name: str) -> LinearProbeConfig:
    """A packaged recipe by name; its backbone and data are empty."""
    entry = Command(__name__, "LinearProbeConfig", "run", "")
    program = Program("transfer", "", {"linear-probe": entry}, configs="transfer")
    return parse(program, "linear-probe", ["--config", name, "--backbone=", "--data="])


def run(config: LinearProbeConfig) -> Path:
    """`transfer linear-probe`: run or resume; returns the run folder."""
    return command(_probe, config, print_table)


def _probe(
    backbone: Backbone, data: LabelledData, config: LinearProbeConfig, run: RunFolder, world: World, console: Console
) -> None:
    """Features, classifiers, the loop, and the result in the run folder."""
    layers = choose_layers(backbone, config.layer)
    config = replace(config, train=replace(config.train))  # `auto` is filled in
    settle_auto(config.train, run, world)
    introduce(run, data, layers, console)
    crop = crops_of(config.crop, backbone.input)
    features = FrozenFeatures(backbone, layers, config.pooling, world.device, crop.size)
    loop = _build(features, data, crop, config, run, world, console)
    figures = loop.fit()
    if loop.task.rows is None:  # a run that was stopped between its last evaluation and its result
        with torch.inference_mode(), loop.autocast():
            loop.task.evaluate(loop.best_net.eval(), lambda: False)
    if world.is_main:
        rows, metrics = loop.task.rows, dict(figures)
        for layer in layers:
            metrics |= class_accuracy(f"{layer}/top1", rows[f"{layer}/top1"], rows["labels"], data.classes)
        finish(backbone, config, run, metrics, rows)


def _build(features, data, crop, config, run, world, console) -> Loop:
    """The task, on stored features where they can be kept, and its loop."""
    interpolation = interpolation_of(features.backbone.input)
    train, held_out, val = data.train, None, data.val
    if len(config.rates) > 1:
        train, held_out = hold_out(train, config.held_out, data.source)
    batch = -(-max(64, config.train.batch // world.size) // 10) * 10  # ten crops of an image stay together

    def evaluation(images: ImageSet) -> CropStream:
        return CropStream(images, crop, train=False, ten_crops=config.ten_crops, interpolation=interpolation)

    limit, workers = config.runtime.broken_limit, config.runtime.workers
    extract = Extraction(
        features, world, run.flag, config.train.precision, batch, workers, config.cache, limit, console
    )
    augmented = crop.train != "centre" or crop.mirror
    stream = CropStream(train, crop, config.seed, interpolation=interpolation)
    if config.cache != "off":
        val = extract(evaluation(val), "validation")
        held_out = held_out and extract(evaluation(held_out), "held-out")
        if augmented:
            console.print("training crops are augmented: their features are computed anew every time")
        else:
            train = extract(CropStream(train, crop, train=False, interpolation=interpolation), "training")
            stream = IndexStream(train.images, crop, config.seed)
    torch.manual_seed(config.seed)
    net = Probes(features.shapes(), len(data.classes), config.rates or [config.optim.lr], config.norm, config.zero)
    task = LinearProbe(net, features, train, held_out, val, evaluation, config.optim.lr, world, batch, workers)
    stored = isinstance(stream, IndexStream)
    settings = Settings(
        config.seed,
        config.optim,
        config.schedule,
        config.train,
        replace(config.runtime, workers=0) if stored else config.runtime,
    )

    def started() -> None:
        if world.is_main:
            run.write_config(config)

    return Loop(task, stream, settings, run, world, started, console.quiet)


def print_table(result: Result) -> None:
    """Accuracy by layer, on stdout."""
    layers = [name.removesuffix("/top1") for name in result.metrics if name.endswith("/top1")]
    has_top5 = f"{layers[0]}/top5" in result.metrics
    chosen = f"{layers[0]}/lr" in result.metrics
    table = Table()
    for head in ("layer", "top-1, %", *(["top-5, %"] if has_top5 else []), *(["rate"] if chosen else [])):
        table.add_column(head, justify="left" if head == "layer" else "right")
    for layer in layers:
        cells = [f"{100 * result.metrics[f'{layer}/top1']:.1f}"]
        cells += [f"{100 * result.metrics[f'{layer}/top5']:.1f}"] if has_top5 else []
        cells += [f"{result.metrics[f'{layer}/lr']:g}"] if chosen else []
        table.add_row(layer, *cells)
    print_captioned(f"{result.backbone}: {result.n} validation images", table)
