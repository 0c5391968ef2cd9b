"""Detections on PASCAL VOC: per-image rows, metrics, tables and drawings."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from rich.table import Table

from crosschannel.data.decode import EncodedImage
from crosschannel.runs.result import Ragged, Result, Rows
from transfer.boxes import from_voc
from transfer.pascal.devkit import Objects
from transfer.pascal.metrics import Overlaps, best_objects, detection_ap
from transfer.pascal.segmentation import PALETTE
from transfer.pascal.table2 import ap_table
from transfer.prediction import Prediction, Predictor
from transfer.protocol import MetricArrays

THRESHOLDS = tuple(np.arange(10) / 20 + 0.5)  # IoU thresholds .5, .55, … .95 that "ap" averages over
_MIN_SCORE, _MAX_BOXES = 0.3, 30  # limits of the detections drawn on an image
# Columns of a detection: class index, score, x₁ y₁ x₂ y₂ (see transfer.boxes). In rows, two more columns: the highest
# IoU with an object of the same class, and the index of that object in its image.
_CLASS, _SCORE, _BOX, _OVERLAP, _OBJECT = 0, 1, slice(2, 6), 6, 7


def detection_rows(
    names: Sequence[str], classes: Sequence[str], detections: Sequence[np.ndarray], objects: Sequence[Objects]
) -> Rows:
    """Build the per-image rows that :func:`detection_metrics` reads.

    Args:
        names: n image names.
        classes: K class names.
        detections: for each image (D, 6): class index, score, x₁ y₁ x₂ y₂ in pixels of the original image.
        objects: annotated objects of each image.
    """
    rows_by_image = [_with_overlaps(*pair) for pair in zip(detections, objects, strict=True)]
    truth = [
        np.stack([image_objects.classes, image_objects.difficult], 1).astype(np.int64).reshape(-1, 2)
        for image_objects in objects
    ]
    return {
        "names": np.array(names),
        "classes": np.array(classes),
        "detections": Ragged(
            np.concatenate([np.empty((0, 8)), *rows_by_image]), np.array([len(array) for array in rows_by_image])
        ),
        "objects": Ragged(
            np.concatenate([np.empty((0, 2), np.int64), *truth]), np.array([len(array) for array in truth])
        ),
    }


def _with_overlaps(detections: np.ndarray, objects: Objects) -> np.ndarray:
    """Append the columns IoU and object index to the detections of one image: (D, 6) → (D, 8)."""
    rows = np.concatenate([detections.astype(np.float64), np.zeros((len(detections), 2))], 1)
    for label in np.unique(rows[:, _CLASS]):
        in_class, candidates = np.flatnonzero(rows[:, _CLASS] == label), np.flatnonzero(objects.classes == label)
        overlaps, indices = best_objects(rows[in_class][:, _BOX], from_voc(objects.boxes[candidates]))
        rows[in_class, _OVERLAP] = overlaps
        rows[in_class, _OBJECT] = candidates[indices] if len(candidates) else 0
    return rows


def class_overlaps(rows: Rows, label: int) -> Overlaps:
    """Return the detections of one class and their overlaps, from the rows of :func:`detection_rows`."""
    detections, objects = rows["detections"], rows["objects"]
    in_class = np.flatnonzero(detections.values[:, _CLASS] == label)
    ranked = in_class[np.argsort(-detections.values[in_class, _SCORE], kind="stable")]
    values, images = detections.values[ranked], np.repeat(np.arange(len(detections)), detections.counts)[ranked]
    starts = np.cumsum(objects.counts) - objects.counts
    object_indices = starts[images] + values[:, _OBJECT].astype(np.int64)
    is_class = objects.values[:, 0] == label
    is_positive = is_class & (objects.values[:, 1] == 0)
    object_images = np.repeat(np.arange(len(objects)), objects.counts)
    overlapping = values[:, _OVERLAP] > 0
    difficult = np.zeros(len(values), bool)
    difficult[overlapping] = objects.values[object_indices[overlapping], 1] == 1
    positives = np.bincount(object_images[is_positive], minlength=len(objects))
    return Overlaps(values[:, _SCORE], images, values[:, _OVERLAP], object_indices, difficult, positives)


def detection_metrics(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """Compute detection metrics.

    Args:
        rows: rows from :func:`detection_rows`.
        weights: (R, n) image weights.

    Returns:
        (R,) arrays by metric name; classes without positives are excluded:

        - ``map``, as in VOC 2007: 11-point average precision at IoU .5, averaged over classes; ``ap/CLASS`` per class
        - ``ap50``, ``ap75`` and ``ap`` (averaged over ten IoU thresholds from .5 to .95): area under the
          precision-recall curve, as in VOC since 2010
        - ``11-point/ap75`` and ``11-point/ap``: 11-point variants, which detectron2 reports for VOC 2007
    """
    eleven_point, area, by_class = [], [], {}
    for label, name in enumerate(rows["classes"]):
        overlaps = class_overlaps(rows, label)
        if not overlaps.positives.any():
            continue
        by_threshold = [detection_ap(overlaps.matches(iou), weights, "11-point", "envelope") for iou in THRESHOLDS]
        eleven_point.append(np.stack([point_ap for point_ap, _ in by_threshold]))
        area.append(np.stack([area_ap for _, area_ap in by_threshold]))
        by_class[f"ap/{name}"] = eleven_point[-1][0]
    point_aps, area_aps = (np.stack(values) for values in (eleven_point, area))  # (classes, thresholds, R)
    return {
        "map": _class_mean(point_aps[:, 0]),
        "ap50": _class_mean(area_aps[:, 0]),
        "ap75": _class_mean(area_aps[:, 5]),
        "ap": _class_mean(area_aps.mean(1)),
        "11-point/ap75": _class_mean(point_aps[:, 5]),
        "11-point/ap": _class_mean(point_aps.mean(1)),
        **by_class,
    }


def _class_mean(values: np.ndarray) -> np.ndarray:
    """Average over classes, (K, R) → (R,), ignoring NaN (a class without positives in a resample)."""
    valid = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(valid, values, 0.0).sum(0) / valid.sum(0)


def detection_table(result: Result) -> Table:
    """Tabulate per-class average precision, its mean, and the other detection metrics, in percent."""
    table = ap_table(result)
    labels = {
        "ap50": "AP50, area",
        "ap75": "AP75, area",
        "ap": "AP .5 to .95, area",
        "11-point/ap75": "AP75, 11-point",
        "11-point/ap": "AP .5 to .95, 11-point",
    }
    for name, label in labels.items():
        table.add_row(label, f"{100 * result.metrics[name]:.1f}")
    return table


def draw_detections(
    pixels: np.ndarray, detections: np.ndarray, classes: Sequence[str], min_score: float = _MIN_SCORE
) -> np.ndarray:
    """Draw labelled boxes on a copy of an image, in the colours of their classes.

    Args:
        pixels: image (H, W, 3) uint8.
        detections: (D, 6); at most 30 are drawn, with higher scores on top.
        classes: class names.
        min_score: minimum score of the boxes that are drawn.

    Returns:
        the drawing (H, W, 3) uint8.
    """
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    side = min(picture.size)
    font_size, line_width = max(10, side // 20), max(1, side // 110)
    visible = detections[detections[:, _SCORE] >= min_score]
    for label, score, *box in visible[np.argsort(-visible[:, _SCORE])][:_MAX_BOXES][::-1].tolist():
        colour = tuple(PALETTE[int(label) + 1].tolist())
        left, top, right, bottom = box
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=line_width)
        caption = f"{classes[int(label)]} {100 * score:.0f}" if score < 1 else classes[int(label)]
        _, _, width, height = draw.textbbox((0, 0), caption, font_size=font_size)
        left, top = min(left, picture.width - width - 4), max(0, top - height - 2)
        draw.rectangle((left, top, left + width + 3, top + height + 2), fill=colour)
        is_bright = sum(colour) > 380
        draw.text((left + 2, top), caption, fill="black" if is_bright else "white", font_size=font_size)
    return np.asarray(picture)


def draw_objects(pixels: np.ndarray, objects: Objects, classes: Sequence[str]) -> np.ndarray:
    """Draw the boxes of annotated objects, including difficult ones, on a copy of an image."""
    boxes = from_voc(objects.boxes)
    detections = np.concatenate([objects.classes[:, None], np.ones((len(boxes), 1)), boxes], 1)
    return draw_detections(pixels, detections, classes)


def box_predictor(detect: Callable[[EncodedImage], np.ndarray], classes: Sequence[str]) -> Predictor:
    """Return a predictor that draws boxes on the image and reports the highest score per class.

    Args:
        detect: image → detections (D, 6) in pixels of that image.
        classes: class names.
    """

    def predict(data: bytes) -> Prediction:
        image = EncodedImage(data)
        detections = detect(image)
        detections = detections[np.argsort(-detections[:, _SCORE], kind="stable")]
        best_scores = {name: 0.0 for name in classes}
        for label, score in detections[::-1, :2].tolist():
            best_scores[classes[int(label)]] = score
        picture = Image.fromarray(draw_detections(image.pixels(), detections, classes))
        colours = {name: tuple(PALETTE[label + 1].tolist()) for label, name in enumerate(classes)}
        boxes = [(classes[int(label)], score, *box) for label, score, *box in detections.tolist()]
        return Prediction(best_scores, {"boxes": picture}, colours, boxes)

    return predict
