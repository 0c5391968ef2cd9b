"""Keys that every training command shares. A key is *science* (it changes the result; resuming with another value
is refused) unless it is declared with :func:`runtime` (free to change)."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal

import yaml

from crosschannel.errors import UserError
from crosschannel.keys import Count, Share, Workers, above, at_least, below, require


def runtime(default: Any = MISSING) -> Any:
    """A dataclass field that a resumed run may change."""
    return field(default=default, metadata={"runtime": True})


@dataclass
class OptimConfig:
    """How the weights move."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """adam adds the weight decay to the gradient, as Caffe does; adamw decouples it"""
    lr: Annotated[float, above(0)] = 1e-3
    """learning rate (the peak, where the schedule has one)"""
    betas: Annotated[tuple[float, float], below(1)] = (0.9, 0.999)
    """of adam and adamw"""
    momentum: Annotated[float, below(1)] = 0.9
    """of sgd"""
    weight_decay: Annotated[float, at_least(0)] = 0.01
    """of the weights of convolutions and linear layers"""
    bias_lr: Annotated[float, at_least(0)] = 1.0
    """factor of the learning rate for biases (the release's AlexNet: 2)"""
    bias_decay: bool = False
    """decay biases too"""
    clip: Annotated[float, at_least(0)] = 0.0
    """greatest norm of the whole gradient; 0 does not clip"""


@dataclass
class ScheduleConfig:
    """How the learning rate goes."""

    kind: Literal["constant", "multistep", "inverse-sqrt", "cosine", "one-cycle"] = "one-cycle"
    """multistep: the rates below; inverse-sqrt: lr / sqrt(1 + decay · step); cosine: to 0 after a linear warm-up;
    one-cycle: cosine up, then down to 0"""
    warmup: Annotated[float, below(1)] = 0.3
    """share of the steps that the rate rises (cosine, one-cycle)"""
    milestones: Annotated[list[int], at_least(0)] = field(default_factory=list)
    """multistep: steps at which the rate changes …"""
    rates: Annotated[list[float], at_least(0)] = field(default_factory=list)
    """… and what it changes to, one per milestone"""
    decay: Annotated[float, at_least(0)] = 0.0
    """of inverse-sqrt"""

    def check(self) -> None:
        lengths = f"{len(self.milestones)} and {len(self.rates)}"
        require(
            len(self.milestones) == len(self.rates),
            "schedule.milestones and schedule.rates must have the same length",
            lengths,
        )
        require(self.milestones == sorted(self.milestones), "schedule.milestones must ascend", self.milestones)


@dataclass
class TrainConfig:
    """How much, and in what arithmetic."""

    batch: Count = 64
    """images a step, over all ranks and accumulations"""
    accumulate: Count = 1
    """parts that a rank's share of the batch is worked off in"""
    epochs: Annotated[float, at_least(0, 1e6)] = 10.0
    """passes over the images; ignored where steps are given"""
    steps: Annotated[int, at_least(0, 10**12)] = 0
    """optimiser steps; 0 takes the epochs"""
    ema: Annotated[float, below(1)] = 0.0
    """decay of the running average of the weights, which is what is evaluated and saved; 0 for none"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """arithmetic of the forward pass; auto: by device"""
    channels_last: Literal["auto"] | bool = "auto"
    """memory format; auto: by device"""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile; auto: by device"""
    deterministic: bool = False
    """bit-exact on a GPU too, at some cost; a CPU always is"""

    def check(self) -> None:
        require(self.steps > 0 or self.epochs > 0, "train.epochs must be above 0", self.epochs)


@dataclass
class RuntimeConfig:
    """How the work is done; free to change when a run is resumed."""

    workers: Workers = runtime(2)
    """processes per rank that decode images; 0 decodes in the training process"""
    checkpoint_every: Count = runtime(500)
    """steps between checkpoints"""
    keep: Annotated[int, at_least(1)] = runtime(2)
    """checkpoints kept"""
    eval_every: Count = runtime(500)
    """steps between evaluations on held-out images; one more ends the run"""
    log_every: Count = runtime(20)
    """steps between lines of the log"""
    broken_limit: Share = runtime(0.01)
    """greatest share of broken images, once 1,000 were seen"""
    tensorboard: bool = runtime(True)
    """write TensorBoard events"""


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
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
