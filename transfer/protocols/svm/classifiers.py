"""One linear SVM a class, its C chosen by cross-validated average precision: VISSL's, on liblinear."""

import warnings
from collections.abc import Sequence

import numpy as np

from transfer.pascal.metrics import average_precision


def chosen_scores(
    train: np.ndarray, test: np.ndarray, labels: np.ndarray, costs: Sequence[float], folds: int, seed: int
) -> np.ndarray:
    """Decision values of test images by the SVM of one class, its C chosen by cross-validation.

    Args:
        train: (n, d) float64.
        test: (m, d).
        labels: (n,): 1 for a positive, 0 for a negative, -1 for an image that is not learned from.
        costs: values of C.
        folds: of the cross-validation.
        seed: of liblinear's permutations.

    Returns:
        (m,).
    """
    used = labels >= 0
    x, y = train[used], labels[used] == 1
    return fit(x, y, choose_cost(x, y, costs, folds, seed), seed).decision_function(test)


def scores_by_cost(
    train: np.ndarray, test: np.ndarray, labels: np.ndarray, costs: Sequence[float], seed: int
) -> np.ndarray:
    """Decision values of test images for every C: (costs, m); arguments as of :func:`chosen_scores`."""
    used = labels >= 0
    return np.stack([fit(train[used], labels[used] == 1, cost, seed).decision_function(test) for cost in costs])


def fit(x: np.ndarray, positive: np.ndarray, cost: float, seed: int):
    """An SVM with VISSL's settings: squared hinge, L2, dual; positives count twice."""
    from sklearn.svm import LinearSVC

    model = LinearSVC(
        C=cost,
        class_weight={1: 2, -1: 1},
        intercept_scaling=1.0,
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        tol=1e-4,
        max_iter=2000,
        random_state=seed % 2**32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 2,000 passes were not enough for a large C
        return model.fit(x, np.where(positive, 1, -1))


def choose_cost(x: np.ndarray, positive: np.ndarray, costs: Sequence[float], folds: int, seed: int) -> float:
    """The C of the greatest mean average precision over folds, the first of several; 1 where there is one positive and
    a choice."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(folds, int(positive.sum()), int((~positive).sum()))
    if len(costs) == 1:
        return costs[0]
    if folds < 2:
        return 1.0
    found = np.zeros(len(costs))
    for learned, held_out in StratifiedKFold(folds).split(x, positive):
        for number, cost in enumerate(costs):
            scores = fit(x[learned], positive[learned], cost, seed).decision_function(x[held_out])
            found[number] += average_precision(scores, positive[held_out], np.ones((1, len(held_out))))[0]
    return costs[int(found.argmax())]
