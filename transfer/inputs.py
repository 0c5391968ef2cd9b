"""Checks and conversions of the arguments of Python calls; wrong types raise a UserError."""

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


def as_text(value: Any, expected: str, hint: str = "") -> str:
    """Convert a string or a path to a string.

    Args:
        value: value to convert.
        expected: start of the error message, which describes the accepted types.
        hint: end of the error message.

    Raises:
        UserError: the value is neither a string nor a path.
    """
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    raise UserError(f"{expected}, got {describe(value)}{hint}")


def as_source(backbone: Any, name: str) -> str | nn.Module:
    """Return the source of a backbone as a string; return a module unchanged."""
    if isinstance(backbone, nn.Module):
        return backbone
    return as_text(
        backbone, f"{name}: backbone must be a source (a string or a path), a crosschannel.Backbone or an nn.Module"
    )


def as_layers(layers: str | Sequence[str]) -> str:
    """Convert layers to a value of the key ``layer``: names or patterns separated by commas."""
    if isinstance(layers, str):
        return layers
    if isinstance(layers, list | tuple) and layers and all(isinstance(layer, str) for layer in layers):
        return ",".join(layers)
    raise UserError(f"layers must be a name, a pattern such as conv*, or a list of these, got {describe(layers)}")


def as_out(out: Any) -> Path | None:
    """Convert a run folder to a path; None stays None."""
    return None if out is None else Path(as_text(out, "out must be a folder (a string or a path) or None"))


def check_recipe(config: Any, kind: type["MeasureConfig"], name: str) -> "MeasureConfig | str | None":
    """Return a config object unchanged; return the name or the file of a config as a string."""
    if config is None or isinstance(config, kind):
        return config
    return as_text(
        config,
        f"{name}: config must be the name of a packaged config, a YAML file or a {kind.__name__}",
        "; pass other keys as keyword arguments",
    )


def as_data(data: Any, protocol: "Protocol", config: "MeasureConfig") -> "str | tuple[ImageSet, ImageSet]":
    """Convert data to a source string, or to (training, test) image sets.

    Args:
        data: value of ``--data``, or images in memory.
        protocol: protocol to run on the data.
        config: config of the protocol; if it has the key ``val_share``, this fraction of a single set is held out.

    Raises:
        UserError: the protocol does not accept the data.
    """
    if isinstance(data, str | os.PathLike):
        return as_text(data, "")
    is_pair = isinstance(data, list | tuple) and len(data) == 2
    if is_pair and all(isinstance(images, ImageSet) for images in data):
        return as_image_set(data[0], "training images"), as_image_set(data[1], "test images")
    if not protocol.annotations:
        if is_pair and all(map(holds_images, data)):
            return _pair(*data)
        if holds_images(data) and hasattr(config, "val_share"):
            return hold_out(as_image_set(data), config.val_share, "the data")
    raise UserError(f"{_accepted_data(protocol, config)}, got {_describe_data(data)}")


def _pair(train: Any, test: Any) -> tuple[ImageSet, ImageSet]:
    names = ("images", "images") if train is test else ("training images", "test images")
    return as_image_set(train, names[0]), as_image_set(test, names[1])


def _accepted_data(protocol: "Protocol", config: "MeasureConfig") -> str:
    """Describe the data that a protocol accepts, as the start of an error message."""
    if protocol.annotations:
        return f"{protocol.name}: data must be a folder, or (training, test) ImageSets {protocol.annotations}"
    single_set = " (or one set, which val_share splits)" if hasattr(config, "val_share") else ""
    return (
        f"{protocol.name}: data must be a source, or (training, test){single_set}, each (images, labels), a map-style "
        "Dataset of (image, label) or an ImageSet"
    )


def _describe_data(data: Any) -> str:
    if isinstance(data, list | tuple) and len(data) < 5:
        return f"({', '.join(_describe_data(element) for element in data)})"
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        return f"{describe(data)} (pass its .dataset)"
    return describe(data)


def as_result(run: Any) -> Result:
    """Return a result unchanged; load the result of a finished run folder."""
    if isinstance(run, Result):
        return run
    return load_result(as_text(run, "compare needs two Results or finished run folders"))
