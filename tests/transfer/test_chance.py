"""What is printed below a table, against the figures of someone who does not look."""

import re

import numpy as np

from transfer import chance
from transfer.pascal.metrics import average_precision
from transfer.pascal.segmentation import iou_metrics, sparse_confusions

RANDOM = np.random.default_rng(3)


def percent(words: str) -> float:
    return float(re.search(r": (?:about )?([\d.]+) %", words)[1])


def test_one_class_for_all_images():
    labels = RANDOM.choice(4, 500, p=[0.1, 0.2, 0.3, 0.4])
    best = max((labels == number).mean() for number in range(4))
    assert abs(percent(chance.majority_class({"labels": labels})) - 100 * best) < 0.06


def test_a_random_order_of_images():
    labels = np.where(RANDOM.random((4000, 3)) < [0.05, 0.2, 0.5], 1, 0).astype(np.int8)
    labels[RANDOM.random(labels.shape) < 0.1] = -1  # difficult: not counted
    found = []
    for column in labels.T:
        counted = column != -1
        ones = np.ones((1, counted.sum()))
        scores = RANDOM.random(counted.sum())
        found.append(average_precision(scores, column[counted] == 1, ones)[0])
    assert abs(percent(chance.random_ranking({"labels": labels})) - 100 * np.mean(found)) < 1.5


def test_one_class_for_all_pixels():
    truths = RANDOM.integers(1, 50, (6, 5)) * [9, 1, 1, 1, 0]  # the last class occurs nowhere
    constant, guessed = np.zeros((6, 5, 5), np.int64), np.zeros((6, 5, 5), np.int64)
    constant[:, :, 0] = truths
    guessed[:, np.arange(4), np.arange(1, 5)] = truths[:, :4]
    classes = [f"c{number}" for number in range(5)]
    ones = np.ones((1, 6))
    expected = iou_metrics(sparse_confusions(constant), ones, classes)["mean_iu"][0]
    rows = {"names": np.array(list("abcdef")), "classes": np.array(classes), "conv1/linear": sparse_confusions(guessed)}
    assert abs(percent(chance.constant_class(rows)) - 100 * expected) < 0.06
