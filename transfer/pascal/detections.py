"""Detections: as rows, in figures, tables and pictures."""

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

THRESHOLDS = tuple(np.arange(10) / 20 + 0.5)  # .5, .55, … .95: those that an AP without a number is the mean over
_SHOWN, _MOST_SHOWN = 0.3, 30  # least score of a detection that is drawn, and how many
# A detection: class, score, x₁ y₁ x₂ y₂ (see transfer.boxes). In rows: its overlap with the object of its class that it
# overlaps most besides, and that object's place in the image.
_CLASS, _SCORE, _BOX, _OVERLAP, _OBJECT = 0, 1, slice(2, 6), 6, 7


def detection_rows(
    names: Sequence[str], classes: Sequence[str], detections: Sequence[np.ndarray], objects: Sequence[Objects]
) -> Rows:
    """What the figures are computed from.

    Args:
        names: of n images.
        classes: K names.
        detections: (D, 6) of each image: class, score, x₁ y₁ x₂ y₂ in its own pixels.
        objects: of each.
    """
    found = [_with_overlaps(*pair) for pair in zip(detections, objects, strict=True)]
    truth = [np.stack([one.classes, one.difficult], 1).astype(np.int64).reshape(-1, 2) for one in objects]
    return {
        "names": np.array(names),
        "classes": np.array(classes),
        "detections": Ragged(np.concatenate([np.empty((0, 8)), *found]), np.array([len(one) for one in found])),
        "objects": Ragged(np.concatenate([np.empty((0, 2), np.int64), *truth]), np.array([len(one) for one in truth])),
    }


def _with_overlaps(detections: np.ndarray, objects: Objects) -> np.ndarray:
    """(D, 6) → (D, 8)."""
    found = np.concatenate([detections.astype(np.float64), np.zeros((len(detections), 2))], 1)
    for number in np.unique(found[:, _CLASS]):
        rows, own = np.flatnonzero(found[:, _CLASS] == number), np.flatnonzero(objects.classes == number)
        overlaps, places = best_objects(found[rows][:, _BOX], from_voc(objects.boxes[own]))
        found[rows, _OVERLAP] = overlaps
        found[rows, _OBJECT] = own[places] if len(own) else 0
    return found


def overlaps_of(rows: Rows, number: int) -> Overlaps:
    """The detections of a class."""
    found, objects = rows["detections"], rows["objects"]
    of_class = np.flatnonzero(found.values[:, _CLASS] == number)
    ranked = of_class[np.argsort(-found.values[of_class, _SCORE], kind="stable")]
    values, images = found.values[ranked], np.repeat(np.arange(len(found)), found.counts)[ranked]
    starts = np.cumsum(objects.counts) - objects.counts
    places = starts[images] + values[:, _OBJECT].astype(np.int64)
    own = objects.values[:, 0] == number
    easy = own & (objects.values[:, 1] == 0)
    belongs = np.repeat(np.arange(len(objects)), objects.counts)
    touched = values[:, _OVERLAP] > 0
    hard = np.zeros(len(values), bool)
    hard[touched] = objects.values[places[touched], 1] == 1
    positives = np.bincount(belongs[easy], minlength=len(objects))
    return Overlaps(values[:, _SCORE], images, values[:, _OVERLAP], places, hard, positives)


def detection_figures(rows: Rows, weights: np.ndarray) -> MetricArrays:
    """The figures of detections.

    Args:
        rows: of :func:`detection_rows`.
        weights: (R, n).

    Returns:
        ``map``, VOC 2007's: the mean over classes of the 11-point average precision at an overlap of .5; ``ap/CLASS``
        of it; ``ap50``, ``ap75`` and ``ap`` (the mean over ten overlaps from .5 to .95) by the area under the curve, as
        VOC has it since 2010; ``11-point/ap75`` and ``11-point/ap``, which detectron2 gives for VOC 2007. (R,) each;
        classes that have nothing to be found are left out.
    """
    eleven, area, by_class = [], [], {}
    for number, name in enumerate(rows["classes"]):
        overlaps = overlaps_of(rows, number)
        if not overlaps.positives.any():
            continue
        found = [detection_ap(overlaps.matches(iou), weights, "11-point", "envelope") for iou in THRESHOLDS]
        eleven.append(np.stack([by_points for by_points, _ in found]))
        area.append(np.stack([by_area for _, by_area in found]))
        by_class[f"ap/{name}"] = eleven[-1][0]
    eleven_points, areas = (np.stack(values) for values in (eleven, area))  # (classes, thresholds, R)
    return {
        "map": _mean(eleven_points[:, 0]),
        "ap50": _mean(areas[:, 0]),
        "ap75": _mean(areas[:, 5]),
        "ap": _mean(areas.mean(1)),
        "11-point/ap75": _mean(eleven_points[:, 5]),
        "11-point/ap": _mean(eleven_points.mean(1)),
        **by_class,
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """Over classes, (K, R) → (R,), without those that have nothing to be found."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / known.sum(0)


def detection_table(result: Result) -> Table:
    """Average precision by class, the mean, and the other figures, in percent."""
    table = ap_table(result)
    words = {
        "ap50": "AP50, by area",
        "ap75": "AP75, by area",
        "ap": "AP .5 to .95, by area",
        "11-point/ap75": "AP75, 11-point",
        "11-point/ap": "AP .5 to .95, 11-point",
    }
    for name, label in words.items():
        table.add_row(label, f"{100 * result.metrics[name]:.1f}")
    return table


def drawn(pixels: np.ndarray, detections: np.ndarray, classes: Sequence[str], least: float = _SHOWN) -> np.ndarray:
    """An image (H, W, 3) uint8 with boxes in the colours of their classes.

    Args:
        pixels: it.
        detections: (D, 6); the best ones are drawn, over the others.
        classes: names.
        least: score of what is drawn.
    """
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    side = min(picture.size)
    size, line = max(10, side // 20), max(1, side // 110)
    shown = detections[detections[:, _SCORE] >= least]
    for number, score, *box in shown[np.argsort(-shown[:, _SCORE])][:_MOST_SHOWN][::-1].tolist():
        colour = tuple(PALETTE[int(number) + 1].tolist())
        left, top, right, bottom = box
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=line)
        words = f"{classes[int(number)]} {100 * score:.0f}" if score < 1 else classes[int(number)]
        _, _, wide, high = draw.textbbox((0, 0), words, font_size=size)
        left, top = min(left, picture.width - wide - 4), max(0, top - high - 2)
        draw.rectangle((left, top, left + wide + 3, top + high + 2), fill=colour)
        bright = sum(colour) > 380
        draw.text((left + 2, top), words, fill="black" if bright else "white", font_size=size)
    return np.asarray(picture)


def drawn_objects(pixels: np.ndarray, objects: Objects, classes: Sequence[str]) -> np.ndarray:
    """An image with the boxes of its objects, difficult ones too."""
    boxes = from_voc(objects.boxes)
    known = np.concatenate([objects.classes[:, None], np.ones((len(boxes), 1)), boxes], 1)
    return drawn(pixels, known, classes)


def box_predictor(detect: Callable[[EncodedImage], np.ndarray], classes: Sequence[str]) -> Predictor:
    """A predictor of boxes: the image with them, and every class's best score.

    Args:
        detect: image → (D, 6) in its own pixels.
        classes: names.
    """

    def predict(data: bytes) -> Prediction:
        image = EncodedImage(data)
        found = detect(image)
        found = found[np.argsort(-found[:, _SCORE], kind="stable")]
        best = {name: 0.0 for name in classes}
        for number, score in found[::-1, :2].tolist():
            best[classes[int(number)]] = score
        picture = Image.fromarray(drawn(image.pixels(), found, classes))
        colours = {name: tuple(PALETTE[number + 1].tolist()) for number, name in enumerate(classes)}
        boxes = [(classes[int(number)], score, *box) for number, score, *box in found.tolist()]
        return Prediction(best, {"boxes": picture}, colours, boxes)

    return predict
