"""From what a user names (`--data`) to training and validation images."""

import fcntl
import os
import shutil
from pathlib import Path

import numpy as np

from crosschannel.console import say
from crosschannel.data.images import ImageSet, Subset
from crosschannel.data.layout import open_folder
from crosschannel.data.members import unpacking
from crosschannel.data.remote import is_remote
from crosschannel.data.sample import sample_images
from crosschannel.data.shards import holds_shards, open_shards
from crosschannel.errors import UserError
from crosschannel.files import user_path


def cache_folder() -> Path:
    """Where downloads land: ``$CROSSCHANNEL_CACHE``, or ``~/.cache/crosschannel``."""
    return Path(os.environ.get("CROSSCHANNEL_CACHE") or Path.home() / ".cache" / "crosschannel")


def open_images(data: str, val_share: float = 0.05) -> tuple[ImageSet, ImageSet]:
    """Training and validation images of a data source.

    Args:
        data: a folder of any depth (the raw ILSVRC layout and subfolders named like splits, such as ``train`` and
            ``val``, are recognised), tar shards (a folder of them, one file or a brace pattern; http too),
            ``builtin:sample`` or ``torchvision:imagenette``.
        val_share: share of the images held out for validation where the source has no validation images of
            its own; which ones depends on their names alone.

    Raises:
        UserError: no such data, no images in it, or an ambiguous layout.
    """
    train, val = _open(data)
    if val is not None and not len(val):
        raise UserError(f"the validation part of {data!r} has no images")
    return (train, val) if val is not None else hold_out(train, val_share, data)


def open_training_images(data: str) -> ImageSet:
    """The training images alone: all images, where the source has no validation images of its own."""
    return _open(data)[0]


def open_evaluated_images(data: str) -> ImageSet:
    """All validation images of a data source, or all images where it has none of its own: none is held out."""
    train, val = _open(data)
    if val is not None and not len(val):
        raise UserError(f"the validation part of {data!r} has no images")
    return train if val is None else val


def hold_out(images: ImageSet, share: float, what: str = "the data") -> tuple[ImageSet, ImageSet]:
    """Split images by a hash of their names into (the rest, about ``share`` of them, at least one)."""
    if not 0 < share < 1:
        raise UserError(f"val_share must be within 0..1, got {share}")
    if len(images) < 2:
        raise UserError(f"{what!r} has one image only; at least two are needed, to hold one out for validation")
    ranks = np.argsort(images.names.hashes(), kind="stable")
    held = np.zeros(len(images), bool)
    held[ranks[: min(len(images) - 1, max(1, round(share * len(images))))]] = True
    return Subset(images, np.flatnonzero(~held)), Subset(images, np.flatnonzero(held))


def _open(data: str) -> tuple[ImageSet, ImageSet | None]:
    train, val, summary = _find(staged(data))
    if not len(train):
        raise UserError(f"no images in {data!r}: none of its files ends in .jpg, .png, .webp, .bmp, .tif or .gif")
    if summary and os.environ.get("RANK", "0") == "0":
        say(f"{data}: {summary}")
    return train, val


def staged(data: str) -> str:
    """The same data on this machine's own disk, where the launcher has copied it there."""
    named, _, copy = os.environ.get("CROSSCHANNEL_STAGED_DATA", "").partition("\n")
    return copy if copy and data == named else data


def _find(data: str) -> tuple[ImageSet, ImageSet | None, str]:
    """Open training and validation images; also return a line that summarises them."""
    kind, _, name = data.partition(":")
    if data == "builtin:sample":
        return *sample_images(), ""
    if kind == "builtin":
        raise UserError(f"no built-in data {name!r}: there is 'builtin:sample'")
    if kind == "torchvision":
        return *open_folder(_download(name))[:2], ""
    if not data:
        raise UserError("--data is empty")
    remedy = unpacking(data)
    if remedy and (is_remote(data) or not user_path(data).is_dir()):
        raise UserError(f"{data} is compressed: its images cannot be read individually; {remedy}")
    if is_remote(data):
        return open_shards(data)
    path = user_path(data)
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
        part = root.with_suffix(".part")  # renamed once it is whole
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
