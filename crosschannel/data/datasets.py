"""The kinds of data sources that ``--data`` accepts.

This module does not import torch, because the job launcher and the code that suggests next commands import it too.
"""

import fcntl
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosschannel.data.images import ImageSet
from crosschannel.data.layout import open_folder
from crosschannel.data.members import unpack_hint
from crosschannel.data.remote import is_remote
from crosschannel.data.sample import sample_images
from crosschannel.data.shards import expand, holds_shards, open_shards
from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.factories import entry_point_names, import_object, is_factory
from crosschannel.files import cache_folder, user_path

ENTRY_POINTS = "crosschannel.datasets"  # entry-point group: prefix of --data → function in another package
TrainVal = tuple[ImageSet, ImageSet | None, str]  # training images, validation images if any, one-line summary


@dataclass(frozen=True)
class DataKind:
    """A kind of data source.

    Attributes:
        matches: returns whether a value of ``--data`` is of this kind; the first match wins.
        open: opens the images of a source.
        paths: returns the local files and folders that contain the images.
        needs_download: whether opening downloads the images into the cache.
        has_classes: returns whether the images are known to have classes.
    """

    matches: Callable[[str], bool]
    open: Callable[[str], TrainVal]
    paths: Callable[[str], list[str]] = lambda data: []
    needs_download: bool = False
    has_classes: Callable[[str], bool] = lambda data: False


def kind_of(data: str) -> DataKind:
    """Return the first kind that matches a value of ``--data``."""
    return next(kind for kind in DATASETS.values() if kind.matches(data))


def _open_builtin(data: str) -> TrainVal:
    if data != "builtin:sample":
        raise UserError(f"unknown built-in dataset {data.removeprefix('builtin:')!r}; available: 'builtin:sample'")
    return *sample_images(), ""


def _open_torchvision(data: str) -> TrainVal:
    return *open_folder(_download(data.removeprefix("torchvision:")))[:2], ""


def _open_function(data: str) -> TrainVal:
    """Call a user-defined function, which returns training images or a pair (training images, validation images)."""
    from crosschannel.data.memory import as_image_set, holds_images  # imports torch

    prefix, _, argument = data.partition(":")
    function = import_object(import_path_of(data))
    with wrap_external_errors(f"{data} failed"):
        images: Any = function(argument) if prefix in entry_point_names(ENTRY_POINTS) else function()
    is_pair = isinstance(images, tuple) and len(images) == 2 and all(map(holds_images, images))
    train, val = images if is_pair else (images, None)
    return as_image_set(train, "train"), None if val is None else as_image_set(val, "val"), ""


def import_path_of(data: str) -> str:
    """Return the ``module:name`` of the function that opens a value of ``--data``; empty for other kinds of data."""
    prefix, colon, _ = data.partition(":")
    if not colon or any(DATASETS[name].matches(data) for name in ("builtin", "torchvision", "remote")):
        return ""
    if user_path(data).exists():
        return ""
    return entry_point_names(ENTRY_POINTS).get(prefix) or (data if is_factory(data) else "")


def _open_files(data: str) -> TrainVal:
    """Open a folder of images, or local tar shards."""
    if not data:
        raise UserError("--data is empty")
    path, remedy = user_path(data), unpack_hint(data)
    if remedy and not path.is_dir():
        raise UserError(f"{data} is compressed: its images cannot be read individually; {remedy}")
    if not path.is_dir() and ("{" in data or data.endswith(".tar")):
        return open_shards(str(path))
    if path.is_file():
        raise UserError(f"{data} is a file; --data must be a folder of images, or tar shards")
    if not path.is_dir():
        raise UserError(f"no data at {data!r}: no such folder")
    if holds_shards(path):
        return open_shards(str(path))
    train, val, summary = open_folder(path)
    if not len(train) and train.listing.skipped():
        hints = [hint for file in sorted(path.iterdir()) if file.is_file() and (hint := unpack_hint(str(file)))]
        raise UserError("; ".join([f"no images in {data!r}, only {train.listing.skipped()}", *hints[:1]]))
    return train, val, summary


def _open_remote(data: str) -> TrainVal:
    if remedy := unpack_hint(data):
        raise UserError(f"{data} is compressed: its images cannot be read individually; {remedy}")
    return open_shards(data)


def _download(name: str) -> Path:
    """Download Imagenette (320 px) into the cache with torchvision, and return its folder."""
    if name != "imagenette":
        raise UserError(f"unknown dataset 'torchvision:{name}'; available: 'torchvision:imagenette'")
    from torchvision.datasets import Imagenette

    root = cache_folder() / "imagenette2-320"
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".lock").open("w") as lock:  # one rank downloads while the others wait
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if root.is_dir():
            return root
        partial = root.with_suffix(".part")  # moved to root when complete
        partial.mkdir(exist_ok=True)
        try:
            shutil.rmtree(partial / root.name, ignore_errors=True)
            Imagenette(str(partial), split="train", size="320px", download=True)
            (partial / root.name).rename(root)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(partial)
            raise UserError(f"torchvision could not download Imagenette into {partial}: {error}") from None
        shutil.rmtree(partial)
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
