"""Labelled images for a protocol: training and validation sets that agree about their classes."""

from dataclasses import dataclass

import numpy as np

from crosschannel.data import ImageSet, open_images
from crosschannel.errors import UserError


@dataclass
class LabelledData:
    """Training and validation images with labels.

    Attributes:
        train, val: the images.
        classes: names by label.
        source: what the user named.
    """

    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    source: str


def open_labelled(data: str | tuple[ImageSet, ImageSet], val_share: float = 0.05) -> LabelledData:
    """Open labelled data and check it.

    Args:
        data: what ``--data`` takes, or a pair of image sets.
        val_share: share held out where there is no val/.

    Raises:
        UserError: images without a class, fewer than two classes, or a class that only validation has.
    """
    train, val = open_images(data, val_share) if isinstance(data, str) else data
    source = data if isinstance(data, str) else "images from memory"
    for part, images in (("training", train), ("validation", val)):
        unlabelled = np.flatnonzero(images.labels < 0)
        if len(unlabelled):
            raise UserError(
                f"{len(unlabelled)} of {len(images)} {part} images have no class, the first is "
                f"{images.names[int(unlabelled[0])]}; a folder a class is needed: train/CLASS/…, val/CLASS/…"
            )
    known = np.unique(train.labels)
    if len(known) < 2:
        raise UserError(f"the training images of {source!r} are of one class only; a classifier needs two")
    count = max(len(train.classes), int(known[-1]) + 1)
    classes = train.classes if len(train.classes) == count else tuple(str(i) for i in range(count))
    unseen = np.setdiff1d(val.labels, known)
    if len(unseen):
        name = val.classes[unseen[0]] if unseen[0] < len(val.classes) else unseen[0]
        raise UserError(f"the validation images have the class {name!r}, which the training images lack")
    return LabelledData(train, val, tuple(classes), source)
