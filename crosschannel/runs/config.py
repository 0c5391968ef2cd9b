"""Keys that commands share, and what is declared of keys beside their types.

A key is *science* (it changes the result; resuming with another value is refused) unless it is declared as runtime. It
may have a role besides: it names a backbone (:func:`source`), images (:func:`data`) or files (:func:`path`), or it is
the seed (:func:`seed`). Who opens, checks, fetches or groups by keys goes by roles, never by names. No torch here, so
that a command's help is quick.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import yaml

from crosschannel.errors import UserError
from crosschannel.keys import Count, Device, Range, Seed, Share, Workers, above, at_least, below, require, within

# Keys by names that they had: what older configs and run folders say.
RENAMED = {"crop.train": "crop.kind"}


def runtime(default: Any = MISSING) -> Any:
    """A dataclass field that a resumed run may change."""
    return field(default=default, metadata={"runtime": True})


def slug(text: str) -> str:
    """The last parts of paths in a text, as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", re.sub(r"[\w.~-]*/+(?=.)", "", text)).strip("-/")[:60]


def source(
    default: Any = MISSING,
    factory: Any = MISSING,
    help: str = "",
    loads: Literal["backbone", "colorizer", "classifier"] = "backbone",
    named: Callable[[str], str] = str,
) -> Any:
    """A field that names a backbone or several, see :mod:`crosschannel.hub.sources`.

    Args:
        default, factory: its default, or what makes one.
        help: of a key that is given by place.
        loads: what is made of it.
        named: a value → the source in it, empty where there is none.

    A default of "" is none: a command needs the key, a call from Python has its own argument for it.
    """
    told = {"role": "source", "help": help, "loads": loads, "named": named, "needed": default == ""}
    return (
        field(default=default, metadata=told) if factory is MISSING else field(default_factory=factory, metadata=told)
    )


def data(default: Any = MISSING, help: str = "", fetched_by: str = "") -> Any:
    """A field that names images. They may have moved when a run is resumed: it knows them by their names.

    Args:
        default: its default.
        help: of a key that is given by place.
        fetched_by: the key that says that what is not there is to be fetched.

    A default of "" is none, see :func:`source`.
    """
    told = {"role": "data", "runtime": True, "help": help, "fetched_by": fetched_by, "needed": default == ""}
    return field(default=default, metadata=told)


def path(
    default: Any = MISSING,
    factory: Any = MISSING,
    help: str = "",
    packaged: tuple[str, ...] = (),
    fetched_by: str = "",
) -> Any:
    """A field that names files or folders to be read.

    Args:
        default, factory: its default, or what makes one.
        help: of keys that are given by place.
        packaged: names that stand for files of the package.
        fetched_by: of images, which may have moved when a run is resumed: the key that says that they may be fetched.
    """
    told = {"role": "path", "help": help, "packaged": packaged, "runtime": bool(fetched_by), "fetched_by": fetched_by}
    return (
        field(default=default, metadata=told) if factory is MISSING else field(default_factory=factory, metadata=told)
    )


def seed() -> Any:
    """The field of the seed; runs that differ in it alone are of one kind."""
    return field(default=0, metadata={"role": "seed"})


@dataclass
class CropConfig:
    """How images become square crops."""

    size: Annotated[int, at_least(0, 4096)] = 176
    """side of the crop, in pixels"""
    resize: Annotated[int, at_least(0, 8192)] = 256
    """short side that images are resized to before a random or a centre crop"""
    kind: Literal["random", "random-in-centre", "random-resized", "centre"] = "random"
    """of training crops. random: a random square of the resized image; random-in-centre: one of its centre square;
    random-resized: a random part of the area and shape below"""
    area: Annotated[tuple[float, float], Range(0, 1, "two ascending shares within 0..1", open_low=True)] = (0.25, 1.0)
    """random-resized: least and greatest share of the image's area"""
    aspect: Annotated[float, within(1, 100)] = 4 / 3
    """random-resized: greatest ratio of the sides, either way"""
    mirror: bool = True
    """mirror half of the training crops"""

    def check(self) -> None:
        require(self.area[0] <= self.area[1], "crop.area must be two ascending shares within 0..1", self.area)


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
    nesterov: bool = False
    """Nesterov's momentum, for sgd"""
    weight_decay: Annotated[float, at_least(0)] = 0.01
    """of the weights of convolutions and linear layers"""
    bias_lr: Annotated[float, at_least(0)] = 1.0
    """factor of the learning rate for biases (the release's AlexNet: 2)"""
    bias_decay: bool = False
    """decay biases too"""
    clip: Annotated[float, at_least(0)] = 0.0
    """greatest norm of the whole gradient; 0 does not clip"""

    def check(self) -> None:
        has_momentum = self.name == "sgd" and self.momentum > 0
        require(has_momentum or not self.nesterov, "optim.nesterov needs optim.name sgd and a momentum", self.name)


@dataclass
class ScheduleConfig:
    """How the learning rate goes."""

    kind: Literal["constant", "step", "multistep", "poly", "inverse-sqrt", "cosine", "one-cycle"] = "one-cycle"
    """step: × factor every so many steps; multistep: the rates below; poly: (1 - step / steps)^power; inverse-sqrt:
    lr / sqrt(1 + decay · step); cosine: to 0 after a linear warm-up; one-cycle: cosine up, then down to 0"""
    warmup: Annotated[float, below(1)] = 0.3
    """share of the steps that the rate rises (cosine, one-cycle)"""
    milestones: Annotated[list[int], at_least(0)] = field(default_factory=list)
    """multistep: steps at which the rate changes …"""
    rates: Annotated[list[float], at_least(0)] = field(default_factory=list)
    """… and what it changes to, one per milestone"""
    decay: Annotated[float, at_least(0)] = 0.0
    """of inverse-sqrt"""
    every: Annotated[int, at_least(0)] = 0
    """step: steps between changes of the rate …"""
    factor: Annotated[float, above(0, 1)] = 0.1
    """… and what it is multiplied by"""
    power: Annotated[float, above(0, 100)] = 0.9
    """of poly"""
    warmup_steps: Annotated[int, at_least(0)] = 0
    """constant, step, multistep, poly: steps in which the rate rises from a thousandth to all of it"""

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


@dataclass(kw_only=True)
class PlainConfig:
    """Keys that every command takes, for those that have no use for them."""

    seed: Seed = seed()
    """taken as by every command; nothing is drawn at random"""
    device: Device = "auto"
    """taken as by every command; nothing here needs one"""


@dataclass(kw_only=True)
class TrainedConfig:
    """Keys of every command that trains."""

    seed: Seed = seed()
    """of whatever is drawn at random: initial weights, order, augmentation"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


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


def keys(config: Any, prefix: str = "") -> Iterator[tuple[str, Field, Any]]:
    """(dotted name, field, value) of every key, those of groups too."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            yield from keys(value, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, entry, value


def runtime_keys(config: Any) -> set[str]:
    """Dotted names of the keys that a resumed run may change."""
    return {name for name, entry, _ in keys(config) if entry.metadata.get("runtime")}


def of_role(config: Any, role: str) -> dict[str, Any]:
    """Values by dotted name of the keys that have a role ("source", "data", "path", "seed") and are given."""
    found = ((name, value) for name, entry, value in keys(config) if entry.metadata.get("role") == role)
    return {name: value for name, value in found if value not in (None, "", [])}


def sources(config: Any) -> Iterator[tuple[str, Field, str]]:
    """(dotted name, field, source) of every source that a config names; those of a list are numbered from 1."""
    for name, entry, value in keys(config):
        if entry.metadata.get("role") == "source" and value not in (None, "", []):
            listed = value if isinstance(value, list | tuple) else [value]
            for number, one in enumerate(listed, 1):
                if entry.metadata["named"](one):
                    yield f"{name} {number}" if listed is value else name, entry, entry.metadata["named"](one)


def is_to_be_fetched(config: Any) -> bool:
    """Whether a config says that images which are not there are to be fetched."""
    return any(getattr(config, entry.metadata.get("fetched_by") or "", False) for _, entry, _ in keys(config))


def named_paths(config: Any) -> dict[str, list[str]]:
    """The files and folders that a config's path keys name, by key, less what names something of the package."""
    packaged = {name: entry.metadata["packaged"] for name, entry, _ in keys(config) if "packaged" in entry.metadata}
    found = {}
    fetched = {
        name for name, entry, _ in keys(config) if getattr(config, entry.metadata.get("fetched_by") or "", False)
    }
    for name, value in of_role(config, "path").items():
        if name in fetched:
            continue
        listed = value if isinstance(value, list | tuple) else [value]
        found[name] = [one for one in listed if one not in packaged[name]]
    return found


def science(config: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What tells runs apart besides their backbone, images, files and seed, by dotted name.

    Args:
        config: its keys.
        stored: their values, ``auto`` settled, as a run's ``config.yaml`` has them.
    """
    apart = {
        name
        for name, entry, value in keys(config)
        if entry.metadata.get("runtime")
        or (entry.metadata.get("role") and value not in entry.metadata.get("packaged", ()))
    }
    return {name: value for name, value in flatten(stored).items() if name not in apart}


def with_keys(config: Any, given: Mapping[str, Any]) -> Any:
    """A config with other values.

    Args:
        config: a dataclass of keys; it is not changed.
        given: values by key, NumPy and torch numbers included; a key of a group by its dotted name, or by the last part
            if no other group has such a key (``epochs`` is ``train.epochs``). A group may be given whole.

    Raises:
        UserError: no such key, or several of that name.
    """
    names = [name for name, _, _ in keys(config)] + [e.name for e in fields(config) if is_dataclass(e.type)]
    for key, value in given.items():
        if hasattr(value, "tolist"):  # NumPy or torch values
            value = value.tolist()
        elif isinstance(value, range):
            value = list(value)
        meant = [key] if key in names else [name for name in names if name.rpartition(".")[2] == key]
        if len(meant) > 1:
            raise UserError(f"the key {key!r} may be {' or '.join(meant)}: give it as **{{{meant[0]!r}: …}}")
        if not meant:
            close = get_close_matches(key, [*names, *(name.rpartition(".")[2] for name in names)], 1)
            raise UserError(f"no key {key!r}" + (f"; did you mean {close[0]}?" if close else ""))
        group, _, inner = meant[0].rpartition(".")
        if isinstance(value, Mapping) and is_dataclass(getattr(config, meant[0], None)):
            group, changed = meant[0], with_keys(getattr(config, meant[0]), value)
        elif group:
            changed = with_keys(getattr(config, group), {inner: value})
        else:
            group, changed = inner, value
        config = replace(config, **{group: changed})
    return config


def renamed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A config's keys by the names that they have now."""
    tree = dict(tree)
    for old, new in RENAMED.items():
        group, _, key = old.partition(".")
        inner = tree.get(group)
        if isinstance(inner, Mapping) and key in inner:
            tree[group] = {(new.partition(".")[2] if name == key else name): value for name, value in inner.items()}
    return tree


def defaults(config: Any) -> dict[str, Any]:
    """Default values by dotted name, tuples as lists, of the keys that have one; of a key that older files lack, what
    was done before there was it (``before`` in its metadata)."""
    found: dict[str, Any] = {}
    for name, entry, _ in keys(config):
        if entry.default_factory is not MISSING or entry.default is not MISSING:
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            found[name] = entry.metadata.get("before", default)
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
