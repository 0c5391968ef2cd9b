"""Kinds of ``--data``, one row each. Does not import torch: the launcher and the hints use it too."""

import fcntl
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosschannel.data.images import ImageSet
from crosschannel.data.layout import open_folder
from crosschannel.data.members import unpacking
from crosschannel.data.remote import is_remote
from crosschannel.data.sample import sample_images
from crosschannel.data.shards import expand, holds_shards, open_shards
from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.factories import entry_point_names, import_object, is_factory
from crosschannel.files import cache_folder, user_path

ENTRY_POINTS = "crosschannel.datasets"  # group of other packages' functions, by the prefix that each opens
TrainVal = tuple[ImageSet, ImageSet | None, str]  # training and validation images, if any, and a line that sums them up


@dataclass(frozen=True)
class DataKind:
    """A kind of data.

    Attributes:
        matches: whether a value of ``--data`` is of this kind; the first match wins.
        open: opens the images.
        paths: the local files and folders that they are read from.
        needs_download: whether opening downloads them into the cache.
        has_classes: whether they are known to have classes.
    """

    matches: Callable[[str], bool]
    open: Callable[[str], TrainVal]
    paths: Callable[[str], list[str]] = lambda data: []
    needs_download: bool = False
    has_classes: Callable[[str], bool] = lambda data: False


def kind_of(data: str) -> DataKind:
    """The first kind that matches a value of ``--data``."""
    return next(kind for kind in DATASETS.values() if kind.matches(data))


def _open_builtin(data: str) -> TrainVal:
    if data != "builtin:sample":
        raise UserError(f"no built-in data {data.removeprefix('builtin:')!r}: there is 'builtin:sample'")
    return *sample_images(), ""


def _open_torchvision(data: str) -> TrainVal:
    return *open_folder(_download(data.removeprefix("torchvision:")))[:2], ""


def _open_function(data: str) -> TrainVal:
    """The return value of a user's function: training images, or a pair of training and validation images."""
    from crosschannel.data.memory import as_image_set, holds_images  # it imports torch

    prefix, _, rest = data.partition(":")
    function = import_object(import_path_of(data))
    with wrap_external_errors(f"{data} failed"):
        value: Any = function(rest) if prefix in entry_point_names(ENTRY_POINTS) else function()
    is_pair = isinstance(value, tuple) and len(value) == 2 and all(map(holds_images, value))
    train, val = value if is_pair else (value, None)
    return as_image_set(train, "train"), None if val is None else as_image_set(val, "val"), ""


def import_path_of(data: str) -> str:
    """The function that a value of ``--data`` names, as module:name; empty if it names none."""
    prefix, colon, _ = data.partition(":")
    if not colon or any(DATASETS[name].matches(data) for name in ("builtin", "torchvision", "remote")):
        return ""
    if user_path(data).exists():
        return ""
    return entry_point_names(ENTRY_POINTS).get(prefix) or (data if is_factory(data) else "")


def _open_files(data: str) -> TrainVal:
    """A folder of images, or local shards."""
    if not data:
        raise UserError("--data is empty")
    path, remedy = user_path(data), unpacking(data)
    if remedy and not path.is_dir():
        raise UserError(f"{data} is compressed: its images cannot be read individually; {remedy}")
    if not path.is_dir() and ("{" in data or data.endswith(".tar")):
        return open_shards(str(path))
    if path.is_file():
        raise UserError(f"{data} is a file: --data takes a folder of images, or tar shards")
    if not path.is_dir():
        raise UserError(f"no data at {data!r}: no such folder")
    if holds_shards(path):
        return open_shards(str(path))
    train, val, summary = open_folder(path)
    if not len(train) and train.listing.left_out():
        hints = [hint for file in sorted(path.iterdir()) if file.is_file() and (hint := unpacking(str(file)))]
        raise UserError("; ".join([f"no images in {data!r}, only {train.listing.left_out()}", *hints[:1]]))
    return train, val, summary


def _open_remote(data: str) -> TrainVal:
    if remedy := unpacking(data):
        raise UserError(f"{data} is compressed: its images cannot be read individually; {remedy}")
    return open_shards(data)


def _download(name: str) -> Path:
    """Imagenette (320 px) through torchvision, into the cache."""
    if name != "imagenette":
        raise UserError(f"no data 'torchvision:{name}': there is 'torchvision:imagenette'")
    from torchvision.datasets import Imagenette

    root = cache_folder() / "imagenette2-320"
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".lock").open("w") as lock:  # one of all ranks downloads, the others wait
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if root.is_dir():
            return root
        part = root.with_suffix(".part")  # renamed when complete
        part.mkdir(exist_ok=True)
        try:
            shutil.rmtree(part / root.name, ignore_errors=True)
            Imagenette(str(part), split="train", size="320px", download=True)
            (part / root.name).rename(root)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(part)
            raise UserError(f"torchvision could not download Imagenette into {part}: {error}") from None
        shutil.rmtree(part)
    return root


DATASETS: dict[str, DataKind] = {
    "builtin": DataKind(lambda data: data.startswith("builtin:"), _open_builtin, has_classes=lambda data: True),
    "torchvision": DataKind(
        lambda data: data.startswith("torchvision:"),
        _open_torchvision,
        needs_download=True,
        has_classes=lambda data: True,
    ),
    "remote": DataKind(is_remote, _open_remote),
    "function": DataKind(lambda data: bool(import_path_of(data)), _open_function),
    "files": DataKind(
        lambda data: True,
        _open_files,
        paths=lambda data: [data] if user_path(data).is_dir() else expand(data),
        has_classes=lambda data: any(user_path(data).glob("train/*/")),
    ),
}
