"""Weighted k-nearest-neighbour classification in frozen features: no training, no choice of a learning rate.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018): features are
L2-normalised, and each of the k training images nearest to a query by cosine votes for its class with weight
exp(cosine / temperature).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from crosschannel.data import CropConfig, CropStream, ImageSet
from crosschannel.errors import UserError
from crosschannel.keys import Count, Share, Workers, above, at_least, require
from crosschannel.models import Backbone
from crosschannel.training.config import runtime
from crosschannel.training.device import AUTO, device_kind
from crosschannel.training.interrupts import Interrupted
from crosschannel.training.ranks import World
from crosschannel.training.run_folder import RunFolder
from transfer.feature_cache import Extraction
from transfer.features import FrozenFeatures, choose_layers
from transfer.labelled import LabelledData
from transfer.pooling import Pooling
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
from transfer.result import Result


@dataclass
class KNNConfig(MeasureConfig):
    """Classify by nearest neighbours in the features of a frozen backbone."""

    protocol: ClassVar[str] = "knn"

    k: Annotated[list[int], at_least(1)] = field(default_factory=lambda: [20])
    """how many neighbours vote"""
    temperature: Annotated[list[float], above(0)] = field(default_factory=lambda: [0.07])
    """of their weights"""
    pooling: Pooling = "global"
    """global (the mean over positions), average or bilinear to a grid of fewer than 10,000 numbers"""
    size: Annotated[int, at_least(0, 4096)] = 0
    """side of the centre crop; 0: what the backbone was trained on"""
    cache: Literal["memory", "disk"] = "memory"
    """where features are kept"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """arithmetic of the forward pass; auto: by device"""
    batch: Count = runtime(64)
    """images a rank computes at once"""
    workers: Workers = runtime(2)
    """processes per rank that decode images"""
    broken_limit: Share = runtime(0.01)
    """greatest share of broken images, once 1,000 were seen"""

    def check(self) -> None:
        require(len(self.k) > 0 and len(set(self.k)) == len(self.k), "k must be one or more, and differ", self.k)
        require(len(self.temperature) > 0, "temperature must be one or more numbers", self.temperature)


def knn(
    backbone: Backbone | nn.Module | str,
    data: str | tuple[ImageSet, ImageSet],
    layers: str | Sequence[str] = "all",
    config: KNNConfig | None = None,
    out: Path | str | None = None,
    quiet: bool = True,
) -> Result:
    """Classify validation images by their nearest training images, in every layer asked for.

    Like :func:`transfer.linear_probe` it can be called in the middle of a training.

    Args:
        backbone: a source string, a Backbone, or any module with named layers (taken for an RGB net at 224 px).
        data: what ``--data`` takes, or (training, validation) image sets.
        layers: "all", names, or patterns such as ``conv*``.
        config: k, temperature, pooling; its backbone, data and layer are not looked at.
        out: run folder; default none is kept.
        quiet: say nothing.

    Returns:
        a :class:`~transfer.result.Result` with ``LAYER/knnK``; other temperatures than the first one as
        ``LAYER/knnK/tT``.

    Raises:
        UserError: bad input.
    """
    return call(_measure, backbone, data, layers, config or KNNConfig("", ""), out, quiet)


def run(config: KNNConfig) -> Path:
    """`transfer knn`: returns the run folder."""
    return command(_measure, config, print_table)


def _measure(
    backbone: Backbone, data: LabelledData, config: KNNConfig, run: RunFolder, world: World, console: Console
) -> None:
    """Features of both parts, neighbours layer by layer, and the result in the run folder."""
    layers = choose_layers(backbone, config.layer)
    precision = AUTO[device_kind(world.device)][0] if config.precision == "auto" else config.precision
    config = replace(config, precision=world.gather(precision)[0])
    _check_k(config, len(data.train))
    introduce(run, data, layers, console)
    crop, interpolation = crops_of(CropConfig(config.size, 0), backbone.input), interpolation_of(backbone.input)
    features = FrozenFeatures(backbone, layers, config.pooling, world.device, crop.size)
    extract = Extraction(
        features,
        world,
        run.flag,
        config.precision,
        config.batch,
        config.workers,
        config.cache,
        config.broken_limit,
        console,
    )
    if world.is_main:
        run.write_config(config)
    train, val = (
        extract(CropStream(images, crop, train=False, interpolation=interpolation), what)
        for images, what in ((data.train, "training"), (data.val, "validation"))
    )
    _check_k(config, len(train))  # without those that could not be read
    metrics: dict[str, float] = {}
    rows = {"names": np.array(list(val.images.names)), "labels": val.images.labels}
    labels = torch.from_numpy(train.images.labels)
    for layer in layers:
        if world.any(run.flag.is_set):
            raise Interrupted(run.flag.name or "another rank")
        bank, queries = (stored.maps[layer].flatten(1) for stored in (train, val))
        own = queries.tensor_split(world.size)[world.rank]
        found = neighbours(own, bank, max(config.k), world.device)
        nearest, cosines = (world.concatenate(part.to(world.device)).cpu() for part in found)
        for k in config.k:
            for temperature in config.temperature:
                ranked = vote(labels[nearest[:, :k]], cosines[:, :k], temperature, len(data.classes))
                name = f"{layer}/knn{k}" + ("" if temperature == config.temperature[0] else f"/t{temperature:g}")
                rows[name] = ranked[:, 0].numpy() == rows["labels"]
                metrics[name] = float(rows[name].mean())
    if world.is_main:
        finish(backbone, config, run, metrics, rows)


def _check_k(config: KNNConfig, images: int) -> None:
    if max(config.k) > images:
        raise UserError(f"k must not be above the number of training images ({images}), got {max(config.k)}")


def neighbours(
    queries: Tensor, bank: Tensor, k: int, device: torch.device | str = "cpu", chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a bank by cosine, exactly, in chunks of bounded memory.

    Args:
        queries: (N, D) float.
        bank: (M, D) float, M ≥ k; it may be memory-mapped.
        k: how many.
        device: where the products are computed.
        chunk: rows of either side that are multiplied at once.

    Returns:
        indices (N, k) int64 and cosines (N, k) float32 on the CPU, nearest first; equal ones by lower index.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for part in queries.split(chunk):
        part = F.normalize(part.to(device).float(), dim=1)
        best = part.new_empty(len(part), 0)
        where = torch.empty(len(part), 0, dtype=torch.int64, device=device)
        for start in range(0, len(bank), chunk):
            rows = F.normalize(bank[start : start + chunk].to(device).float(), dim=1)
            cosines = part @ rows.T
            places = torch.arange(start, start + len(rows), device=device).expand(len(part), -1)
            best, where = torch.cat((best, cosines), 1), torch.cat((where, places), 1)
            best, order = best.sort(dim=1, descending=True, stable=True)  # stable: the lower index comes first
            best, where = best[:, :k], where.gather(1, order[:, :k])
        found.append((where.cpu(), best.cpu()))
    return torch.cat([where for where, _ in found]), torch.cat([best for _, best in found])


def vote(labels: Tensor, cosines: Tensor, temperature: float, classes: int) -> Tensor:
    """Classes by weight: each neighbour votes for its label with exp(cosine / temperature).

    Args:
        labels, cosines: (N, k), nearest first.
        temperature: of the weights.
        classes: how many there are.

    Returns:
        (N, ≤ 5) class numbers, the heaviest first.
    """
    weights = ((cosines - cosines[:, :1]) / temperature).double().exp()  # a common factor changes nothing
    votes = torch.zeros(len(labels), classes, dtype=torch.float64).scatter_add_(1, labels, weights)
    return votes.topk(min(5, classes), 1).indices


def print_table(result: Result) -> None:
    """Accuracy by layer, k and temperature, on stdout."""
    columns = list(dict.fromkeys(name.partition("/")[2] for name in result.metrics))
    table = Table()
    for head in ("layer", *columns):
        table.add_column(head, justify="left" if head == "layer" else "right")
    for layer in dict.fromkeys(name.partition("/")[0] for name in result.metrics):
        table.add_row(layer, *(f"{100 * result.metrics[f'{layer}/{column}']:.1f}" for column in columns))
    print_captioned(f"{result.backbone}: {result.n} validation images, top-1 in %", table)
