"""What a protocol is, and the one flow in which each is run, called from Python or from the command line."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from crosschannel import load_backbone, wrap
from crosschannel.console import stderr_console, stdout_console
from crosschannel.data import ImageSet
from crosschannel.errors import UserError
from crosschannel.hub.sources import input_files
from crosschannel.keys import check_config
from crosschannel.models import Backbone
from crosschannel.models.backbone import own_weights
from crosschannel.models.describe import describe_input
from crosschannel.models.module_net import at_rest
from crosschannel.parsing import config_folder, parse
from crosschannel.report.page import Block
from crosschannel.runs.config import CropConfig, with_keys
from crosschannel.runs.folder import RunFolder, open_run
from crosschannel.runs.interrupts import InterruptFlag
from crosschannel.runs.result import Result, Rows, finish, load_result, write_provenance
from crosschannel.training.device import find_device
from crosschannel.training.isolation import isolated
from crosschannel.training.ranks import PATIENCE, World, joined_world
from crosschannel.training.task import Evaluation
from transfer.annotation_digest import annotation_digest
from transfer.config import MeasureConfig
from transfer.disjoint import check_disjoint
from transfer.groups import Group
from transfer.inputs import as_data, as_out, as_source, check_recipe
from transfer.prediction import Finished, Predictor
from transfer.protocols import PROTOCOLS

Figures = dict[str, np.ndarray]  # by name, (R,): one for each row of weights


@dataclass
class Split:
    """What a backbone is measured on.

    Attributes:
        train, test: image sets; what is learned, and what is scored.
        classes: names by number.
        source: what the user named.
        allow_overlap: allow test images to be training images, to score training images on purpose.
    """

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    source: str
    allow_overlap: bool = False


Data = str | Split | tuple[ImageSet, ImageSet]  # what is named, or images that are there


@dataclass
class Measurement:
    """What a protocol is given.

    Attributes:
        backbone: at rest (eval mode), on its device; a protocol that trains it copies it.
        split: the images.
        config: the protocol's; ``auto`` may still stand in it.
        run: the folder, held. The protocol writes the config into it once nothing can be refused any more.
        world: this process among all.
        console: for what a person should know; quiet on all ranks but the first.
    """

    backbone: Backbone
    split: Split
    config: Any
    run: RunFolder
    world: World
    console: Console

    def choose_layers(self) -> tuple[str, ...]:
        """The layers that the config names; what ``all`` leaves out is said."""
        wanted = self.config.layer
        left_out = getattr(self.backbone.net, "left_out", {})
        if "all" in wanted.split(",") and left_out:
            self.console.print(f"left out: {'; '.join(left_out.values())}", markup=False)
        return self.backbone.choose_layers(wanted)

    def announce(self, what: str) -> None:
        """Say what is about to be measured."""
        split = self.split
        self.console.print(
            f"{self.run.path}: {len(split.train)} training and {len(split.test)} test images, "
            f"{len(split.classes)} classes; {what}",
            markup=False,
        )


@dataclass(frozen=True)
class Protocol:
    """A way to measure a backbone.

    Attributes:
        name: as it is typed.
        config: its keys.
        open_data: (what is named, or images that are there; config) → images. It refuses what is missing before any net
            is loaded.
        measure: learns and scores; returns the last evaluation.
        metrics: (rows, weights (R, n) of the images) → figures by name, (R,) each. The only place where a figure is
            computed: an evaluation passes ones, intervals pass multinomial weights.
        show: a result as a table.
        section: (groups of runs on the same data, path that plots' names begin with) → blocks of a report.
        chapter: runs of protocols that share one are shown together; default each its own.
        predict: a finished run → what says of any image what the run learned to say; None where a run keeps nothing to
            say it with.
        floor: rows → what the main figure would be without looking at the images, in words.
        annotations: annotations that images from memory need, as part of a message; empty if labels are enough.
    """

    name: str
    config: type[MeasureConfig]
    open_data: Callable[[Data, Any], Split]
    measure: Callable[[Measurement], Evaluation]
    metrics: Callable[[Rows, np.ndarray], Figures]
    show: Callable[[Result], Table]
    section: Callable[[Sequence[Group], Path], Iterable[Block]]
    chapter: str = ""
    predict: Callable[[Finished], Predictor] | None = None
    floor: Callable[[Rows], str] | None = None
    annotations: str = ""


def figures_of(metrics: Callable[[Rows, np.ndarray], Figures], rows: Rows) -> dict[str, float]:
    """The figures of all images, each counted once."""
    ones = np.ones((1, len(rows["names"])))
    return {name: float(values[0]) for name, values in metrics(rows, ones).items()}


def weighted_mean(row: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means over images: (n,) of numbers, weights (R, n) → (R,); NaN where no image has weight."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ row.astype(np.float64) / weights.sum(1)


def as_config(protocol: Protocol, config: MeasureConfig | str | None) -> MeasureConfig:
    """A config: itself; a packaged one or a file, as ``--config`` takes it; or for None the keys' defaults, as the
    command without ``--config`` has them."""
    if isinstance(config, MeasureConfig):
        return config
    words = ["--config", config] if config else []
    folder = config_folder() / "transfer" / protocol.name
    return parse(PROTOCOLS[protocol.name].command, "transfer", protocol.name, words, folder, whole=False)


def measure(
    protocol: Protocol,
    backbone: Backbone | nn.Module | Path | str,
    data: Data,
    config: MeasureConfig | Path | str | None = None,
    out: Path | str | None = None,
    quiet: bool = True,
    flag: InterruptFlag | None = None,
    **keys: Any,
) -> Result:
    """Measure a backbone inside a run folder.

    It can be called anywhere in another program: in the middle of training, under ``torch.no_grad()`` or autocast.
    Figures do not depend on the global state of torch, NumPy or Python. This state and the backbone's weights,
    statistics and modes are restored. Ranks of an existing process group share the work.

    Args:
        protocol: how.
        backbone: a source, a Backbone, or any module with named layers (see :func:`crosschannel.wrap`).
        data: a value of ``--data``, or images from memory; see :func:`~transfer.inputs.as_data`.
        config: see :func:`as_config`; its backbone and data are not looked at.
        out: run folder; default none is kept.
        quiet: say nothing.
        flag: the signals that tell it to stop; default those while it is called.
        keys: of the config, over what it has; see :func:`~crosschannel.runs.config.with_keys`.

    Raises:
        UserError: bad input.
        Interrupted: told to stop; with ``out`` the run is saved and the same call goes on.
    """
    if not isinstance(flag, InterruptFlag | None):
        raise UserError("no key 'flag'")
    source, out = as_source(backbone, protocol.name), as_out(out)
    recipe = check_recipe(config, protocol.config, protocol.name)
    config = with_keys(as_config(protocol, recipe), keys)
    config = replace(config, backbone=source if isinstance(source, str) else "", data="")
    check_config(config)
    with isolated(config.seed):
        model = None if isinstance(source, str) else own_weights(wrap(source))
        data = data if isinstance(data, Split) else as_data(data, protocol, config)
        config.data = data if isinstance(data, str) else "images from memory"
        config.backbone = model.provenance.source if model else source
        check_config(config)
        parameter = next(model.parameters(), None) if model else None
        device = find_device(config.device) if parameter is None else parameter.device
        patience = PATIENCE if flag is None else None
        with tempfile.TemporaryDirectory() as scratch, joined_world(device, patience) as world:
            console = stderr_console(quiet or not world.is_main)
            if flag is None:  # the command line has printed it
                config_name = recipe if isinstance(recipe, str) else "given" if recipe else "the defaults"
                console.print(f"{protocol.name}: config {config_name}", markup=False)
            path = out or Path(scratch)
            with open_run(path, protocol.name, config, world, flag) as run:
                _measure(protocol, model, data, config, run, world, console)
                return world.from_main(lambda: load_result(path))


def _measure(
    protocol: Protocol,
    model: Backbone | None,
    data: Data,
    config: MeasureConfig,
    run: RunFolder,
    world: World,
    console: Console,
) -> None:
    """Measure and write the results, unless the run is finished."""
    if model is None:
        world.from_main(lambda: run.check_files(input_files(config)))
    if not (isinstance(data, str) and run.is_done(data)):
        split = protocol.open_data(data, config)
        world.from_main(lambda: _check_split(split, run))
    if run.finished:
        console.print(f"{run.path} is finished: nothing to do", markup=False)
        return
    net = model or load_backbone(config.backbone, device=world.device, data=split.train)
    if model is None:
        net.to(memory_format=torch.channels_last)
    for line in describe_input(net, *_crop_of(config)):
        console.print(line, markup=False)
    try:
        with at_rest(net):
            evaluation = protocol.measure(Measurement(net, split, config, run, world, console))
    except UserError:
        if world.is_main:
            run.forget_annotations()
        raise
    world.from_main(lambda: _finish(run, config, net, evaluation))


def _check_split(split: Split, run: RunFolder) -> None:
    """Raise a UserError if images are both learned and scored, or differ from those that the run started on."""
    check_disjoint(split)
    parts = {"train": split.train, "val": split.test}
    run.check_images(*parts.values(), {part: annotation_digest(images) for part, images in parts.items()})


def _crop_of(config: MeasureConfig) -> tuple[int, int]:
    """Return a config's size and resize of crops; 0 stands for the backbone's."""
    crop = getattr(config, "crop", None)
    return (crop.size, max(crop.size, crop.resize)) if isinstance(crop, CropConfig) else (getattr(config, "size", 0), 0)


def _finish(run: RunFolder, config: MeasureConfig, backbone: Backbone, evaluation: Evaluation) -> None:
    write_provenance(run, backbone.input, backbone.provenance.to_dict())
    finish(run, config, config.backbone, config.data, evaluation.n, evaluation.figures, evaluation.rows)


def main(config: MeasureConfig) -> Path:
    """A protocol as a command: run it, or say that it is finished; show the result; returns the run folder."""
    protocol = PROTOCOLS[config.protocol].load()
    path = Path(config.out or config.default_out(config.protocol))
    with joined_world(find_device(config.device)) as world:
        result = measure(
            protocol, config.backbone, config.data, config, path, not world.is_main, InterruptFlag(last=True)
        )
        if world.is_main:
            print_captioned(f"{result.backbone}: {result.n} test images", protocol.show(result))
            if protocol.floor:
                stdout_console().print(f"to compare with, {protocol.floor(result.rows)}", markup=False)
    return path


def print_captioned(caption: str, table: Table) -> None:
    """A table below its caption, on stdout."""
    console = stdout_console(soft_wrap=False)
    console.print(caption, markup=False, soft_wrap=True)
    console.print(table)
