"""From what a user names (`--data`) to training and validation images."""

import os

import numpy as np

from crosschannel.console import print_stderr
from crosschannel.data.datasets import kind_of
from crosschannel.data.images import ImageSet, Subset
from crosschannel.errors import UserError


def open_images(data: str, val_share: float = 0.05) -> tuple[ImageSet, ImageSet]:
    """Training and validation images of a data source.

    Args:
        data: a folder of any depth (the raw ILSVRC layout and subfolders named like splits, such as ``train`` and
            ``val``, are recognised), tar shards (a folder of them, one file or a brace pattern; http too),
            ``builtin:sample``, ``torchvision:imagenette``, or ``package.module:function``; see
            :data:`crosschannel.data.datasets.DATASETS`.
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
    copy = staged_path(data)
    train, val, summary = kind_of(copy).open(copy)
    if not len(train):
        raise UserError(f"no images in {data!r}: none of its files ends in .jpg, .png, .webp, .bmp, .tif or .gif")
    if summary and os.environ.get("RANK", "0") == "0":
        print_stderr(f"{data}: {summary}")
    return train, val


def staged_path(data: str) -> str:
    """The same data on this machine's own disk, where the launcher has copied it there."""
    named, _, copy = os.environ.get("CROSSCHANNEL_STAGED_DATA", "").partition("\n")
    return copy if copy and data == named else data
