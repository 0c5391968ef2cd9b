"""Boxes, x₁ y₁ x₂ y₂ in pixels from 0 with the ends outside (width x₂ - x₁), which is what VOC's files have from 1 with
both ends inside."""

import numpy as np

from crosschannel.data import ImageSet
from crosschannel.data.decode import BrokenImage, EncodedImage

_TOLERANCE = 1  # pixel that a box may extend past the picture's edges: tools count pixels from 0 or 1
_CORNER = 2  # pixels: if all boxes of a picture end within them, they are given as shares of its sides


def from_voc(boxes: np.ndarray) -> np.ndarray:
    """(G, 4) as the devkit's files have them → as boxes are here."""
    return boxes - np.array([1, 1, 0, 0], boxes.dtype)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(A, 4), (B, 4) → (A, B) float64 intersection over union; of boxes without an area 0."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def clipped(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """The parts of boxes (N, 4) that lie in an image."""
    return boxes.clip(0, np.array([width, height, width, height], boxes.dtype))


def has_area(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) → (N,) bool."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def flip_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """Boxes (N, 4) of an image mirrored left to right."""
    found = boxes.copy()
    found[:, 0], found[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return found


def picture_size(images: ImageSet, index: int) -> tuple[int, int] | None:
    """Return width and height of a picture, upright by its EXIF orientation; None if it cannot be read."""
    try:
        image = EncodedImage(images.read(index))
    except (BrokenImage, OSError):
        return None
    return image.width, image.height


def invalid_box(boxes: np.ndarray, size: tuple[int, int] | None) -> tuple[int, str] | None:
    """Find the first box that does not lie in its picture.

    Args:
        boxes: (N, 4) boxes of one picture.
        size: width and height of the picture; None: unknown.

    Returns:
        its index and the fault, as the end of a sentence; None if all boxes are valid.
    """
    width, height = size or (np.inf, np.inf)
    boxes = boxes.astype(np.float64)
    inside = clipped(boxes, height, width)
    with np.errstate(all="ignore"):
        areas, visible = ((ends[:, 2:] - ends[:, :2]).clip(0).prod(1) for ends in (boxes, inside))
    outside = (boxes[:, :2] < -_TOLERANCE) | (boxes[:, 2:] > np.array([width, height]) + _TOLERANCE)
    in_corner = boxes[:, 2:].max(initial=0) <= _CORNER < min(width, height) / 8
    faults = {
        "is not finite": ~np.isfinite(boxes).all(1),
        "has no area: its first corner must be its upper left one": ~has_area(boxes),
        "is in the corner, as all boxes of the picture are: coordinates must be pixels, not shares of its sides": (
            np.full(len(boxes), in_corner)
        ),
        f"does not lie in the picture, which is {width} × {height} pixels": outside.any(1) | (2 * visible < areas),
    }
    for fault, invalid in faults.items():
        if invalid.any():
            return int(invalid.argmax()), fault
    return None
