"""VISSL's linear SVMs, trained by liblinear, one per class, with C selected by cross-validated average precision."""

import warnings
from collections.abc import Sequence

import numpy as np

from transfer.pascal.metrics import average_precision


def cross_validated_scores(
    train: np.ndarray, test: np.ndarray, labels: np.ndarray, costs: Sequence[float], folds: int, seed: int
) -> np.ndarray:
    """Train the SVM of one class, with C selected by cross-validation, and score the test images.

    Args:
        train: (n, d) float64 features of training images.
        test: (m, d) features of test images.
        labels: (n,) 1 for a positive, 0 for a negative, -1 for an image to ignore.
        costs: candidate values of C.
        folds: number of cross-validation folds.
        seed: seed of liblinear's permutations.

    Returns:
        (m,) decision values of the test images.
    """
    valid = labels >= 0
    x, y = train[valid], labels[valid] == 1
    return fit(x, y, choose_cost(x, y, costs, folds, seed), seed).decision_function(test)


def scores_by_cost(
    train: np.ndarray, test: np.ndarray, labels: np.ndarray, costs: Sequence[float], seed: int
) -> np.ndarray:
    """Train the SVM of one class once per C, and score the test images.

    Args:
        train, test, labels, costs, seed: see :func:`cross_validated_scores`.

    Returns:
        (costs, m) decision values of the test images.
    """
    valid = labels >= 0
    return np.stack([fit(train[valid], labels[valid] == 1, cost, seed).decision_function(test) for cost in costs])


def fit(x: np.ndarray, positive: np.ndarray, cost: float, seed: int):
    """Fit an SVM with VISSL's settings: squared hinge loss, L2 penalty, dual form, and weight 2 for positives."""
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
        warnings.simplefilter("ignore")  # liblinear may not converge within 2,000 iterations for a large C
        return model.fit(x, np.where(positive, 1, -1))


def choose_cost(x: np.ndarray, positive: np.ndarray, costs: Sequence[float], folds: int, seed: int) -> float:
    """Select the C with the highest average precision, averaged over folds.

    Ties go to the first value of ``costs``. With a single positive or negative, C is 1 unless ``costs`` has one value.
    """
    from sklearn.model_selection import StratifiedKFold

    folds = min(folds, int(positive.sum()), int((~positive).sum()))
    if len(costs) == 1:
        return costs[0]
    if folds < 2:
        return 1.0
    precisions = np.zeros(len(costs))
    for fit_rows, held_out_rows in StratifiedKFold(folds).split(x, positive):
        for i, cost in enumerate(costs):
            scores = fit(x[fit_rows], positive[fit_rows], cost, seed).decision_function(x[held_out_rows])
            precisions[i] += average_precision(scores, positive[held_out_rows], np.ones((1, len(held_out_rows))))[0]
    return costs[int(precisions.argmax())]
