"""Training and validation images with one class per image, for protocols on frozen features."""

from typing import Any

import numpy as np

from crosschannel.data import ImageSet, open_images
from crosschannel.errors import UserError
from transfer.protocol import Data, Split


def open_labelled(data: Data, config: Any) -> Split:
    """Open labelled images and check their labels.

    Args:
        data: value of ``--data``, or (training, validation) image sets.
        config: its ``val_share`` is the fraction to hold out for validation if the data has no val/.

    Raises:
        UserError: images lack a class, there are fewer than two classes, or a class occurs only in validation.
    """
    if isinstance(data, Split):
        return data
    train, val = open_images(data, config.val_share) if isinstance(data, str) else data
    source = data if isinstance(data, str) else "images from memory"
    for split, images in (("training", train), ("validation", val)):
        _check_labels(split, images, in_folders=isinstance(data, str))
    known = np.unique(train.labels)
    if len(known) < 2:
        raise UserError(f"the training images of {source!r} are of one class only; a classifier needs at least two")
    count = max(len(train.classes), int(known[-1]) + 1)
    classes = train.classes if len(train.classes) == count else tuple(str(i) for i in range(count))
    unseen = np.setdiff1d(val.labels, known)
    if len(unseen):
        name = val.classes[unseen[0]] if unseen[0] < len(val.classes) else unseen[0]
        raise UserError(f"the validation images have the class {name!r}, which the training images lack")
    return Split(train, val, tuple(classes), source)


def _check_labels(split: str, images: ImageSet, in_folders: bool) -> None:
    if np.ndim(images.labels) != 1:
        raise UserError(
            f"labels of {split} images must be one class index per image, (n,), got {np.shape(images.labels)}"
        )
    unlabelled = np.flatnonzero(images.labels < 0)
    if len(unlabelled):
        hint = "labels count from 0"
        if in_folders:
            hint = "classes are folders (train/CLASS/…, val/CLASS/…) or, in shards, KEY.cls; KEY.json is not read"
        raise UserError(
            f"{len(unlabelled)} of {len(images)} {split} images have no class, such as "
            f"{images.names[int(unlabelled[0])]}; {hint}"
        )
