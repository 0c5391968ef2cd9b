"""`crosschannel pretrain`: learn a representation by predicting colour from lightness."""

from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

import crosschannel
from crosschannel.console import stderr_console
from crosschannel.data import CropConfig, CropStream, ImageSet, open_images
from crosschannel.data.images import Subset
from crosschannel.data.order import epoch_order
from crosschannel.files import user_path
from crosschannel.hub import (
    has_head,
    load_backbone,
    load_colorizer,
    parse_source,
    save_backbone,
    save_colorizer,
    source_files,
)
from crosschannel.hub.files import LICENCE
from crosschannel.hub.sources import FRESH
from crosschannel.keys import FC_WIDTH, Count, Device, Out, Part, Seed, Text, require
from crosschannel.models import InputSpec, NetSpec, PretextNet, build_pretext
from crosschannel.models.backbone import Provenance
from crosschannel.models.build import check_name
from crosschannel.objectives import ObjectiveConfig, build_objective
from crosschannel.training.checkpoints import found
from crosschannel.training.colorization import Colorization
from crosschannel.training.config import (
    OptimConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
    runtime,
)
from crosschannel.training.device import find_device
from crosschannel.training.interrupts import InterruptFlag
from crosschannel.training.loop import Loop, Settings
from crosschannel.training.ranks import World, join_world, leave_world
from crosschannel.training.run_folder import RunFolder, open_run, settle_auto


@dataclass
class ModelConfig:
    """The net."""

    name: str = "alexnet"
    """alexnet, colornet, vgg16 or timm:NAME"""
    fc: Annotated[int, FC_WIDTH] = 4096
    """width of AlexNet's fc6 and fc7; 0 leaves them out"""
    affine: bool = False
    """ColorNet's and VGG-16's BatchNorm has a scale and a shift, as the released ColorNet's has"""
    init: Literal["default", "gaussian", "kmeans", "unit-variance"] = "default"
    """initial weights; kmeans and unit-variance look at training images"""

    def check(self) -> None:
        check_name(self.name)
        fits = not self.affine or self.name in ("colornet", "vgg16")
        require(fits, "model.affine is for colornet and vgg16", self.name)


@dataclass
class PretrainConfig:
    """Learn a representation by predicting colour from lightness."""

    data: Text = runtime()
    """a folder of images, tar shards, builtin:sample or torchvision:imagenette"""
    out: Out | None = runtime(None)
    """run folder; default runs/CONFIG-SEED"""
    init_from: Text | None = None
    """a source (run folder, weights file, kmeans:alexnet, …) whose weights to start from"""
    seed: Seed = 0
    """of initial weights, order and augmentation"""
    device: Device = runtime("auto")
    """auto, cpu, cuda or cuda:N"""
    val_share: Part = 0.05
    """share of the images held out where the data has no val/"""
    val_images: Count = 10000
    """most images that an evaluation looks at"""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def default_out(self, name: str) -> str:
        return f"runs/{name}-{self.seed}"

    def check(self) -> None:
        size, resize = self.crop.size, self.crop.resize
        require(8 <= size <= resize, f"crop.size must be within 8..crop.resize ({resize})", size)


def pretrain(config: PretrainConfig) -> Path:
    """Run (or resume) a pretraining; returns its run folder.

    Raises:
        UserError: bad input.
        Interrupted: told to stop; the run is saved and goes on when started again.
    """
    world = join_world(find_device(config.device))
    path = Path(config.out or config.default_out("pretrain"))
    console = stderr_console(quiet=not world.is_main)
    try:
        with open_run(path, "pretrain", config, world, InterruptFlag(last=True)) as run:
            world.from_main(lambda: run.check_files(_files(config)))
            if not run.is_done(config.data):
                train, val = open_images(config.data, config.val_share)
                if len(val) > config.val_images:
                    val = Subset(val, epoch_order(len(val), 0, 0)[: config.val_images])
                world.from_main(partial(run.check_images, train, val))
            if run.finished:
                console.print(f"{path} is finished: nothing to do", markup=False)
                return path
            console.print(f"{path}: {len(train)} training and {len(val)} held-out images", markup=False)
            fc = config.model.fc if config.model.name == "alexnet" else 0
            spec = NetSpec(config.model.name, in_channels=1, fc=fc, affine=config.model.affine)
            loop = _build(config, spec, run, world, train, val)
            figures = loop.fit()
            world.from_main(lambda: _finish(config, spec, run, loop, figures, train, console))
    finally:
        leave_world()
    return path


def _files(config: PretrainConfig) -> dict[str, Path]:
    """What a run reads by path besides its images."""
    found = {"objective.prior": user_path(config.objective.prior)} if config.objective.kind == "class" else {}
    start = source_files(config.init_from) if config.init_from else {}
    return found | {f"init_from {key}": path for key, path in start.items()}


def _build(config: PretrainConfig, spec: NetSpec, run: RunFolder, world: World, train: ImageSet, val: ImageSet) -> Loop:
    settle_auto(config.train, run, world)
    torch.manual_seed(config.seed)
    objective = build_objective(config.objective)
    net = build_pretext(spec, objective.outputs, config.crop.size)
    task = Colorization(
        net,
        objective,
        config.objective.normalise,
        val,
        config.crop,
        world,
        config.model.init,
        None if found(run.checkpoints) else _start_state(config.init_from),
        run.path / "samples",
        config.seed,
        config.train.batch // world.size or 1,
        config.runtime.workers,
    )
    settings = Settings(config.seed, config.optim, config.schedule, config.train, config.runtime)

    def started() -> None:  # only now: a command that could not start leaves nothing to resume
        if world.is_main:
            run.write_config(config)

    return Loop(task, CropStream(train, config.crop, config.seed), settings, run, world, started)


def _start_state(source: str | None) -> dict[str, Tensor] | None:
    """Weights of a pretext net by name: with its head, where the source has one."""
    if source is None:
        return None
    if has_head(source):
        return load_colorizer(source).net.state_dict()
    return {f"net.{name}": tensor for name, tensor in load_backbone(source).net.state_dict().items()}


def _finish(config, spec, run, loop, figures, train, console) -> None:
    """Weights, curve and result of a run that has ended."""
    from crosschannel.report import validation_curve

    net: PretextNet = loop.best_net
    input = InputSpec("grey", config.crop.size, config.crop.resize)
    details = {
        "pretext": "colorization",
        "objective": config.objective.kind,
        "lam": config.objective.lam,
        "data": config.data,
        "images": len(train),
        "steps": loop.steps,
        "seed": config.seed,
        "config_hash": sha256((run.path / "config.yaml").read_bytes()).hexdigest()[:16],
        "version": crosschannel.__version__,
    }
    if config.init_from is None or parse_source(config.init_from).kind in FRESH:
        details["licence"] = LICENCE
    provenance = Provenance(str(run.path), details)
    save_backbone(run.path / "backbone.safetensors", net.net, spec, input, provenance)
    save_colorizer(run.path / "colorizer.safetensors", net, spec, input, config.objective, provenance)
    curve = validation_curve(run.path, run.path / "curve.png")
    figures = dict(figures)
    n = figures.pop("images", len(loop.task.val))
    run.finish(str(run.path / "backbone.safetensors"), config.data, config.seed, n, figures)
    if loop.broken.broken:
        console.print(f"{loop.broken.broken} of {loop.broken.seen} images seen were broken", markup=False)
    pictures = sorted((run.path / "samples").glob("*.png"))
    if pictures:
        console.print(f"held-out pictures (lightness, predicted, true): {pictures[-1]}", markup=False)
    console.print(f"validation curve: {curve}", markup=False)
