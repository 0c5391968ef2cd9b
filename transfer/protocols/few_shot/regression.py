"""Logistic regression by L-BFGS, with its penalty selected by cross-validation."""

import warnings
from collections.abc import Sequence

import numpy as np

from transfer.linear_models import project_onto_span

_TEST_BATCH = 4096  # test images predicted at a time


def predict(
    bank: np.ndarray,
    test: np.ndarray,
    indices: np.ndarray,
    labels: np.ndarray,
    costs: Sequence[float],
    folds: int,
    seed: int,
) -> np.ndarray:
    """Fit a logistic regression, with C selected by cross-validation on its training images, and classify test images.

    Features are centred per dimension, and divided by the standard deviation over all of their values.

    Args:
        bank: (N, d) features of training images.
        test: (m, d) features of test images.
        indices: (n,) indices into ``bank`` of the images to train on.
        labels: (n,) class indices of these images, with at least two classes.
        costs: candidate values of C.
        folds: number of cross-validation folds.
        seed: seed of the folds.

    Returns:
        (m,) predicted class indices.
    """
    from sklearn.model_selection import StratifiedKFold

    train = bank[indices]
    mean, scale = train.mean(0), train.std() + 1e-12
    x, directions = project_onto_span((train - mean) / scale)
    folds, cost = min(folds, int(np.unique(labels, return_counts=True)[1].min())), 1.0
    if len(costs) == 1:
        cost = costs[0]
    elif folds >= 2:
        correct = np.zeros(len(costs))
        for fit_rows, held_out_rows in StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(x, labels):
            for i, c in enumerate(costs):
                correct[i] += (
                    _fit(x[fit_rows], labels[fit_rows], c).predict(x[held_out_rows]) == labels[held_out_rows]
                ).sum()
        cost = costs[int(correct.argmax())]
    model, predictions = _fit(x, labels, cost), []
    for start in range(0, len(test), _TEST_BATCH):
        z = (test[start : start + _TEST_BATCH] - mean) / scale
        predictions.append(model.predict(z if directions is None else z @ directions))
    return np.concatenate(predictions)


def _fit(x: np.ndarray, labels: np.ndarray, cost: float):
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # L-BFGS may not converge within 1,000 iterations for a large C
        return LogisticRegression(C=cost, max_iter=1000).fit(x, labels)
