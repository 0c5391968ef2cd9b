"""The figures of PASCAL VOC, each exact, vectorised, and weighted by image so that it can be bootstrapped.

Weights are (R, n): R resamples of n items; every function gives R figures at once.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import csr_array

from transfer.boxes import overlaps

Kind = Literal["sum", "11-point", "envelope"]


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, kind: Kind = "sum") -> np.ndarray:
    """Average precision of a ranking.

    Args:
        scores: (n,), higher ranks first; equal ones are taken together.
        positive: (n,) bool.
        weights: (R, n).
        kind: "sum": precisions weighted by the steps of recall, as scikit-learn has it since 0.19; "11-point": the mean
            of the greatest precision at recalls of at least 0, .1, … 1 (VOC 2007); "envelope": the area under the
            precision made monotone (VOC 2010 on; VISSL).

    Returns:
        (R,) float64; NaN where no positive has weight.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)[: len(order)]
    return _area(positive[order], ends, weights.T[order], (weights * positive).sum(1), kind)


def _area(hits: np.ndarray, ends: np.ndarray, weights: np.ndarray, total: np.ndarray, kind: Kind) -> np.ndarray:
    """The area of a ranking.

    Args:
        hits: (n,) bool, from the best rank on.
        ends: (n,) bool, whether no equal score follows.
        weights: (n, R).
        total: (R,) weight of all there is to find.
        kind: see :func:`average_precision`.

    Only ranks at which something is found move any of the three areas: runs of others are added up at once.
    """
    groups = np.cumsum(ends) - ends  # of equal scores
    found = np.zeros(int(groups[-1]) + 1 if len(groups) else 0, bool)
    np.logical_or.at(found, groups, hits)
    stops = np.flatnonzero(ends)[found] + 1  # just behind every group in which something is found
    if not len(stops):
        return np.where(total > 0, 0.0, np.nan)
    starts = np.append(0, stops[:-1])
    seen = np.cumsum(np.add.reduceat(weights[: stops[-1]], starts, axis=0), 0)
    right = np.cumsum(np.add.reduceat(weights[: stops[-1]] * hits[: stops[-1], None], starts, axis=0), 0)
    return _under(seen, right, total, kind)


def _under(seen: np.ndarray, right: np.ndarray, total: np.ndarray, kind: Kind) -> np.ndarray:
    """The area under a curve.

    Args:
        seen, right: (H, R), summed weights of what is ranked, and of what is found, at each of H ranks.
        total: (R,) weight of all there is to find.
        kind: see :func:`average_precision`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(seen > 0, right / np.maximum(seen, 1e-300), 0.0)
        recall = right / total
    if kind != "sum":
        precision = np.maximum.accumulate(precision[::-1], 0)[::-1]
    if kind == "11-point":
        area = np.mean([np.where(recall >= level, precision, 0.0).max(0) for level in np.arange(11) / 10], 0)
    else:
        area = (np.diff(recall, axis=0, prepend=0.0) * precision).sum(0)
    return np.where(total > 0, area, np.nan)


def tie_against(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Scores in which a positive loses a tie: score − 1e-5 · label, as the published figures have it."""
    return scores.astype(np.float64) - 1e-5 * positive


@dataclass(frozen=True)
class Matches:
    """Detections of one class against the truth, the best-scored first.

    Attributes:
        scores: (D,) of the detections that count.
        images: (D,) which image each is of.
        hits: (D,) bool, whether it found an object that no better one had found.
        positives: (n,) objects to be found, by image; difficult ones are none.
    """

    scores: np.ndarray
    images: np.ndarray
    hits: np.ndarray
    positives: np.ndarray


@dataclass(frozen=True)
class Overlaps:
    """Detections of one class, the best-scored first, each beside the object that it overlaps most; of equal scores
    those of the first image come first.

    Attributes:
        scores: (D,).
        images: (D,) which image each is of.
        overlaps: (D,) float64, intersection over union with that object; 0 where there is none.
        objects: (D,) int64, its number among all.
        hard: (D,) bool, whether it is difficult.
        positives: (n,) objects to be found, by image.
    """

    scores: np.ndarray
    images: np.ndarray
    overlaps: np.ndarray
    objects: np.ndarray
    hard: np.ndarray
    positives: np.ndarray

    def matches(self, iou: float = 0.5) -> Matches:
        """Which detections are right, as the VOC devkit has it: the best-scored one that overlaps an object enough
        finds it, others are wrong, and those on difficult objects do not count."""
        enough = self.overlaps >= iou
        right = np.flatnonzero(enough & ~self.hard)
        _, first = np.unique(self.objects[right], return_index=True)
        hits = np.zeros(len(enough), bool)
        hits[right[first]] = True
        counts = ~(enough & self.hard)
        return Matches(self.scores[counts], self.images[counts], hits[counts], self.positives)


def best_objects(boxes: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The object that each box overlaps most: (D, 4), (G, 4) → overlaps (D,) and places (D,), 0 where there is none."""
    if not len(truths):
        return np.zeros(len(boxes)), np.zeros(len(boxes), np.int64)
    shared = overlaps(boxes, truths)
    return shared.max(1), shared.argmax(1)


def detection_ap(matches: Matches, weights: np.ndarray, *kinds: Kind) -> list[np.ndarray]:
    """Average precisions of detections: (R,) for each kind, from image weights (R, n); NaN where there is nothing to
    find.

    Detections of equal scores are ranked by image, as the devkit's sort leaves them: each is a rank of its own. Between
    two that find something, others are counted by image, so that no array has a row a detection.
    """
    total = weights @ matches.positives.astype(np.float64)
    hits, images = matches.hits, matches.images
    finds = np.flatnonzero(hits)
    if not len(finds):
        return [np.where(total > 0, 0.0, np.nan) for _ in kinds]
    images, gaps = images[: finds[-1] + 1], np.cumsum(hits[: finds[-1] + 1]) - hits[: finds[-1] + 1]
    counts = csr_array((np.ones(len(images)), (gaps, images)), (len(finds), weights.shape[1]))
    seen = np.cumsum(counts @ weights.T, 0)
    right = np.cumsum(weights.T[images[finds]], 0)
    return [_under(seen, right, total, kind) for kind in kinds]


def segmentation_figures(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """The four figures of fully convolutional nets (Long et al., 2015).

    Args:
        confusions: (R, K, K) pixels by true and predicted class, summed over images.

    Returns:
        ``mean_iu``, ``pixel_accuracy``, ``mean_accuracy``, ``fw_iu`` (R,), and ``iu`` (R, K); means are over classes
        that occur (in the truth or the prediction for IU, in the truth for accuracy).
    """
    right = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    true, predicted = confusions.sum(2), confusions.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        iu = right / (true + predicted - right)
        accuracy, share = right / true, true / true.sum(1, keepdims=True)
        return {
            "mean_iu": _mean_of_numbers(iu),
            "pixel_accuracy": right.sum(1) / true.sum(1),
            "mean_accuracy": _mean_of_numbers(accuracy),
            "fw_iu": np.where(true > 0, share * iu, 0.0).sum(1),
            "iu": iu,
        }


def _mean_of_numbers(values: np.ndarray) -> np.ndarray:
    """(R, K) → (R,), without those that are none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(1) / known.sum(1)
