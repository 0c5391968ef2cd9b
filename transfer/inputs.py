"""Arguments of a call from Python: what each may be, and one sentence for whatever else it is."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from crosschannel.data.memory import as_image_set, holds_images, is_image_set
from crosschannel.data.open import hold_out
from crosschannel.errors import UserError, describe
from crosschannel.runs.result import Result, load_result

if TYPE_CHECKING:
    from crosschannel.data import ImageSet
    from transfer.config import MeasureConfig
    from transfer.protocol import Protocol


def as_text(value: Any, what: str, more: str = "") -> str:
    """A string, or a path as one.

    Args:
        value: the argument.
        what: what is taken, in words.
        more: of the message.

    Raises:
        UserError: anything else.
    """
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    raise UserError(f"{what}, got {describe(value)}{more}")


def as_source(backbone: Any, name: str) -> str | nn.Module:
    """A backbone: its source, or the module itself."""
    if isinstance(backbone, nn.Module):
        return backbone
    return as_text(
        backbone, f"{name} takes a backbone: a source (a string or a path), a crosschannel.Backbone or an nn.Module"
    )


def as_layers(layers: str | Sequence[str]) -> str:
    """Layers as the key ``layer`` has them."""
    if isinstance(layers, str):
        return layers
    if isinstance(layers, list | tuple) and layers and all(isinstance(layer, str) for layer in layers):
        return ",".join(layers)
    raise UserError(f"layers are a name, a pattern such as conv*, or a list of these, got {describe(layers)}")


def as_out(out: Any) -> Path | None:
    """A run folder."""
    return None if out is None else Path(as_text(out, "out takes a folder (a string or a path) or None"))


def check_recipe(config: Any, kind: type["MeasureConfig"], name: str) -> "MeasureConfig | str | None":
    """What a call takes as its config."""
    if config is None or isinstance(config, kind):
        return config
    return as_text(
        config, f"{name} takes as config a packaged one's name, a YAML file or a {kind.__name__}", "; keys are keywords"
    )


def as_data(data: Any, protocol: "Protocol", config: "MeasureConfig") -> "str | tuple[ImageSet, ImageSet]":
    """Images that are named, or that are there: (training, test) image sets.

    Args:
        data: what a caller gives.
        protocol: that is to measure on them.
        config: its ``val_share`` of images that come as one set is held out, where it has this key.

    Raises:
        UserError: it is nothing that the protocol takes.
    """
    if isinstance(data, str | os.PathLike):
        return as_text(data, "")
    is_pair = isinstance(data, list | tuple) and len(data) == 2
    if is_pair and all(map(is_image_set, data)):
        return tuple(data)
    if not protocol.annotations:
        if is_pair and all(map(holds_images, data)):
            return _pair(*data)
        if holds_images(data) and hasattr(config, "val_share"):
            return hold_out(as_image_set(data), config.val_share, "the data")
    raise UserError(f"{_taken(protocol, config)}, got {_described(data)}")


def _pair(train: Any, test: Any) -> tuple["ImageSet", "ImageSet"]:
    parts = ("images", "images") if train is test else ("training images", "test images")
    return as_image_set(train, parts[0]), as_image_set(test, parts[1])


def _taken(protocol: "Protocol", config: "MeasureConfig") -> str:
    """What a protocol takes as data, in words."""
    if protocol.annotations:
        return f"{protocol.name} takes as data a folder, or (training, test) ImageSets {protocol.annotations}"
    whole = " (or one set, which val_share splits)" if hasattr(config, "val_share") else ""
    return (
        f"{protocol.name} takes as data a source, or (training, test){whole}, each (images, labels), a map-style "
        "Dataset of (image, label) or an ImageSet"
    )


def _described(data: Any) -> str:
    if isinstance(data, list | tuple) and len(data) < 5:
        return f"({', '.join(_described(part) for part in data)})"
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        return f"{describe(data)} (give its .dataset)"
    return describe(data)


def as_result(run: Any) -> Result:
    """A result, or the finished run folder that holds it."""
    if isinstance(run, Result):
        return run
    return load_result(as_text(run, "compare takes two Results or finished run folders"))
