"""A :class:`Protocol` measures a backbone; :func:`measure` runs it, for a Python call or a command."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from crosschannel import load_backbone, wrap
from crosschannel.command import Invocation
from crosschannel.config.load import check_config, config_folder, override
from crosschannel.config.training import CropConfig
from crosschannel.console import stderr_console, stdout_console
from crosschannel.data import ImageSet
from crosschannel.data.images import name_fingerprints
from crosschannel.data.memory import as_image_set
from crosschannel.errors import UserError
from crosschannel.hub.sources import input_files
from crosschannel.models import Backbone
from crosschannel.models.backbone import copy_inference_tensors
from crosschannel.models.describe import describe_input
from crosschannel.models.module_net import eval_mode
from crosschannel.report.page import Block
from crosschannel.runs.folder import RunFolder
from crosschannel.runs.interrupts import Interrupted, InterruptFlag
from crosschannel.runs.result import Result, Rows, finish, load_result, write_provenance
from crosschannel.training.device import find_device, resolve_auto
from crosschannel.training.isolation import isolated
from crosschannel.training.ranks import PATIENCE, World, joined_world
from crosschannel.training.runs import open_run
from crosschannel.training.task import Evaluation
from transfer.annotation_digest import annotation_digest
from transfer.config import MeasureConfig
from transfer.disjoint import check_disjoint
from transfer.groups import Group
from transfer.inputs import as_data, as_layers, as_out, as_source, check_recipe
from transfer.prediction import FinishedRun, Predictor
from transfer.protocols import load_protocol, protocol_command
from transfer.signatures import call_docstring, call_signature, positional_signature
from transfer.targets import Classes, Targets

MetricArrays = dict[str, np.ndarray]  # metric name → (R,), one value per row of weights


@dataclass
class Split:
    """Training and test images of a measurement.

    Attributes:
        train, test: image sets for training and for testing.
        targets: prediction target: Classes (or a tuple of class names), Masks or Values.
        source: data source as the user typed it.
        allow_overlap: accept test images that are also training images, for scoring training images on purpose.
    """

    train: ImageSet
    test: ImageSet
    targets: Targets
    source: str
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.targets, Targets):
            self.targets = Classes(tuple(map(str, self.targets)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, indexed by label.

        Raises:
            UserError: the targets are not classes.
        """
        if not isinstance(self.targets, Classes):
            raise UserError(f"this protocol predicts classes; the targets of {self.source!r} are {self.targets}")
        return self.targets.names


Data = str | Split | tuple[ImageSet, ImageSet]  # a value of ``--data``, or images in memory


@dataclass
class Measurement:
    """Inputs of a protocol's ``measure`` function.

    Attributes:
        backbone: backbone in eval mode, on its device; protocols that train it train a copy.
        split: training and test images.
        config: config of the protocol, with every ``auto`` resolved.
        run: locked run folder; the protocol writes the config into it after it has checked its inputs.
        world: ranks of the run.
        console: console for progress and notes; silent except on rank 0.
    """

    backbone: Backbone
    split: Split
    config: Any
    run: RunFolder
    world: World
    console: Console

    def should_stop(self) -> bool:
        """Return whether a signal has arrived on any rank."""
        return self.world.any(self.run.flag.is_set)

    def check_interrupt(self) -> None:
        """Raise Interrupted if a signal has arrived on any rank."""
        if self.should_stop():
            raise Interrupted

    def choose_layers(self) -> tuple[str, ...]:
        """Return the names of the layers that the config selects; print the layers that ``all`` excludes."""
        patterns = self.config.layer
        left_out = getattr(self.backbone.net, "left_out", {})
        if "all" in patterns.split(",") and left_out:
            self.console.print(f"excluded: {'; '.join(left_out.values())}")
        return self.backbone.choose_layers(patterns)

    def announce(self, details: str) -> None:
        """Print the run folder, the size of the data, the targets and ``details``."""
        split = self.split
        self.console.print(
            f"{self.run.path}: {len(split.train)} training and {len(split.test)} test images, {split.targets}; "
            f"{details}",
        )


@dataclass(frozen=True)
class NumberFormat:
    """Format of a metric in tables and reports; the default is a percentage with one decimal.

    Attributes:
        factor: factor between the stored and the printed value.
        decimals: number of decimals.
        unit: unit of the printed value; empty if dimensionless.
    """

    factor: float = 100
    decimals: int = 1
    unit: str = "%"

    def __call__(self, value: float, sign: str = "") -> str:
        rounded = round(self.factor * value, self.decimals) + 0.0  # turns -0.0 into 0.0
        return f"{rounded:{sign}.{self.decimals}f}"


@dataclass(frozen=True, eq=False)
class MetricSpec:
    """Computation and presentation of the metrics of a command's runs.

    Attributes:
        metrics: (rows, image weights (R, n)) → values (R,) by metric name. Evaluations call it with weights of 1,
            confidence intervals with bootstrap weights.
        section: (groups of runs on the same data, path prefix of the plots) → blocks of the report section.
        chapter: name of the report section; protocols with equal names share one. Defaults to the protocol's name.
        formats: formats of the metrics that are not percentages, keyed by the last component of the metric name.
    """

    metrics: Callable[[Rows, np.ndarray], MetricArrays]
    section: Callable[[Sequence[Group], Path], Iterable[Block]]
    chapter: str = ""
    formats: Mapping[str, NumberFormat] = field(default_factory=dict)

    def format_of(self, metric: str) -> NumberFormat:
        """Return the format of a metric; the default is a percentage."""
        return self.formats.get(metric.rpartition("/")[2], NumberFormat())


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Protocol(MetricSpec):
    """An evaluation protocol, callable as ``transfer.knn(backbone, data)``.

    Attributes:
        config: config dataclass; its ``protocol`` is the name of the command.
        open_data: (value of ``--data`` or images in memory, config) → :class:`Split`. It raises a UserError for missing
            files and invalid settings, before the backbone is loaded.
        measure: trains and scores; returns the final evaluation, with every metric of :attr:`metrics`.
        show: formats a result as a table.
        returns: names of the metrics, for the docstring.
        positional_key: config key that is also the third argument of a call (``layers`` for ``layer``); empty: none.
        predict: builds a :data:`~transfer.prediction.Predictor` from a finished run; None if runs store no trained
            weights.
        chance_level: rows → one line with a trivial baseline and its score, printed below the results.
        annotations: annotations required of images in memory, as part of an error message; empty if labels suffice.
    """

    config: type[MeasureConfig]
    open_data: Callable[[Data, Any], Split]
    measure: Callable[[Measurement], Evaluation]
    show: Callable[[Result], Table]
    returns: str = ""
    positional_key: str = ""
    predict: Callable[[FinishedRun], Predictor] | None = None
    chance_level: Callable[[Rows], str] | None = None
    annotations: str = ""

    def __post_init__(self) -> None:
        for entry in fields(self.config):
            if entry.default is MISSING and entry.default_factory is MISSING:
                raise UserError(f"{self.config.__name__}.{entry.name} must have a default")
        attributes = {
            "__name__": self.name.rpartition(":")[2].replace("-", "_"),
            "__signature__": call_signature(self),
            "__doc__": call_docstring(self),
        }
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        return self.config.protocol

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return load_protocol, (self.name,)

    def __repr__(self) -> str:
        return f"<protocol {self.__name__}{positional_signature(self)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        arguments = positional_signature(self).bind(*args, **kwargs).arguments
        keys = arguments.get("keys", {})
        if self.positional_key == "layer":
            keys.setdefault("layer", as_layers(arguments.get("layers", "all")))
        elif arguments.get(self.positional_key) is not None:
            keys[self.positional_key] = arguments[self.positional_key]
        source, out = as_source(arguments["backbone"], self.name), as_out(arguments.get("out"))
        recipe = check_recipe(arguments.get("config"), self.config, self.name)
        is_source = isinstance(source, str)
        config = override(as_config(self, recipe), keys)
        config = check_config(replace(config, backbone=source if is_source else "", data=""))
        module = None if is_source else source
        return measure(self, config, module, arguments["data"], out, arguments.get("quiet", True))


def unweighted_metrics(metrics: Callable[[Rows, np.ndarray], MetricArrays], rows: Rows) -> dict[str, float]:
    """Compute the metrics with weight 1 for every image."""
    ones = np.ones((1, len(rows["names"])))
    return {name: float(values[0]) for name, values in metrics(rows, ones).items()}


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average values (n,) over images by weights (R, n) → (R,); NaN if all weights of a row are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ values.astype(np.float64) / weights.sum(1)


def as_config(protocol: Protocol, config: MeasureConfig | str | None) -> MeasureConfig:
    """Resolve a config: return a config object unchanged, load a packaged config by name or a YAML file by path, or use
    the command's defaults for None."""
    if isinstance(config, MeasureConfig):
        return config
    argv = ["--config", config] if config else []
    folder = config_folder() / "transfer" / protocol.name
    return Invocation(protocol_command(protocol.config), protocol.name, argv, folder).load(is_partial=True)


def measure(
    protocol: Protocol,
    config: MeasureConfig,
    backbone: nn.Module | None = None,
    data: Any = "",
    out: Path | None = None,
    quiet: bool = True,
    flag: InterruptFlag | None = None,
) -> Result:
    """Run a protocol on a backbone, in a run folder.

    Can be called at any point of another program: in the middle of training, under ``torch.no_grad()`` or autocast. The
    metrics do not depend on the global state of torch, NumPy or Python. The call restores this state and the backbone's
    weights, buffers and training modes. The ranks of an existing process group share the work.

    Args:
        protocol: protocol to run.
        config: config of the protocol.
        backbone: module to measure instead of the source in the config.
        data: images to use instead of the config's; see :func:`~transfer.inputs.as_data`.
        out: run folder; by default a temporary folder, deleted afterwards.
        quiet: print nothing.
        flag: interrupt flag; by default, signals are caught for the duration of the call.

    Raises:
        UserError: bad input.
        Interrupted: a signal arrived; with ``out``, progress is saved and the same call resumes.
    """
    with isolated(config.seed):
        model = None if backbone is None else copy_inference_tensors(wrap(backbone))
        if not isinstance(data, str | Split):
            data = as_data(data, protocol, config)
        if isinstance(data, str):
            data = data or config.data
        source = model.provenance.source if model else config.backbone
        name = data if isinstance(data, str) else "images from memory"
        config = check_config(replace(config, backbone=source, data=name))
        parameter = next(model.parameters(), None) if model else None
        device = find_device(config.device) if parameter is None else parameter.device
        patience = PATIENCE if flag is None else None
        with tempfile.TemporaryDirectory() as scratch, joined_world(device, patience) as world:
            console = stderr_console(quiet or not world.is_main)
            with open_run(out or Path(scratch), protocol.name, config, world, flag) as run:
                return _measure(protocol, model, data, config, run, world, console)


def _measure(
    protocol: Protocol,
    model: Backbone | None,
    data: Data,
    config: MeasureConfig,
    run: RunFolder,
    world: World,
    console: Console,
) -> Result:
    """Measure and write the result, or load the result if the run is finished."""
    if model is None:
        world.broadcast_from_main(lambda: run.check_files(input_files(config)))
    if not (isinstance(data, str) and run.is_done(data)):
        split = protocol.open_data(data, config)
        train, test = as_image_set(split.train, "training images"), as_image_set(split.test, "test images")
        split = replace(split, train=train, test=test)
        world.broadcast_from_main(lambda: _check_split(split, run))
    if run.finished:
        console.print(f"{run.path} is finished: nothing to do")
        return world.broadcast_from_main(lambda: load_result(run.path))
    net = model or load_backbone(config.backbone, device=world.device, data=split.train)
    if model is None:
        net.to(memory_format=torch.channels_last)
    for line in describe_input(net, *_crop_of(config)):
        console.print(line)
    try:
        with eval_mode(net):
            evaluation = protocol.measure(
                Measurement(net, split, resolve_auto(config, run, world), run, world, console)
            )
    except UserError:
        if world.is_main:
            run.forget_annotations()
        raise
    return world.broadcast_from_main(lambda: _finish(run, config, net, evaluation))


def _check_split(split: Split, run: RunFolder) -> None:
    """Raise a UserError if test images are also training images, or if the images differ from those of an earlier start
    of the run."""
    check_disjoint(split)
    image_sets = {"train": split.train, "val": split.test}
    run.check_images(
        name_fingerprints(split.train, split.test),
        {name: annotation_digest(images) for name, images in image_sets.items()},
    )


def _crop_of(config: MeasureConfig) -> tuple[int, int]:
    """Return the crop size and the resize of a config; 0 means the backbone's value."""
    crop = getattr(config, "crop", None)
    return (crop.size, max(crop.size, crop.resize)) if isinstance(crop, CropConfig) else (getattr(config, "size", 0), 0)


def _finish(run: RunFolder, config: MeasureConfig, backbone: Backbone, evaluation: Evaluation) -> Result:
    write_provenance(run, backbone.input, backbone.provenance.to_dict())
    return finish(run, config, config.backbone, config.data, evaluation.n, evaluation.metrics, evaluation.rows)


def main(config: MeasureConfig) -> Path:
    """Run a protocol as a command: measure unless the run is finished, print the result, and return the run folder."""
    protocol = load_protocol(config.protocol)
    path = Path(config.out or config.default_out(config.protocol))
    with joined_world(find_device(config.device)) as world:
        result = measure(protocol, config, out=path, quiet=not world.is_main, flag=InterruptFlag(last=True))
        if world.is_main:
            print_captioned(f"{result.backbone}: {result.n} test images", protocol.show(result))
            if protocol.chance_level:
                stdout_console().print(protocol.chance_level(result.rows))
    return path


def print_captioned(caption: str, table: Table) -> None:
    """Print a table below its caption, on stdout."""
    console = stdout_console(soft_wrap=False)
    console.print(caption, soft_wrap=True)
    console.print(table)
