"""What every protocol on labelled images shares: a function that measures a backbone inside a run folder, called from
Python or from the command line."""

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from crosschannel.console import stderr_console, stdout_console
from crosschannel.data import CropConfig, ImageSet
from crosschannel.errors import UserError
from crosschannel.hub import source_files
from crosschannel.keys import Device, Out, Part, Seed, Text, check_config
from crosschannel.models import Backbone, InputSpec
from crosschannel.models.backbone import at_rest
from crosschannel.training.config import runtime
from crosschannel.training.device import find_device
from crosschannel.training.interrupts import InterruptFlag
from crosschannel.training.ranks import World, join_world, leave_world
from crosschannel.training.run_folder import RunFolder, open_run
from transfer.features import as_backbone
from transfer.labelled import LabelledData, open_labelled
from transfer.result import Result, load_result, save_rows


@dataclass
class MeasureConfig:
    """Keys that every protocol on labelled images has."""

    protocol: ClassVar[str]

    backbone: Text
    """a source: run folder, weights file, random:…, timm:…, torchvision:…, package.module:factory"""
    data: Text = runtime()
    """labelled images: a folder with train/CLASS/ and val/CLASS/, ILSVRC, shards, torchvision:imagenette or
    builtin:sample"""
    layer: Text = "all"
    """one layer, several (comma separated), patterns such as conv*, or all"""
    out: Out | None = runtime(None)
    """run folder; default runs/PROTOCOL-BACKBONE-CONFIG-SEED"""
    seed: Seed = 0
    """of whatever is drawn at random"""
    device: Device = runtime("auto")
    """auto, cpu, cuda or cuda:N"""
    val_share: Part = 0.05
    """share of the images held out for validation where the data has no val/"""

    def default_out(self, name: str) -> str:
        """A run folder that names protocol, backbone, config and seed."""
        slug = re.sub(r"[^A-Za-z0-9._=-]+", "-", re.sub(r"[\w.~-]*/+", "", self.backbone)).strip("-")
        return f"runs/{self.protocol}-{slug}-{name if name != self.protocol else 'default'}-{self.seed}"


# (backbone at rest, data, config, run folder, ranks, console) → leaves a finished run folder
Measure = Callable[[Backbone, LabelledData, Any, RunFolder, World, Console], None]


def call(
    measure: Measure,
    backbone: Backbone | nn.Module | str,
    data: str | tuple[ImageSet, ImageSet],
    layers: str | Sequence[str],
    config: MeasureConfig,
    out: Path | str | None,
    quiet: bool,
) -> Result:
    """A protocol as a function: leaves weights, statistics, modes and torch's random state as they were.

    Ranks of an existing process group share the work. Without ``out`` the run folder is a temporary one.
    """
    ours = isinstance(backbone, str)
    backbone = as_backbone(backbone, find_device("auto"), data if isinstance(data, str) else None)
    if ours:
        backbone.to(memory_format=torch.channels_last)
    check_config(config)
    config = replace(
        config,
        backbone=backbone.provenance.source,
        data=data if isinstance(data, str) else "images from memory",
        layer=layers if isinstance(layers, str) else ",".join(layers),
    )
    world = join_world(next((p.device for p in backbone.parameters()), torch.device("cpu")))
    console = stderr_console(quiet or not world.is_main)
    gpus = [world.device] if world.device.type == "cuda" else []
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(gpus), at_rest(backbone):
        path = Path(out or scratch)
        with open_run(path, config.protocol, config, world) as run:
            if ours:
                world.from_main(lambda: run.check_files(_files(config)))
            images = _images_of(run, data, config, world)
            if not run.finished:
                measure(backbone, images, config, run, world, console)
            return world.from_main(lambda: load_result(path))


def command(measure: Measure, config: MeasureConfig, show: Callable[[Result], None]) -> Path:
    """A protocol as a command: run it (or say that it is finished), show the result; returns the run folder."""
    world = join_world(find_device(config.device))
    path, console = Path(config.out or config.default_out(config.protocol)), stderr_console(not world.is_main)
    try:
        with open_run(path, config.protocol, config, world, InterruptFlag(last=True)) as run:
            world.from_main(lambda: run.check_files(_files(config)))
            images = _images_of(run, config.data, config, world)
            if run.finished:
                console.print(f"{path} is finished: nothing to do", markup=False)
            else:
                backbone = as_backbone(config.backbone, world.device, config.data)
                measure(backbone.to(memory_format=torch.channels_last), images, config, run, world, console)
        if world.is_main:
            show(load_result(path))
    finally:
        leave_world()
    return path


def _files(config: MeasureConfig) -> dict[str, Path]:
    """What a run reads by path besides its images."""
    return {f"backbone {key}": path for key, path in source_files(config.backbone).items()}


def _images_of(
    run: RunFolder, data: str | tuple[ImageSet, ImageSet], config: MeasureConfig, world: World
) -> LabelledData | None:
    """The images that a run is on, which are those that it was begun on; None where it is finished and needs none."""
    if isinstance(data, str) and run.is_done(data):
        return None
    images = open_labelled(data, config.val_share)
    world.from_main(lambda: run.check_images(images.train, images.val))
    return images


def crops_of(crop: CropConfig, input: InputSpec) -> CropConfig:
    """The crops of a config; a size or resize of 0 is what the backbone was trained on."""
    size = crop.size or input.size
    resize = crop.resize or max(size, round(size * input.resize / input.size))
    if size > resize:
        raise UserError(f"crop.size ({size}) must not be above crop.resize ({resize})")
    return replace(crop, size=size, resize=resize)


def interpolation_of(input: InputSpec) -> str:
    """The nearest thing to a backbone's interpolation that torch has with antialiasing."""
    return input.interpolation if input.interpolation == "bilinear" else "bicubic"


def introduce(run: RunFolder, data: LabelledData, layers: Sequence[str], console: Console) -> None:
    """Say what is about to be measured."""
    console.print(
        f"{run.path}: {len(data.train)} training and {len(data.val)} validation images, {len(data.classes)} classes; "
        f"layers {', '.join(layers)}",
        markup=False,
    )


def print_captioned(caption: str, table: Table) -> None:
    """A table below its caption, on stdout."""
    console = stdout_console(soft_wrap=False)
    console.print(caption, markup=False, soft_wrap=True)
    console.print(table)


def finish(
    backbone: Backbone, config: MeasureConfig, run: RunFolder, metrics: dict[str, float], rows: dict[str, np.ndarray]
) -> None:
    """Write what the run found: ``predictions.npz``, ``backbone.json`` (input and provenance), ``result.json``."""
    save_rows(run.path, rows)
    described = {"input": asdict(backbone.input), **backbone.provenance.to_dict()}
    run.write("backbone.json", json.dumps(described, indent=2) + "\n")
    run.finish(config.backbone, config.data, config.seed, len(rows["labels"]), metrics)
