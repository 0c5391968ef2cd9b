"""Checks of the arguments of a call from Python: a wrong type is a UserError of one sentence."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from crosschannel.data.images import ImageSet
from crosschannel.data.memory import as_image_set, holds_images
from crosschannel.data.open import hold_out
from crosschannel.errors import UserError, describe
from crosschannel.runs.result import Result, load_result

if TYPE_CHECKING:
    from transfer.config import MeasureConfig
    from transfer.protocol import Protocol


def as_text(value: Any, what: str, more: str = "") -> str:
    """Return a string, or a path as a string.

    Args:
        value: the argument.
        what: accepted types, as the start of the message.
        more: end of the message.

    Raises:
        UserError: the value is neither a string nor a path.
    """
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    raise UserError(f"{what}, got {describe(value)}{more}")


def as_source(backbone: Any, name: str) -> str | nn.Module:
    """Return the source of a backbone as a string, or the module itself."""
    if isinstance(backbone, nn.Module):
        return backbone
    return as_text(
        backbone, f"{name} takes a backbone: a source (a string or a path), a crosschannel.Backbone or an nn.Module"
    )


def as_layers(layers: str | Sequence[str]) -> str:
    """Return layers as a value of the key ``layer``: names separated by commas."""
    if isinstance(layers, str):
        return layers
    if isinstance(layers, list | tuple) and layers and all(isinstance(layer, str) for layer in layers):
        return ",".join(layers)
    raise UserError(f"layers are a name, a pattern such as conv*, or a list of these, got {describe(layers)}")


def as_out(out: Any) -> Path | None:
    """Return a run folder as a path."""
    return None if out is None else Path(as_text(out, "out takes a folder (a string or a path) or None"))


def check_recipe(config: Any, kind: type["MeasureConfig"], name: str) -> "MeasureConfig | str | None":
    """Return a config, or the name or file of one as a string."""
    if config is None or isinstance(config, kind):
        return config
    return as_text(
        config, f"{name} takes as config a packaged one's name, a YAML file or a {kind.__name__}", "; keys are keywords"
    )


def as_data(data: Any, protocol: "Protocol", config: "MeasureConfig") -> "str | tuple[ImageSet, ImageSet]":
    """Return the name of a source, or (training, test) image sets from memory.

    Args:
        data: the argument.
        protocol: protocol that measures on the images.
        config: if it has the key ``val_share``, this share of a single image set is held out.

    Raises:
        UserError: the protocol does not accept the data.
    """
    if isinstance(data, str | os.PathLike):
        return as_text(data, "")
    is_pair = isinstance(data, list | tuple) and len(data) == 2
    if is_pair and all(isinstance(part, ImageSet) for part in data):
        return as_image_set(data[0], "training images"), as_image_set(data[1], "test images")
    if not protocol.annotations:
        if is_pair and all(map(holds_images, data)):
            return _pair(*data)
        if holds_images(data) and hasattr(config, "val_share"):
            return hold_out(as_image_set(data), config.val_share, "the data")
    raise UserError(f"{_accepted_data(protocol, config)}, got {_describe_data(data)}")


def _pair(train: Any, test: Any) -> tuple[ImageSet, ImageSet]:
    parts = ("images", "images") if train is test else ("training images", "test images")
    return as_image_set(train, parts[0]), as_image_set(test, parts[1])


def _accepted_data(protocol: "Protocol", config: "MeasureConfig") -> str:
    """Return the start of a message: the data that a protocol accepts."""
    if protocol.annotations:
        return f"{protocol.name} takes as data a folder, or (training, test) ImageSets {protocol.annotations}"
    single_set = " (or one set, which val_share splits)" if hasattr(config, "val_share") else ""
    return (
        f"{protocol.name} takes as data a source, or (training, test){single_set}, each (images, labels), a map-style "
        "Dataset of (image, label) or an ImageSet"
    )


def _describe_data(data: Any) -> str:
    if isinstance(data, list | tuple) and len(data) < 5:
        return f"({', '.join(_describe_data(part) for part in data)})"
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        return f"{describe(data)} (give its .dataset)"
    return describe(data)


def as_result(run: Any) -> Result:
    """Return a result, or load that of a finished run folder."""
    if isinstance(run, Result):
        return run
    return load_result(as_text(run, "compare takes two Results or finished run folders"))
