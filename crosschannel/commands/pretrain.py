"""`crosschannel pretrain`: train a model on a pretext task."""

from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from crosschannel.colorize.colorizer import validation_pictures
from crosschannel.commands.config import PretrainConfig
from crosschannel.config.load import check_config
from crosschannel.console import stderr_console
from crosschannel.data import ImageSet, Stream, Subset, open_images
from crosschannel.data.images import name_fingerprints
from crosschannel.data.order import epoch_order
from crosschannel.errors import wrap_external_errors
from crosschannel.hub import has_head, load_backbone, load_pretext, parse_source, save_backbone, save_pretext
from crosschannel.hub.files import COLORIZER, LICENCE, PRETEXT
from crosschannel.hub.sources import KINDS, input_files
from crosschannel.models import InputSpec, NetSpec, family, spec_of
from crosschannel.models.backbone import Provenance
from crosschannel.pretext import create, find_task
from crosschannel.pretext.pretraining import Pretraining
from crosschannel.pretext.start import convert_input
from crosschannel.report import validation_curve
from crosschannel.runs.folder import RunFolder, last_pictures
from crosschannel.runs.interrupts import InterruptFlag
from crosschannel.runs.result import finish
from crosschannel.training.checkpoints import list_checkpoints
from crosschannel.training.device import find_device, resolve_auto
from crosschannel.training.isolation import isolated
from crosschannel.training.loop import Loop
from crosschannel.training.ranks import PATIENCE, World, joined_world
from crosschannel.training.runs import open_run
from crosschannel.training.task import Evaluation
from crosschannel.version import __version__


def pretrain(config: PretrainConfig, flag: InterruptFlag | None = None) -> Path:
    """Start or resume a pretraining run, and return its run folder.

    Args:
        config: config of the command.
        flag: interrupt flag; by default, signals are caught for the duration of the call.

    Raises:
        UserError: bad input.
        Interrupted: a signal stopped the run after saving; the same call resumes it.
    """
    config = check_config(config, PretrainConfig)
    path = Path(config.out or config.default_out("pretrain"))
    patience = PATIENCE if flag is None else None
    with isolated(config.seed), joined_world(find_device(config.device), patience) as world:
        console = stderr_console(quiet=not world.is_main)
        with open_run(path, "pretrain", config, world, flag) as run:
            world.broadcast_from_main(lambda: run.check_files(input_files(config)))
            if not run.is_done(config.data):
                train, val = open_images(config.data, config.val_share)
                if len(val) > config.val_images:
                    val = Subset(val, epoch_order(len(val), 0, 0)[: config.val_images])
                world.broadcast_from_main(partial(run.check_images, name_fingerprints(train, val)))
            if run.finished:
                console.print(f"{path} is finished: nothing to do")
                return path
            console.print(f"{path}: {len(train)} training and {len(val)} held-out images")
            config = resolve_auto(config, run, world)
            loop = _build(config, run, world, train, val)
            evaluation = loop.fit()
            world.broadcast_from_main(lambda: _finish(config, loop, evaluation, console))
    return path


def main(config: PretrainConfig) -> Path:
    """Run `crosschannel pretrain`. Afterwards the process ignores signals, so that its exit code is preserved."""
    return pretrain(config, InterruptFlag(last=True))


def _build(config: PretrainConfig, run: RunFolder, world: World, train: ImageSet, val: ImageSet) -> Loop:
    """Build the training loop of a run."""
    torch.manual_seed(config.seed)
    task_class, model, size = find_task(config.task).load(), config.model, config.crop.size
    input, architecture = task_class.input_of(config.objective, config.crop), family(model.name)
    fc = model.fc if architecture.fc or task_class.needs_fc else 0  # most tasks pretrain VGG-16 without fc6 and fc7
    options = architecture.supported_options(norm=model.norm, fc=fc, affine=model.affine, variant=model.variant)
    spec = NetSpec(model.name, input.channels, **options)
    net, pretext = create(config.task, config.objective, spec, size, train.classes)
    with torch.no_grad(), wrap_external_errors(f"this net cannot take crops of {size} px"):
        net.eval()(pretext.example_input(size))
    net.train()
    task = Pretraining(
        net,
        pretext,
        val,
        config.crop,
        world,
        config.model.init,
        None if list_checkpoints(run.checkpoints) else _initial_state(config.init_from, input),
        config.seed,
        config.train.batch // world.size or 1,
        config.runtime.workers,
        validation_pictures,
    )
    return Loop(task, Stream(train, pretext.view(config.crop, train=True), config.seed), config, run, world)


def _initial_state(source: str | None, input: InputSpec) -> dict[str, Tensor] | None:
    """Load the initial state dict of a pretext net from a source, including the head's weights if it has a head."""
    if source is None:
        return None
    backbone = convert_input(input, load_backbone(source))
    state = load_pretext(source).net.state_dict() if has_head(source) else {}
    head = {name: tensor for name, tensor in state.items() if not name.startswith("net.")}
    return head | {f"net.{name}": tensor for name, tensor in backbone.net.state_dict().items()}


def _finish(config: PretrainConfig, loop: Loop, evaluation: Evaluation, console: Console) -> None:
    """Write the weights, validation curve and result of a completed run, and print a summary."""
    run, net = loop.run, loop.evaluated_net
    pretext = loop.task.pretext
    spec, input = spec_of(net.net), pretext.input_of(config.objective, config.crop)
    details = {
        **pretext.details(),
        "headline": pretext.primary_metric.name,
        "rows of its pictures": ", ".join(pretext.rows),
        "data": config.data,
        "images": len(loop.stream.images),
        "steps": loop.steps,
        "seed": config.seed,
        "config_hash": sha256((run.path / "config.yaml").read_bytes()).hexdigest()[:16],
        "version": __version__,
    }
    if config.init_from is None or KINDS[parse_source(config.init_from).kind].is_untrained:
        details["licence"] = LICENCE
    provenance = Provenance(str(run.path), details)
    save_backbone(run.path / "backbone.safetensors", net.net, spec, input, provenance)
    pretext_path = run.path / (COLORIZER if pretext.decoder else PRETEXT)
    save_pretext(pretext_path, net, pretext, spec, input, provenance)
    metric = pretext.primary_metric
    baseline = None if metric.baseline is None else (metric.baseline, metric.baseline_name)
    curve = validation_curve(run.path, run.path / "curve.png", metric.name, baseline, metric.label)
    finish(run, config, str(run.path / "backbone.safetensors"), config.data, evaluation.n, evaluation.metrics)
    tally = loop.monitor.tally
    if tally.broken:
        console.print(f"{tally.broken} of {tally.seen} training samples were broken")
    pictures = last_pictures(run.path)
    if pictures:
        console.print(f"held-out pictures: {pictures}")
    console.print(f"validation curve: {curve}")
    console.print(f"weights: {run.path / 'backbone.safetensors'}, {pretext_path}")
    console.print(f"held-out images: {metric.describe(evaluation.metrics[metric.name])}")
