"""Scores of trivial baselines, printed below a protocol's results for reference."""

import numpy as np

from crosschannel.runs.result import Ragged, Rows
from transfer.pascal.annotations import IGNORED, POSITIVE
from transfer.pascal.segmentation import sum_confusions


def majority_class(rows: Rows) -> str:
    """Describe the accuracy of always predicting the most frequent class; ``labels`` (n,) has one class per image."""
    counts = np.bincount(rows["labels"])
    return f"baseline (majority class): {100 * counts.max() / counts.sum():.1f} %"


def random_ranking(rows: Rows) -> str:
    """Describe the mAP of a random ranking of the images per class; ``labels`` (n, K) has one column per class.

    The expected average precision of a random ranking tends to the fraction of positives.
    """
    fractions = [
        (labels == POSITIVE).sum() / (labels != IGNORED).sum() for labels in rows["labels"].T if POSITIVE in labels
    ]
    return f"baseline (random ranking): about {100 * np.mean(fractions):.1f} % mAP"


def constant_class(rows: Rows) -> str:
    """Describe the mean IU of predicting the most frequent class at every pixel; the rows hold one confusion matrix per
    image."""
    column = next(column for column in rows.values() if isinstance(column, Ragged))
    pixels = sum_confusions(column, np.ones((1, len(column))), len(rows["classes"]))[0].sum(1)
    iou = pixels.max() / pixels.sum() / np.count_nonzero(pixels)
    return f"baseline (majority class at every pixel): {100 * iou:.1f} % mean IU"
