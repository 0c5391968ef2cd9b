"""Images with one label each, for probes and nearest neighbours: parts that agree about their classes."""

from typing import Any

import numpy as np

from crosschannel.data import ImageSet, open_images
from crosschannel.errors import UserError
from transfer.protocol import Data, Split


def open_labelled(data: Data, config: Any) -> Split:
    """Open labelled data and check it.

    Args:
        data: a value of ``--data``, or (training, validation) image sets.
        config: its ``val_share`` is held out where there is no val/.

    Raises:
        UserError: images without a class, fewer than two classes, or a class that only validation has.
    """
    if isinstance(data, Split):
        return data
    train, val = open_images(data, config.val_share) if isinstance(data, str) else data
    source = data if isinstance(data, str) else "images from memory"
    for part, images in (("training", train), ("validation", val)):
        _check_labels(part, images, in_folders=isinstance(data, str))
    known = np.unique(train.labels)
    if len(known) < 2:
        raise UserError(f"the training images of {source!r} are of one class only; a classifier needs two")
    count = max(len(train.classes), int(known[-1]) + 1)
    classes = train.classes if len(train.classes) == count else tuple(str(i) for i in range(count))
    unseen = np.setdiff1d(val.labels, known)
    if len(unseen):
        name = val.classes[unseen[0]] if unseen[0] < len(val.classes) else unseen[0]
        raise UserError(f"the validation images have the class {name!r}, which the training images lack")
    return Split(train, val, tuple(classes), source)


def _check_labels(part: str, images: ImageSet, in_folders: bool) -> None:
    if np.ndim(images.labels) != 1:
        raise UserError(f"labels of {part} images must be one class number each, (n,), got {np.shape(images.labels)}")
    unlabelled = np.flatnonzero(images.labels < 0)
    if len(unlabelled):
        remedy = "labels count from 0"
        if in_folders:
            remedy = "classes are folders (train/CLASS/…, val/CLASS/…), in shards KEY.cls; KEY.json is not read"
        raise UserError(
            f"{len(unlabelled)} of {len(images)} {part} images have no class, the first is "
            f"{images.names[int(unlabelled[0])]}; {remedy}"
        )
