"""Keys that every training command shares. A key is *science* (it changes the result; resuming with another value
is refused) unless it is declared with :func:`runtime` (free to change)."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

import yaml

from crosschannel.errors import UserError, check_rules


def runtime(default: Any = MISSING) -> Any:
    """A dataclass field that a resumed run may change."""
    return field(default=default, metadata={"runtime": True})


@dataclass
class OptimConfig:
    """How the weights move."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """adam adds the weight decay to the gradient, as Caffe does; adamw decouples it"""
    lr: float = 1e-3
    """learning rate (the peak, where the schedule has one)"""
    betas: tuple[float, float] = (0.9, 0.999)
    """of adam and adamw"""
    momentum: float = 0.9
    """of sgd"""
    weight_decay: float = 0.01
    """of the weights of convolutions and linear layers"""
    bias_lr: float = 1.0
    """factor of the learning rate for biases (the release's AlexNet: 2)"""
    bias_decay: bool = False
    """decay biases too"""
    clip: float = 0.0
    """greatest norm of the whole gradient; 0 does not clip"""


@dataclass
class ScheduleConfig:
    """How the learning rate goes."""

    kind: Literal["constant", "multistep", "inverse-sqrt", "cosine", "one-cycle"] = "one-cycle"
    """multistep: the rates below; inverse-sqrt: lr / sqrt(1 + decay · step); cosine: to 0 after a linear warm-up;
    one-cycle: cosine up, then down to 0"""
    warmup: float = 0.3
    """share of the steps that the rate rises (cosine, one-cycle)"""
    milestones: list[int] = field(default_factory=list)
    """multistep: steps at which the rate changes …"""
    rates: list[float] = field(default_factory=list)
    """… and what it changes to, one per milestone"""
    decay: float = 0.0
    """of inverse-sqrt"""


@dataclass
class TrainConfig:
    """How much, and in what arithmetic."""

    batch: int = 64
    """images a step, over all ranks and accumulations"""
    accumulate: int = 1
    """parts that a rank's share of the batch is worked off in"""
    epochs: float = 10.0
    """passes over the images; ignored where steps are given"""
    steps: int = 0
    """optimiser steps; 0 takes the epochs"""
    ema: float = 0.0
    """decay of the running average of the weights, which is what is evaluated and saved; 0 for none"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """arithmetic of the forward pass; auto: by device"""
    channels_last: Literal["auto"] | bool = "auto"
    """memory format; auto: by device"""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile; auto: by device"""
    deterministic: bool = False
    """bit-exact on a GPU too, at some cost; a CPU always is"""


@dataclass
class RuntimeConfig:
    """How the work is done; free to change when a run is resumed."""

    workers: int = runtime(2)
    """processes per rank that decode images; 0 decodes in the training process"""
    checkpoint_every: int = runtime(500)
    """steps between checkpoints"""
    keep: int = runtime(2)
    """checkpoints kept"""
    eval_every: int = runtime(500)
    """steps between evaluations on held-out images; one more ends the run"""
    log_every: int = runtime(20)
    """steps between lines of the log"""
    broken_limit: float = runtime(0.01)
    """greatest share of broken images, once 1,000 were seen"""
    tensorboard: bool = runtime(True)
    """write TensorBoard events"""


def check_training(optim: OptimConfig, schedule: ScheduleConfig, train: TrainConfig, run: RuntimeConfig) -> None:
    """Raise a :class:`UserError` for the first value that cannot be."""
    rules = [
        (optim.lr > 0, "optim.lr must be above 0", optim.lr),
        (all(0 <= beta < 1 for beta in optim.betas), "optim.betas must be within 0..1", optim.betas),
        (optim.weight_decay >= 0, "optim.weight_decay must not be negative", optim.weight_decay),
        (optim.clip >= 0, "optim.clip must not be negative", optim.clip),
        (0 <= schedule.warmup < 1, "schedule.warmup must be within 0..1", schedule.warmup),
        (schedule.decay >= 0, "schedule.decay must not be negative", schedule.decay),
        (
            len(schedule.milestones) == len(schedule.rates),
            "schedule.milestones and schedule.rates must have the same length",
            f"{len(schedule.milestones)} and {len(schedule.rates)}",
        ),
        (schedule.milestones == sorted(schedule.milestones), "schedule.milestones must ascend", schedule.milestones),
        (train.batch >= 1, "train.batch must be at least 1", train.batch),
        (train.accumulate >= 1, "train.accumulate must be at least 1", train.accumulate),
        (train.steps >= 0, "train.steps must not be negative", train.steps),
        (train.steps > 0 or train.epochs > 0, "train.epochs must be above 0", train.epochs),
        (0 <= train.ema < 1, "train.ema must be within 0..1", train.ema),
        (run.workers >= 0, "runtime.workers must not be negative", run.workers),
        (run.keep >= 1, "runtime.keep must be at least 1", run.keep),
        (0 <= run.broken_limit <= 1, "runtime.broken_limit must be within 0..1", run.broken_limit),
        *(
            (getattr(run, key) >= 1, f"runtime.{key} must be at least 1", getattr(run, key))
            for key in ("checkpoint_every", "eval_every", "log_every")
        ),
    ]
    check_rules(rules)


def total_steps(train: TrainConfig, images: float) -> int:
    """Optimiser steps of a run over so many images."""
    return train.steps or max(1, round(train.epochs * images / train.batch))


def check_ranks(train: TrainConfig, ranks: int) -> None:
    """Raise a UserError where a batch cannot be shared out evenly."""
    if train.batch % (ranks * train.accumulate):
        raise UserError(
            f"train.batch ({train.batch}) must be a multiple of ranks × accumulate ({ranks} × {train.accumulate})"
        )


def to_yaml(config: Any) -> str:
    """A config dataclass as its YAML file, complete and in the order of its keys."""
    tree = json.loads(json.dumps(asdict(config)))  # tuples as lists
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def runtime_keys(config: Any, prefix: str = "") -> set[str]:
    """Dotted names of the keys that a resumed run may change."""
    found = set()
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            found |= runtime_keys(value, f"{prefix}{entry.name}.")
        elif entry.metadata.get("runtime"):
            found.add(prefix + entry.name)
    return found


def defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """Default values by dotted name, tuples as lists, of the keys that have one."""
    found: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            found |= defaults(value, f"{prefix}{entry.name}.")
        elif entry.default_factory is not MISSING or entry.default is not MISSING:
            found[prefix + entry.name] = entry.default if entry.default_factory is MISSING else entry.default_factory()
    return flatten(found)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} → {"optim.lr": 1}, tuples as lists."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
