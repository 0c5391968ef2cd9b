"""PASCAL's figures against scikit-learn, torchmetrics' definitions, hand-worked cases and brute force."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix

from transfer.boxes import from_voc
from transfer.pascal.detections import class_overlaps, detection_rows
from transfer.pascal.devkit import Objects
from transfer.pascal.metrics import (
    Matches,
    average_precision,
    break_ties_against_positives,
    detection_ap,
    segmentation_metrics,
)

ONE = np.ones((1, 5))


def test_average_precision_is_scikit_learns_with_ties_weights_and_left_out_images():
    generator = np.random.default_rng(0)
    for _ in range(200):
        n = int(generator.integers(2, 150))
        scores, positive = generator.integers(0, 12, n) / 7, generator.random(n) < 0.3
        positive[0] = True
        weights = generator.integers(0, 4, (3, n)).astype(float)
        weights[:, 0] += 1
        counted = generator.random(n) < 0.8
        counted[0] = True
        found = average_precision(scores[counted], positive[counted], weights[:, counted])
        expected = [
            average_precision_score(positive[counted], scores[counted], sample_weight=w[counted]) for w in weights
        ]
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_resample_of_whole_images_is_a_weight():
    generator = np.random.default_rng(1)
    scores, positive = generator.random(60), generator.random(60) < 0.4
    drawn = generator.integers(60, size=60)
    weights = np.bincount(drawn, minlength=60)[None].astype(float)
    for kind in ("sum", "11-point", "envelope"):
        repeated = average_precision(scores[drawn], positive[drawn], np.ones((1, 60)), kind)
        assert average_precision(scores, positive, weights, kind) == pytest.approx(repeated)


def test_hand_worked_eleven_points_and_envelope():
    """Ranks: right, wrong, right, right, wrong, of four positives (one is never found)."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.0])
    positive = np.array([True, False, True, True, False, True])
    ones = np.ones((1, 6))
    # precisions 1, 1/2, 2/3, 3/4, 3/5, 4/6 at recalls 1/4, 1/4, 2/4, 3/4, 3/4, 1
    assert average_precision(scores, positive, ones)[0] == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 6) / 4)
    assert average_precision(scores, positive, ones, "envelope")[0] == pytest.approx((1 + 3 / 4 + 3 / 4 + 4 / 6) / 4)
    # recalls 0, .1, .2 → 1; .3 … .7 → 3/4; .8, .9, 1 → 4/6
    expected = (3 * 1 + 5 * 3 / 4 + 3 * 4 / 6) / 11
    assert average_precision(scores, positive, ones, "11-point")[0] == pytest.approx(expected)


def test_a_tie_goes_against_the_positive():
    scores, positive = np.array([0.5, 0.5, 0.1]), np.array([True, False, False])
    assert average_precision(scores, positive, np.ones((1, 3)))[0] == pytest.approx(0.5)  # taken together
    broken = break_ties_against_positives(scores, positive)
    assert average_precision(broken, positive, np.ones((1, 3)))[0] == pytest.approx(0.5)
    three = np.array([0.5, 0.5, 0.5]), np.array([True, False, False])
    assert average_precision(break_ties_against_positives(*three), three[1], np.ones((1, 3)))[0] == pytest.approx(1 / 3)


def test_nothing_to_find_is_no_number():
    scores = np.array([0.3, 0.2])
    assert np.isnan(average_precision(scores, np.zeros(2, bool), np.ones((1, 2)))[0])
    found = average_precision(scores, np.array([True, False]), np.array([[0.0, 1.0], [1.0, 1.0]]))
    assert np.isnan(found[0]) and found[1] == 1


def devkit_ap(boxes, scores, truths, difficult, eleven):
    """VOCevaldet as its text reads, one detection at a time."""
    ranked = sorted(
        ((s, i, d) for i, image in enumerate(scores) for d, s in enumerate(image)), key=lambda entry: -entry[0]
    )
    found = [np.zeros(len(t), bool) for t in truths]
    npos = sum(int((~hard).sum()) for hard in difficult)
    tp, fp, curve = 0, 0, []
    for _, i, d in ranked:
        best, place = -1.0, -1
        for j, truth in enumerate(truths[i]):
            box = boxes[i][d]
            w = min(box[2], truth[2]) - max(box[0], truth[0]) + 1
            h = min(box[3], truth[3]) - max(box[1], truth[1]) + 1
            if w > 0 and h > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, truth)]
                overlap = w * h / (sum(areas) - w * h)
                if overlap > best:
                    best, place = overlap, j
        if best >= 0.5:
            if difficult[i][place]:
                continue
            if found[i][place]:
                fp += 1
            else:
                tp, found[i][place] = tp + 1, True
        else:
            fp += 1
        curve.append((tp / npos, tp / (tp + fp)))
    if eleven:
        levels = [max((p for r, p in curve if r >= t), default=0.0) for t in np.arange(11) / 10]
        return sum(levels) / 11
    area, before = 0.0, 0.0
    for k, (recall, _) in enumerate(curve):
        area += (recall - before) * max(p for _, p in curve[k:])
        before = recall
    return area


def matches_of(boxes, scores, truths, difficult):
    """Of one class, boxes as the devkit's files have them."""
    found = [np.hstack([np.zeros((len(b), 1)), s[:, None], from_voc(b)]) for b, s in zip(boxes, scores, strict=True)]
    objects = [Objects(t, np.zeros(len(t), np.int64), d) for t, d in zip(truths, difficult, strict=True)]
    return class_overlaps(detection_rows([str(i) for i in range(len(boxes))], ("x",), found, objects), 0).matches()


def test_detections_of_weighted_images_are_those_of_images_that_are_repeated():
    generator = np.random.default_rng(5)
    matches = Matches(
        np.sort(generator.random(300))[::-1],
        generator.integers(0, 9, 300),
        generator.random(300) < 0.3,
        generator.integers(9, 20, 9),
    )
    weights = generator.integers(0, 4, (6, 9)).astype(float)
    for row, *found in zip(weights, *detection_ap(matches, weights, "11-point", "envelope"), strict=True):
        ranked = sorted(zip(-matches.scores, matches.images, matches.hits, strict=True))
        seen = np.cumsum([row[image] for _, image, _ in ranked])
        right = np.cumsum([row[image] * hit for _, image, hit in ranked])
        recall, precision = right / (row @ matches.positives), right / np.maximum(seen, 1e-9)
        best = [precision[k:].max() for k in range(len(ranked))]
        levels = [max((p for r, p in zip(recall, best, strict=True) if r >= k / 10), default=0) for k in range(11)]
        assert found == pytest.approx([np.mean(levels), np.sum(np.diff(recall, prepend=0) * best)])


def test_detection_ap_is_the_devkits():
    generator = np.random.default_rng(2)
    for _ in range(30):
        boxes, scores, truths, difficult = [], [], [], []
        for _ in range(8):
            corners = generator.integers(1, 40, (int(generator.integers(0, 5)), 2))
            truth = np.hstack((corners, corners + generator.integers(5, 40, corners.shape))).astype(float)
            jitter = generator.integers(-6, 7, (2 * len(truth), 4))
            noise = np.hstack((c := generator.integers(1, 60, (3, 2)), c + generator.integers(1, 30, (3, 2))))
            found = np.vstack((np.repeat(truth, 2, 0) + jitter, noise)).astype(float)
            found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
            boxes.append(found)
            scores.append(generator.permutation(1000)[: len(found)] / 1000 + len(boxes) / 1e5)
            truths.append(truth)
            difficult.append(generator.random(len(truth)) < 0.25)
        if not sum(int((~hard).sum()) for hard in difficult):
            continue
        matches = matches_of(boxes, scores, truths, difficult)
        found = detection_ap(matches, np.ones((1, 8)), "11-point", "envelope")
        for (ap,), eleven in zip(found, (True, False), strict=True):
            assert ap == pytest.approx(devkit_ap(boxes, scores, truths, difficult, eleven))


def test_an_object_is_found_once_and_a_difficult_one_never_counts():
    truth, hard = np.array([[1.0, 1, 10, 10], [21, 21, 30, 30]]), np.array([False, True])
    boxes = np.array([[1.0, 1, 10, 10], [1, 1, 10, 9], [21, 21, 30, 30], [50, 50, 60, 60]])
    matches = matches_of([boxes], [np.array([0.9, 0.8, 0.7, 0.6])], [truth], [hard])
    assert matches.hits.tolist() == [True, False, False] and matches.scores.tolist() == [0.9, 0.8, 0.6]
    assert matches.positives.tolist() == [1] and detection_ap(matches, np.ones((1, 1)), "11-point")[0] == 1


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Pixels by (true class, predicted class): (classes, classes); those labelled 255 are left out."""
    counted = truth != 255
    return confusion_matrix(truth[counted], predicted[counted], labels=range(classes))


def test_segmentation_figures_are_those_of_their_definitions():
    generator = np.random.default_rng(3)
    truth, predicted = generator.integers(0, 6, (5, 40, 30)), generator.integers(0, 6, (5, 40, 30))
    truth[truth == 4] = 3  # a class that is predicted and never true
    truth[generator.random(truth.shape) < 0.1] = 255
    counted = truth != 255
    matrix = confusion(truth, predicted, 7)
    assert (matrix == confusion_matrix(truth[counted], predicted[counted], labels=range(7))).all()
    found = segmentation_metrics(matrix[None])
    ious, accuracies, shares = [], [], []
    for k in range(7):
        t, p = (truth == k) & counted, (predicted == k) & counted
        if (t | p).any():
            ious.append((t & p).sum() / (t | p).sum())
        if t.any():
            accuracies.append((t & p).sum() / t.sum())
            shares.append(t.sum() / counted.sum() * (t & p).sum() / (t | p).sum())
    assert found["mean_iu"][0] == pytest.approx(np.mean(ious)) and len(ious) == 6
    assert found["mean_accuracy"][0] == pytest.approx(np.mean(accuracies))
    assert found["pixel_accuracy"][0] == pytest.approx((truth == predicted)[counted].mean())
    assert found["fw_iu"][0] == pytest.approx(sum(shares))


def test_mean_iu_is_torchmetrics(monkeypatch):
    torchmetrics = pytest.importorskip("torchmetrics")
    import torch

    generator = np.random.default_rng(4)
    truth, predicted = generator.integers(0, 5, (3, 20, 20)), generator.integers(0, 5, (3, 20, 20))
    truth[generator.random(truth.shape) < 0.2] = 255
    index = torchmetrics.JaccardIndex("multiclass", num_classes=5, ignore_index=255)
    expected = index(torch.from_numpy(predicted), torch.from_numpy(truth)).item()
    found = segmentation_metrics(confusion(truth, predicted, 5)[None])["mean_iu"][0]
    assert found == pytest.approx(expected, abs=1e-6)
