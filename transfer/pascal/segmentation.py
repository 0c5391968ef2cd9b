"""Segmentations: scores as confusions, in figures, tables and pictures."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from scipy.sparse import csr_array
from torch import Tensor

from crosschannel.console import table
from crosschannel.data.decode import EncodedImage
from crosschannel.runs.result import Ragged, Result
from transfer.pascal.mask_files import IGNORED, PALETTE
from transfer.pascal.metrics import segmentation_figures
from transfer.prediction import Prediction, Predictor
from transfer.protocol import MetricArrays

_SIDE, _GAP = 240, 6  # pixels of a picture among others, and between them


def confusion_of(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Pixels by true and predicted class, where they are: (H, W), (H, W) → (classes, classes) int64; those labelled 255
    are left out."""
    counted = truth != IGNORED
    pairs = torch.where(counted, truth.long() * classes + predicted, classes * classes)
    return torch.bincount(pairs.flatten(), minlength=classes * classes + 1)[:-1].view(classes, classes)


def sparse(confusions: np.ndarray) -> Ragged:
    """Confusions (n, K, K) as a column: of every image the cells that are not zero, (cell, pixels); of most images few
    classes are seen."""
    flat = confusions.reshape(len(confusions), -1)
    images, cells = np.nonzero(flat)
    values = np.stack([cells, flat[images, cells]], 1).astype(np.int64)
    return Ragged(values, np.bincount(images, minlength=len(flat)).astype(np.int64))


def summed(column: Ragged, weights: np.ndarray, classes: int) -> np.ndarray:
    """Confusions of weighted images: a column of :func:`sparse`, (R, n) → (R, K, K) float64.

    Raises:
        ValueError: it is of other classes.
    """
    ends = np.append(0, np.cumsum(column.counts))
    cells = csr_array((column.values[:, 1], column.values[:, 0], ends), (len(column), classes**2), dtype=np.float64)
    return (cells.T @ weights.T).T.reshape(-1, classes, classes)


def iou_figures(column: Ragged, weights: np.ndarray, classes: Sequence[str]) -> MetricArrays:
    """The figures of segmentations.

    Args:
        column: of :func:`sparse`, n images.
        weights: (R, n).
        classes: K names.

    Returns:
        ``mean_iu``, ``pixel_accuracy``, ``mean_accuracy``, ``fw_iu``, and ``iu/CLASS`` of classes that occur in any
        image's truth or prediction; (R,) each.
    """
    found = segmentation_figures(summed(column, weights, len(classes)))
    whole = summed(column, np.ones((1, len(column))), len(classes))[0]
    occurs = (whole.sum(0) + whole.sum(1)) > 0
    by_class = found.pop("iu")
    return found | {f"iu/{name}": by_class[:, number] for number, name in enumerate(classes) if occurs[number]}


def iou_table(result: Result) -> Table:
    """Intersection over union by class, in percent, and the four figures."""
    metrics = result.metrics
    rows = {"IU of " + name.removeprefix("iu/"): value for name, value in metrics.items() if name.startswith("iu/")}
    rows |= {f"mean IU of {len(rows)} classes": metrics["mean_iu"]}
    words = {"pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy", "fw_iu": "frequency-weighted IU"}
    rows |= {label: metrics[name] for name, label in words.items()}
    return table({label: [f"{100 * value:.1f}"] for label, value in rows.items()}, ["class", "%"])


def as_picture(labels: np.ndarray) -> Image.Image:
    """Labels (H, W) as a palette picture, as the devkit has them."""
    picture = Image.fromarray(labels.astype(np.uint8), "P")
    picture.putpalette(PALETTE.ravel().tolist())
    return picture


def overlay(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 under the colours of its labels; what is background keeps its own."""
    mixed = (pixels.astype(np.uint16) * 2 + PALETTE[labels].astype(np.uint16) * 3) // 5
    return np.where((labels > 0)[..., None], mixed, pixels).astype(np.uint8)


def side_by_side(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures (H, W, 3) in rows, each fitted into a square on white: (H, W, 3) uint8."""
    height, width = (len(rows) * (_SIDE + _GAP) - _GAP, max(map(len, rows)) * (_SIDE + _GAP) - _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            picture = Image.fromarray(pixels)
            picture.thumbnail((_SIDE, _SIDE))
            left, top = j * (_SIDE + _GAP) + (_SIDE - picture.width) // 2, i * (_SIDE + _GAP)
            sheet.paste(picture, (left, top + (_SIDE - picture.height) // 2))
    return np.asarray(sheet)


def mask_predictor(labels: Callable[[EncodedImage], Tensor], classes: Sequence[str]) -> Predictor:
    """A predictor of masks: a palette picture, the image under its colours, and every class's share of the pixels.

    Args:
        labels: image → (H, W) of its own size.
        classes: names by label.
    """

    def predict(data: bytes) -> Prediction:
        image = EncodedImage(data)
        found = labels(image).cpu().numpy().astype(np.uint8)
        shares = np.bincount(found.ravel(), minlength=len(classes)) / found.size
        mixed = Image.fromarray(overlay(image.pixels(), found))
        scores = dict(zip(classes, shares.tolist(), strict=True))
        colours = {name: tuple(PALETTE[label].tolist()) for label, name in enumerate(classes)}
        return Prediction(scores, {"mask": as_picture(found), "overlay": mixed}, colours)

    return predict
