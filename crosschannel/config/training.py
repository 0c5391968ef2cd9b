"""Groups of keys that commands share: crops, optimiser, learning-rate schedule, training and runtime."""

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
        ignored: names of the keys below that a command accepts but ignores; help hides them.
    """

    ignored: ClassVar[tuple[str, ...]] = ()

    seed: Seed = 0
    """random seed"""
    device: Device = "auto"
    """device to run on: auto, cpu, cuda or cuda:N"""


@dataclass(kw_only=True)
class PlainConfig(CommandConfig):
    """``--seed`` and ``--device``, for commands that ignore both."""

    ignored: ClassVar[tuple[str, ...]] = ("seed", "device")


AreaFraction = Annotated[float, Interval(gt=0, le=1)]


@dataclass
class CropConfig:
    """Image crops."""

    size: Annotated[int, Interval(ge=0, le=4096)] = 176
    """side of the crop, in pixels"""
    resize: Annotated[int, Interval(ge=0, le=8192)] = 256
    """short side of the resized image from which random and centre crops are taken, in pixels"""
    kind: Literal["random", "random-in-centre", "random-resized", "centre"] = "random"
    """kind of training crop. random: a random square of the resized image; random-in-centre: a random square within its
    centre square; random-resized: a region of random area and aspect ratio, within the limits below"""
    area: tuple[AreaFraction, AreaFraction] = (0.25, 1.0)
    """random-resized: minimum and maximum fraction of the image area"""
    aspect: Annotated[float, Interval(ge=1, le=100)] = 4 / 3
    """random-resized: maximum aspect ratio, for landscape and portrait crops alike"""
    mirror: bool = True
    """mirror training crops horizontally with probability 0.5"""

    def check(self) -> None:
        require(self.area[0] <= self.area[1], "crop.area must be two ascending fractions within 0..1", self.area)


@dataclass
class OptimConfig:
    """Optimiser."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """optimiser. adam adds the weight decay to the gradient, as Caffe does; adamw decouples it"""
    lr: Positive = 1e-3
    """learning rate; its peak if the schedule has a warm-up"""
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.999)
    """adam, adamw: decay rates of the moment estimates"""
    momentum: FractionBelowOne = 0.9
    """sgd: momentum"""
    nesterov: bool = False
    """sgd: use Nesterov momentum"""
    weight_decay: NonNegative = 0.01
    """weight decay of convolutions and linear layers"""
    bias_lr: NonNegative = 1.0
    """learning-rate multiplier for biases; 2 for AlexNet in the paper's release"""
    bias_decay: bool = False
    """apply the weight decay to biases too"""
    clip: NonNegative = 0.0
    """maximum norm of the gradient over all parameters; 0 disables clipping"""

    def check(self) -> None:
        has_momentum = self.name == "sgd" and self.momentum > 0
        require(
            has_momentum or not self.nesterov,
            "optim.nesterov requires optim.name sgd and a momentum above 0",
            self.name,
        )


@dataclass
class ScheduleConfig:
    """Learning-rate schedule."""

    kind: Literal["constant", "step", "multistep", "poly", "inverse-sqrt", "cosine", "one-cycle"] = "one-cycle"
    """shape of the schedule. step: multiply by a factor at regular intervals; multistep: the values in schedule.rates;
    poly: lr · (1 - step / steps)^power; inverse-sqrt: lr / sqrt(1 + decay · step); cosine: linear warm-up, then cosine
    decay to 0; one-cycle: cosine warm-up, then cosine decay to 0"""
    warmup: FractionBelowOne = 0.3
    """cosine, one-cycle: fraction of the steps during which the learning rate rises"""
    milestones: list[Annotated[int, Ge(0)]] = field(default_factory=list)
    """multistep: steps at which the learning rate changes"""
    rates: list[NonNegative] = field(default_factory=list)
    """multistep: learning rate from each milestone on"""
    decay: NonNegative = 0.0
    """inverse-sqrt: decay coefficient"""
    every: Annotated[int, Ge(0)] = 0
    """step: number of steps between changes of the learning rate"""
    factor: Annotated[float, Interval(gt=0, le=1)] = 0.1
    """step: factor by which each change multiplies the learning rate"""
    power: Annotated[float, Interval(gt=0, le=100)] = 0.9
    """poly: exponent"""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """constant, step, multistep, poly: steps of linear warm-up from a thousandth of the learning rate"""

    def check(self) -> None:
        lengths = f"{len(self.milestones)} and {len(self.rates)}"
        require(
            len(self.milestones) == len(self.rates),
            "schedule.milestones and schedule.rates must have the same length",
            lengths,
        )
        require(self.kind != "step" or self.every > 0, "schedule.every must be above 0 for step", self.every)
        allows_warmup_steps = self.kind in ("constant", "step", "multistep", "poly")
        rule = "schedule.warmup_steps applies only to schedules constant, step, multistep and poly"
        require(not self.warmup_steps or allows_warmup_steps, rule, self.kind)
        require(self.milestones == sorted(self.milestones), "schedule.milestones must ascend", self.milestones)


@dataclass
class TrainConfig:
    """Batch size, training length and precision."""

    batch: Count = 64
    """images per optimiser step, over all ranks and micro-batches"""
    accumulate: Count = 1
    """gradient accumulation: micro-batches per optimiser step on each rank"""
    epochs: Annotated[float, Interval(ge=0, le=1_000_000)] = 10.0
    """passes over the training images; ignored if train.steps is set"""
    steps: Annotated[int, Interval(ge=0, le=10**12)] = 0
    """optimiser steps; 0 computes them from train.epochs"""
    ema: FractionBelowOne = 0.0
    """decay of the exponential moving average of the weights, which is evaluated and saved; 0 disables it"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the forward pass; auto chooses by device"""
    channels_last: Literal["auto"] | bool = "auto"
    """use the channels-last memory format; auto chooses by device"""
    compile: Literal["auto"] | bool = "auto"
    """compile the model with torch.compile; auto chooses by device"""
    deterministic: bool = False
    """bit-exact results on GPUs, at lower speed; CPU runs are always deterministic"""

    def check(self) -> None:
        require(self.steps > 0 or self.epochs > 0, "train.epochs must be above 0", self.epochs)


@dataclass
class RuntimeConfig:
    """Runtime settings, which may change when a run is resumed."""

    workers: Annotated[Workers, RUNTIME] = 2
    """data-loading processes per rank; 0 loads images in the training process"""
    checkpoint_every: Annotated[Count, RUNTIME] = 500
    """steps between checkpoints"""
    keep: Annotated[Count, RUNTIME] = 2
    """number of latest checkpoints to keep"""
    eval_every: Annotated[Count, RUNTIME] = 500
    """steps between evaluations on held-out images; the last step is always evaluated"""
    log_every: Annotated[Count, RUNTIME] = 20
    """steps between log lines"""
    broken_limit: Annotated[Fraction, RUNTIME] = 0.01
    """maximum fraction of broken images, checked once 1,000 images have been read"""
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
    """Return the number of optimiser steps of a run on ``images`` training images."""
    return train.steps or max(1, round(train.epochs * images / train.batch))


def check_ranks(train: TrainConfig, ranks: int) -> None:
    """Raise a :class:`UserError` if the batch is not divisible by ranks × micro-batches."""
    if train.batch % (ranks * train.accumulate):
        raise UserError(
            f"train.batch ({train.batch}) must be a multiple of ranks × accumulate ({ranks} × {train.accumulate})"
        )


def slug(text: str) -> str:
    """Make text safe for a folder name: the directories of paths are dropped, and unsafe characters become dashes."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", re.sub(r"[\w.~-]*/+(?=.)", "", text)).strip("-/")[:60]
