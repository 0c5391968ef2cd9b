"""Groups of keys that commands share: crops, optimizer, schedule, training and runtime."""

import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval

from crosschannel.config.load import require
from crosschannel.config.types import (
    RUNTIME,
    Count,
    Device,
    Fraction,
    FractionBelowOne,
    NonNegative,
    Positive,
    Seed,
    Workers,
)
from crosschannel.errors import UserError


@dataclass(kw_only=True)
class CommandConfig:
    """Keys of every command.

    Attributes:
        ignored: keys above that the command accepts but does not use; help hides them.
    """

    ignored: ClassVar[tuple[str, ...]] = ()

    seed: Seed = 0
    """random seed"""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N"""


@dataclass(kw_only=True)
class PlainConfig(CommandConfig):
    """``--seed`` and ``--device`` for commands that ignore both."""

    ignored: ClassVar[tuple[str, ...]] = ("seed", "device")


AreaFraction = Annotated[float, Interval(gt=0, le=1)]


@dataclass
class CropConfig:
    """Crops."""

    size: Annotated[int, Interval(ge=0, le=4096)] = 176
    """side of the crop, in pixels"""
    resize: Annotated[int, Interval(ge=0, le=8192)] = 256
    """short side that images are resized to before a random or a centre crop"""
    kind: Literal["random", "random-in-centre", "random-resized", "centre"] = "random"
    """kind of training crop. random: a random square of the resized image; random-in-centre: one of its centre square;
    random-resized: a random part of the area and shape below"""
    area: tuple[AreaFraction, AreaFraction] = (0.25, 1.0)
    """random-resized: minimum and maximum share of the image's area"""
    aspect: Annotated[float, Interval(ge=1, le=100)] = 4 / 3
    """random-resized: maximum aspect ratio, of landscape and portrait crops"""
    mirror: bool = True
    """mirror half of the training crops"""

    def check(self) -> None:
        require(self.area[0] <= self.area[1], "crop.area must be two ascending shares within 0..1", self.area)


@dataclass
class OptimConfig:
    """Optimiser."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """adam adds the weight decay to the gradient, as Caffe does; adamw decouples it"""
    lr: Positive = 1e-3
    """learning rate (the peak, if the schedule has one)"""
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.999)
    """decay rates of the moment estimates (adam, adamw)"""
    momentum: FractionBelowOne = 0.9
    """momentum (sgd)"""
    nesterov: bool = False
    """Nesterov's momentum, for sgd"""
    weight_decay: NonNegative = 0.01
    """weight decay of convolutions and linear layers"""
    bias_lr: NonNegative = 1.0
    """factor of the learning rate for biases (the release's AlexNet: 2)"""
    bias_decay: bool = False
    """decay biases too"""
    clip: NonNegative = 0.0
    """maximum norm of the gradient over all parameters; 0 turns clipping off"""

    def check(self) -> None:
        has_momentum = self.name == "sgd" and self.momentum > 0
        require(has_momentum or not self.nesterov, "optim.nesterov needs optim.name sgd and a momentum", self.name)


@dataclass
class ScheduleConfig:
    """Learning-rate schedule."""

    kind: Literal["constant", "step", "multistep", "poly", "inverse-sqrt", "cosine", "one-cycle"] = "one-cycle"
    """step: × factor every so many steps; multistep: the rates below; poly: (1 - step / steps)^power; inverse-sqrt:
    lr / sqrt(1 + decay · step); cosine: to 0 after a linear warm-up; one-cycle: cosine up, then down to 0"""
    warmup: FractionBelowOne = 0.3
    """share of the steps in which the learning rate rises (cosine, one-cycle)"""
    milestones: list[Annotated[int, Ge(0)]] = field(default_factory=list)
    """multistep: steps at which the learning rate changes"""
    rates: list[NonNegative] = field(default_factory=list)
    """multistep: learning rate from each milestone on"""
    decay: NonNegative = 0.0
    """inverse-sqrt: decay of the learning rate"""
    every: Annotated[int, Ge(0)] = 0
    """step: number of steps between changes of the learning rate"""
    factor: Annotated[float, Interval(gt=0, le=1)] = 0.1
    """step: factor of each change"""
    power: Annotated[float, Interval(gt=0, le=100)] = 0.9
    """poly: exponent"""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """constant, step, multistep, poly: steps of warm-up from a thousandth of the learning rate"""

    def check(self) -> None:
        lengths = f"{len(self.milestones)} and {len(self.rates)}"
        require(
            len(self.milestones) == len(self.rates),
            "schedule.milestones and schedule.rates must have the same length",
            lengths,
        )
        require(self.kind != "step" or self.every > 0, "schedule.every must be above 0 for step", self.every)
        stepwise = self.kind in ("constant", "step", "multistep", "poly")
        words = "schedule.warmup_steps is for constant, step, multistep and poly"
        require(not self.warmup_steps or stepwise, words, self.kind)
        require(self.milestones == sorted(self.milestones), "schedule.milestones must ascend", self.milestones)


@dataclass
class TrainConfig:
    """Batch size, training length and precision."""

    batch: Count = 64
    """images per optimiser step, over all ranks and micro-batches"""
    accumulate: Count = 1
    """gradient accumulation: micro-batches per optimiser step on each rank"""
    epochs: Annotated[float, Interval(ge=0, le=1_000_000)] = 10.0
    """passes over the images; ignored if train.steps is set"""
    steps: Annotated[int, Interval(ge=0, le=10**12)] = 0
    """optimiser steps; 0 uses train.epochs"""
    ema: FractionBelowOne = 0.0
    """decay of the moving average of the weights, which is evaluated and saved; 0 turns it off"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """arithmetic of the forward pass; auto: by device"""
    channels_last: Literal["auto"] | bool = "auto"
    """memory format; auto: by device"""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile; auto: by device"""
    deterministic: bool = False
    """bit-exact results on a GPU too, but slower; a CPU is always deterministic"""

    def check(self) -> None:
        require(self.steps > 0 or self.epochs > 0, "train.epochs must be above 0", self.epochs)


@dataclass
class RuntimeConfig:
    """Runtime settings (may change when a run is resumed)."""

    workers: Annotated[Workers, RUNTIME] = 2
    """processes per rank that decode images; 0 decodes in the training process"""
    checkpoint_every: Annotated[Count, RUNTIME] = 500
    """steps between checkpoints"""
    keep: Annotated[Count, RUNTIME] = 2
    """checkpoints kept"""
    eval_every: Annotated[Count, RUNTIME] = 500
    """steps between evaluations on held-out images; the run also ends with one"""
    log_every: Annotated[Count, RUNTIME] = 20
    """steps between lines of the log"""
    broken_limit: Annotated[Fraction, RUNTIME] = 0.01
    """maximum share of broken images, checked after the first 1,000"""
    tensorboard: Annotated[bool, RUNTIME] = True
    """write TensorBoard events"""


@dataclass(kw_only=True)
class TrainedConfig(CommandConfig):
    """Keys of every command that trains."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def total_steps(train: TrainConfig, images: float) -> int:
    """Optimiser steps of a run over so many images."""
    return train.steps or max(1, round(train.epochs * images / train.batch))


def check_ranks(train: TrainConfig, ranks: int) -> None:
    """Raise a UserError if a batch cannot be divided evenly among ranks and micro-batches."""
    if train.batch % (ranks * train.accumulate):
        raise UserError(
            f"train.batch ({train.batch}) must be a multiple of ranks × accumulate ({ranks} × {train.accumulate})"
        )


def slug(text: str) -> str:
    """The last parts of paths in a text, as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", re.sub(r"[\w.~-]*/+(?=.)", "", text)).strip("-/")[:60]
