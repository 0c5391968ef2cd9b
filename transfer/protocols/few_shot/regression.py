"""Logistic regression by L-BFGS, its penalty chosen by cross-validation."""

import warnings
from collections.abc import Sequence

import numpy as np

from transfer.linear_models import project_onto_span

_AT_ONCE = 4096  # test images


def predict(
    bank: np.ndarray,
    test: np.ndarray,
    chosen: np.ndarray,
    labels: np.ndarray,
    costs: Sequence[float],
    folds: int,
    seed: int,
) -> np.ndarray:
    """Classes of test images by logistic regression, its C chosen by cross-validation on the training images.

    Args:
        bank: (N, d) features of training images.
        test: (m, d).
        chosen: (n,) those of the bank that are learned; they are centred, and scaled by one number.
        labels: (n,) theirs, of two classes or more.
        costs: values of C.
        folds: of the cross-validation.
        seed: of the folds.

    Returns:
        (m,) class numbers.
    """
    from sklearn.model_selection import StratifiedKFold

    train = bank[chosen]
    mean, scale = train.mean(0), train.std() + 1e-12
    x, directions = project_onto_span((train - mean) / scale)
    folds, cost = min(folds, int(np.unique(labels, return_counts=True)[1].min())), 1.0
    if len(costs) == 1:
        cost = costs[0]
    elif folds >= 2:
        right = np.zeros(len(costs))
        for learned, held_out in StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(x, labels):
            for number, one in enumerate(costs):
                right[number] += (_fit(x[learned], labels[learned], one).predict(x[held_out]) == labels[held_out]).sum()
        cost = costs[int(right.argmax())]
    model, found = _fit(x, labels, cost), []
    for start in range(0, len(test), _AT_ONCE):
        z = (test[start : start + _AT_ONCE] - mean) / scale
        found.append(model.predict(z if directions is None else z @ directions))
    return np.concatenate(found)


def _fit(x: np.ndarray, labels: np.ndarray, cost: float):
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 1,000 steps of L-BFGS were not enough for a large C
        return LogisticRegression(C=cost, max_iter=1000).fit(x, labels)
