"""Metrics of PASCAL VOC: exact, vectorised, and weighted by image to support bootstrapping.

Weights are (R, n): R resamples of n items. Each function computes its metrics for all R resamples at once.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import csr_array

from transfer.boxes import overlaps

Kind = Literal["sum", "11-point", "envelope"]


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, kind: Kind = "sum") -> np.ndarray:
    """Compute the average precision of a ranking.

    Args:
        scores: (n,) scores; the highest has the best rank, and items with equal scores share a rank.
        positive: (n,) bool.
        weights: (R, n) item weights.
        kind: "sum": precisions weighted by the increments of recall, like scikit-learn since 0.19; "11-point": mean of
            the maximum precision at recall ≥ 0, .1, … 1 (VOC 2007); "envelope": area under the monotone envelope of the
            precision (VOC 2010 and later; VISSL).

    Returns:
        (R,) float64; NaN if the total weight of the positives is 0.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.diff(scores[order]) != 0, True)[: len(order)]
    return _ranking_area(positive[order], ends, weights.T[order], (weights * positive).sum(1), kind)


def _ranking_area(hits: np.ndarray, ends: np.ndarray, weights: np.ndarray, total: np.ndarray, kind: Kind) -> np.ndarray:
    """Compute the average precision of a sorted ranking.

    Ranks without a positive do not change the area for any ``kind``, so their weights are added to the next hit.

    Args:
        hits: (n,) bool, whether each item is a positive, best rank first.
        ends: (n,) bool, whether each item is the last of its tie group.
        weights: (n, R) item weights.
        total: (R,) weight of all positives.
        kind: see :func:`average_precision`.
    """
    tie_groups = np.cumsum(ends) - ends
    has_hit = np.zeros(int(tie_groups[-1]) + 1 if len(tie_groups) else 0, bool)
    np.logical_or.at(has_hit, tie_groups, hits)
    stops = np.flatnonzero(ends)[has_hit] + 1  # end of each tie group that contains a hit
    if not len(stops):
        return np.where(total > 0, 0.0, np.nan)
    starts = np.append(0, stops[:-1])
    ranked = np.cumsum(np.add.reduceat(weights[: stops[-1]], starts, axis=0), 0)
    true_positives = np.cumsum(np.add.reduceat(weights[: stops[-1]] * hits[: stops[-1], None], starts, axis=0), 0)
    return _curve_area(ranked, true_positives, total, kind)


def _curve_area(ranked: np.ndarray, true_positives: np.ndarray, total: np.ndarray, kind: Kind) -> np.ndarray:
    """Compute the area under a precision-recall curve.

    Args:
        ranked, true_positives: (H, R) cumulative weights of all items and of the positives, at each of H ranks.
        total: (R,) weight of all positives.
        kind: see :func:`average_precision`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(ranked > 0, true_positives / np.maximum(ranked, 1e-300), 0.0)
        recall = true_positives / total
    if kind != "sum":
        precision = np.maximum.accumulate(precision[::-1], 0)[::-1]
    if kind == "11-point":
        area = np.mean([np.where(recall >= level, precision, 0.0).max(0) for level in np.arange(11) / 10], 0)
    else:
        area = (np.diff(recall, axis=0, prepend=0.0) * precision).sum(0)
    return np.where(total > 0, area, np.nan)


def break_ties_against_positives(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Rank positives below negatives with equal scores: score − 1e-5 · label, as for the published results."""
    return scores.astype(np.float64) - 1e-5 * positive


@dataclass(frozen=True)
class Matches:
    """Detections of one class matched to the ground truth, in descending order of score.

    Attributes:
        scores: (D,) scores; detections of difficult objects are excluded.
        images: (D,) image indices.
        hits: (D,) bool, whether the detection is a true positive, i.e. the first to match its object.
        positives: (n,) number of objects per image, not counting difficult ones.
    """

    scores: np.ndarray
    images: np.ndarray
    hits: np.ndarray
    positives: np.ndarray


@dataclass(frozen=True)
class Overlaps:
    """Detections of one class, each with the object of highest IoU, in descending order of score, then by image.

    Attributes:
        scores: (D,) scores.
        images: (D,) image indices.
        overlaps: (D,) float64, IoU with the object; 0 if the detection overlaps no object.
        objects: (D,) int64, index of the object among the objects of all images.
        difficult: (D,) bool, whether the object is difficult.
        positives: (n,) number of objects per image, not counting difficult ones.
    """

    scores: np.ndarray
    images: np.ndarray
    overlaps: np.ndarray
    objects: np.ndarray
    difficult: np.ndarray
    positives: np.ndarray

    def matches(self, iou: float = 0.5) -> Matches:
        """Match detections to objects by the rule of the VOC devkit.

        For each object, the highest-scoring detection with an IoU of at least ``iou`` is a true positive. Detections of
        difficult objects are ignored, and all others are false positives.
        """
        overlapping = self.overlaps >= iou
        candidates = np.flatnonzero(overlapping & ~self.difficult)
        _, first = np.unique(self.objects[candidates], return_index=True)
        hits = np.zeros(len(overlapping), bool)
        hits[candidates[first]] = True
        counted = ~(overlapping & self.difficult)
        return Matches(self.scores[counted], self.images[counted], hits[counted], self.positives)


def best_objects(boxes: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest IoU of each box (D, 4) with the objects (G, 4), and the index of that object, (D,) each.

    Both are 0 if there are no objects.
    """
    if not len(truths):
        return np.zeros(len(boxes)), np.zeros(len(boxes), np.int64)
    ious = overlaps(boxes, truths)
    return ious.max(1), ious.argmax(1)


def detection_ap(matches: Matches, weights: np.ndarray, *kinds: Kind) -> list[np.ndarray]:
    """Compute the average precision of detections, in several variants.

    As in the devkit, every detection has its own rank, and equal scores are ranked by image. Detections between
    two hits are counted per image, which avoids an array with one row per detection.

    Args:
        matches: matched detections of one class.
        weights: (R, n) image weights.
        kinds: variants of average precision, see :func:`average_precision`.

    Returns:
        an array (R,) for each kind; NaN if the total weight of the positives is 0.
    """
    total = weights @ matches.positives.astype(np.float64)
    hits, images = matches.hits, matches.images
    hit_ranks = np.flatnonzero(hits)
    if not len(hit_ranks):
        return [np.where(total > 0, 0.0, np.nan) for _ in kinds]
    images, hit_indices = images[: hit_ranks[-1] + 1], np.cumsum(hits[: hit_ranks[-1] + 1]) - hits[: hit_ranks[-1] + 1]
    counts = csr_array((np.ones(len(images)), (hit_indices, images)), (len(hit_ranks), weights.shape[1]))
    ranked = np.cumsum(counts @ weights.T, 0)
    true_positives = np.cumsum(weights.T[images[hit_ranks]], 0)
    return [_curve_area(ranked, true_positives, total, kind) for kind in kinds]


def segmentation_metrics(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the segmentation metrics of fully convolutional networks (Long et al., CVPR 2015).

    Args:
        confusions: (R, K, K) pixel counts by true and predicted class, summed over images.

    Returns:
        ``mean_iu``, ``pixel_accuracy``, ``mean_accuracy``, ``fw_iu`` (R,), and ``iu`` (R, K). Means are over the
        classes in the ground truth or the prediction for IU, and over those in the ground truth for accuracy.
    """
    correct = np.diagonal(confusions, axis1=1, axis2=2).astype(np.float64)
    true, predicted = confusions.sum(2), confusions.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        iu = correct / (true + predicted - correct)
        accuracy, frequency = correct / true, true / true.sum(1, keepdims=True)
        return {
            "mean_iu": _nanmean(iu),
            "pixel_accuracy": correct.sum(1) / true.sum(1),
            "mean_accuracy": _nanmean(accuracy),
            "fw_iu": np.where(true > 0, frequency * iu, 0.0).sum(1),
            "iu": iu,
        }


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Average over classes, (R, K) → (R,), ignoring NaN. Unlike np.nanmean, do not warn about all-NaN rows."""
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(valid, values, 0.0).sum(1) / valid.sum(1)
