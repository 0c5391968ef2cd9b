"""What a protocol's figure would be of someone who has not looked at the images: what it is to be read against."""

import numpy as np

from crosschannel.runs.result import Ragged, Rows
from transfer.pascal.annotations import IGNORED, POSITIVE
from transfer.pascal.segmentation import sum_confusions


def majority_class(rows: Rows) -> str:
    """Of images with one class each, ``labels`` (n,)."""
    counts = np.bincount(rows["labels"])
    return f"naming the commonest class every time: {100 * counts.max() / counts.sum():.1f} %"


def random_ranking(rows: Rows) -> str:
    """Of images ranked for every class, ``labels`` (n, K): the share of positives, which a random order's precision
    tends to."""
    shares = [
        (labels == POSITIVE).sum() / (labels != IGNORED).sum() for labels in rows["labels"].T if POSITIVE in labels
    ]
    return f"ranking the images at random: about {100 * np.mean(shares):.1f} % mAP"


def constant_class(rows: Rows) -> str:
    """Of pixels, in confusions of images by true and predicted class."""
    column = next(column for column in rows.values() if isinstance(column, Ragged))
    pixels = sum_confusions(column, np.ones((1, len(column))), len(rows["classes"]))[0].sum(1)
    share = pixels.max() / pixels.sum() / np.count_nonzero(pixels)
    return f"naming the commonest class at every pixel: {100 * share:.1f} % mean IU"
