"""Segmentation on PASCAL VOC: confusion matrices, metrics, tables and pictures."""

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
from transfer.pascal.metrics import segmentation_metrics
from transfer.prediction import Prediction, Predictor
from transfer.protocol import MetricArrays

_SIDE, _GAP = 240, 6  # maximum side of pictures shown side by side, and gap between them, in pixels


def confusion_of(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Return the confusion matrix of labels (H, W), (classes, classes) int64: pixel counts by true and predicted class.

    Pixels with the true label 255 are ignored. The result is on the device of the arguments.
    """
    counted = truth != IGNORED
    pairs = torch.where(counted, truth.long() * classes + predicted, classes * classes)
    return torch.bincount(pairs.flatten(), minlength=classes * classes + 1)[:-1].view(classes, classes)


def sparse_confusions(confusions: np.ndarray) -> Ragged:
    """Convert confusion matrices (n, K, K) to a ragged column of non-zero cells, rows (cell index, pixel count).

    Most images show few classes, so most cells are zero.
    """
    flat = confusions.reshape(len(confusions), -1)
    images, cells = np.nonzero(flat)
    values = np.stack([cells, flat[images, cells]], 1).astype(np.int64)
    return Ragged(values, np.bincount(images, minlength=len(flat)).astype(np.int64))


def sum_confusions(column: Ragged, weights: np.ndarray, classes: int) -> np.ndarray:
    """Sum confusion matrices over images, with weights.

    Args:
        column: column from :func:`sparse_confusions`, n images.
        weights: (R, n) image weights.
        classes: number of classes, K.

    Returns:
        (R, K, K) float64.

    Raises:
        ValueError: a cell of the column does not exist for K classes.
    """
    ends = np.append(0, np.cumsum(column.counts))
    cells = csr_array((column.values[:, 1], column.values[:, 0], ends), (len(column), classes**2), dtype=np.float64)
    return (cells.T @ weights.T).T.reshape(-1, classes, classes)


def iou_metrics(column: Ragged, weights: np.ndarray, classes: Sequence[str]) -> MetricArrays:
    """Compute segmentation metrics.

    Args:
        column: column from :func:`sparse_confusions`, n images.
        weights: (R, n) image weights.
        classes: K class names.

    Returns:
        ``mean_iu``, ``pixel_accuracy``, ``mean_accuracy``, ``fw_iu``, and ``iu/CLASS`` for each class in the ground
        truth or prediction of any image; (R,) each.
    """
    metrics = segmentation_metrics(sum_confusions(column, weights, len(classes)))
    total = sum_confusions(column, np.ones((1, len(column))), len(classes))[0]
    is_present = (total.sum(0) + total.sum(1)) > 0
    by_class = metrics.pop("iu")
    return metrics | {f"iu/{name}": by_class[:, label] for label, name in enumerate(classes) if is_present[label]}


def iou_table(result: Result) -> Table:
    """Tabulate per-class intersection over union and the four overall metrics, in percent."""
    metrics = result.metrics
    rows = {"IU of " + name.removeprefix("iu/"): value for name, value in metrics.items() if name.startswith("iu/")}
    rows |= {f"mean IU of {len(rows)} classes": metrics["mean_iu"]}
    labels = {"pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy", "fw_iu": "frequency-weighted IU"}
    rows |= {label: metrics[name] for name, label in labels.items()}
    return table({label: [f"{100 * value:.1f}"] for label, value in rows.items()}, ["class", "%"])


def palette_image(labels: np.ndarray) -> Image.Image:
    """Convert labels (H, W) to a palette image like the masks of the devkit."""
    picture = Image.fromarray(labels.astype(np.uint8), "P")
    picture.putpalette(PALETTE.ravel().tolist())
    return picture


def overlay(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Blend an image (H, W, 3) uint8 with the colours of its labels (H, W); the background stays unchanged."""
    blended = (pixels.astype(np.uint16) * 2 + PALETTE[labels].astype(np.uint16) * 3) // 5
    return np.where((labels > 0)[..., None], blended, pixels).astype(np.uint8)


def side_by_side(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Arrange rows of pictures (H, W, 3), each in a white square, in one picture (H, W, 3) uint8."""
    height, width = (len(rows) * (_SIDE + _GAP) - _GAP, max(map(len, rows)) * (_SIDE + _GAP) - _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            picture = Image.fromarray(pixels)
            picture.thumbnail((_SIDE, _SIDE))
            left, top = j * (_SIDE + _GAP) + (_SIDE - picture.width) // 2, i * (_SIDE + _GAP)
            sheet.paste(picture, (left, top + (_SIDE - picture.height) // 2))
    return np.asarray(sheet)


def mask_predictor(predict_labels: Callable[[EncodedImage], Tensor], classes: Sequence[str]) -> Predictor:
    """Return a predictor of masks, as a palette image and as an overlay on the image, and of pixel fractions per class.

    Args:
        predict_labels: image → labels (H, W) of its size.
        classes: class names by label.
    """

    def predict(data: bytes) -> Prediction:
        image = EncodedImage(data)
        labels = predict_labels(image).cpu().numpy().astype(np.uint8)
        fractions = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
        blended = Image.fromarray(overlay(image.pixels(), labels))
        scores = dict(zip(classes, fractions.tolist(), strict=True))
        colours = {name: tuple(PALETTE[label].tolist()) for label, name in enumerate(classes)}
        return Prediction(scores, {"mask": palette_image(labels), "overlay": blended}, colours)

    return predict
