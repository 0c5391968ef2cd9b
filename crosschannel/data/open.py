"""Open a data source (``--data``) as training and validation images."""

import os

import numpy as np

from crosschannel.console import print_stderr
from crosschannel.data.datasets import kind_of
from crosschannel.data.images import ImageSet, Subset
from crosschannel.errors import UserError


def open_images(data: str, val_share: float = 0.05) -> tuple[ImageSet, ImageSet]:
    """Open the training and validation images of a data source.

    Args:
        data: a folder of any depth (the raw ILSVRC layout and subfolders named after splits, such as ``train`` and
            ``val``, are recognised), tar shards (a folder of shards, a file or a brace pattern, also over http),
            ``builtin:sample``, ``torchvision:imagenette``, or ``package.module:function``; see
            :data:`crosschannel.data.datasets.DATASETS`.
        val_share: fraction of the images held out for validation if the source has no validation images; the selection
            depends only on the image names.

    Raises:
        UserError: the source does not exist, has no images, or has an ambiguous layout.
    """
    train, val = _open(data)
    if val is not None and not len(val):
        raise UserError(f"the validation split of {data!r} has no images")
    return (train, val) if val is not None else hold_out(train, val_share, data)


def open_training_images(data: str) -> ImageSet:
    """Open the training images of a data source, or all images if it has no validation images."""
    return _open(data)[0]


def open_evaluated_images(data: str) -> ImageSet:
    """Open the validation images of a data source, or all images if it has no validation images."""
    train, val = _open(data)
    if val is not None and not len(val):
        raise UserError(f"the validation split of {data!r} has no images")
    return train if val is None else val


def hold_out(images: ImageSet, fraction: float, source: str = "the data") -> tuple[ImageSet, ImageSet]:
    """Split images by a hash of their names into (remaining, held-out) images.

    About ``fraction`` of the images are held out, at least one and never all of them.
    """
    if not 0 < fraction < 1:
        raise UserError(f"val_share must be between 0 and 1, got {fraction}")
    if len(images) < 2:
        raise UserError(f"{source!r} has only one image; at least two are required to hold one out for validation")
    order = np.argsort(images.names.hashes(), kind="stable")
    is_held_out = np.zeros(len(images), bool)
    is_held_out[order[: min(len(images) - 1, max(1, round(fraction * len(images))))]] = True
    return Subset(images, np.flatnonzero(~is_held_out)), Subset(images, np.flatnonzero(is_held_out))


def _open(data: str) -> tuple[ImageSet, ImageSet | None]:
    path = staged_path(data)
    train, val, summary = kind_of(path).open(path)
    if not len(train):
        raise UserError(f"no images in {data!r}: no file ends in .jpg, .png, .webp, .bmp, .tif or .gif")
    if summary and os.environ.get("RANK", "0") == "0":
        print_stderr(f"{data}: {summary}")
    return train, val


def staged_path(data: str) -> str:
    """Return the copy of a data source on the local disk if the launcher has staged one, otherwise the source."""
    source, _, copy = os.environ.get("CROSSCHANNEL_STAGED_DATA", "").partition("\n")
    return copy if copy and data == source else data
