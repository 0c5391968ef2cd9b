"""Operations on boxes (x₁, y₁, x₂, y₂) in pixels.

Coordinates start at 0 and the end is exclusive (the width is x₂ - x₁). In VOC's files, they start at 1 and the end is
inclusive.
"""

import numpy as np

from crosschannel.data import ImageSet
from crosschannel.data.decode import BrokenImage, EncodedImage

_TOLERANCE = 1  # pixels by which a box may exceed the image, since some tools count from 0 and some from 1
_CORNER = 2  # pixels; if all boxes of an image end within this range, their coordinates are probably relative


def from_voc(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes (N, 4) from the convention of VOC's files."""
    return boxes - np.array([1, 1, 0, 0], boxes.dtype)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the pairwise intersection over union (A, B), float64, of boxes (A, 4) and (B, 4); 0 for empty boxes."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def clip_boxes(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """Clip boxes (N, 4) to an image."""
    return boxes.clip(0, np.array([width, height, width, height], boxes.dtype))


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Return which boxes (N, 4) have a positive area, as (N,) bool."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def flip_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """Mirror boxes (N, 4) of an image horizontally."""
    flipped = boxes.copy()
    flipped[:, 0], flipped[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return flipped


def picture_size(images: ImageSet, index: int) -> tuple[int, int] | None:
    """Return width and height of an image after applying its EXIF orientation; None if it cannot be read."""
    try:
        image = EncodedImage(images.read(index))
    except (BrokenImage, OSError):
        return None
    return image.width, image.height


def invalid_box(boxes: np.ndarray, size: tuple[int, int] | None) -> tuple[int, str] | None:
    """Find the first invalid box of an image.

    Args:
        boxes: boxes (N, 4) of one image.
        size: width and height of the image; None if unknown.

    Returns:
        the index of the box and a description of the fault, to complete an error message; None if all boxes are valid.
    """
    width, height = size or (np.inf, np.inf)
    boxes = boxes.astype(np.float64)
    clipped = clip_boxes(boxes, height, width)
    with np.errstate(all="ignore"):
        areas, visible_areas = ((corners[:, 2:] - corners[:, :2]).clip(0).prod(1) for corners in (boxes, clipped))
    outside = (boxes[:, :2] < -_TOLERANCE) | (boxes[:, 2:] > np.array([width, height]) + _TOLERANCE)
    in_corner = boxes[:, 2:].max(initial=0) <= _CORNER < min(width, height) / 8
    faults = {
        "is not finite": ~np.isfinite(boxes).all(1),
        "has no area; its first corner must be the upper left one": ~has_area(boxes),
        "is in the corner, like all boxes of the image; coordinates must be in pixels, not fractions of its sides": (
            np.full(len(boxes), in_corner)
        ),
        f"does not lie in the image, which is {width} × {height} pixels": outside.any(1) | (2 * visible_areas < areas),
    }
    for fault, invalid in faults.items():
        if invalid.any():
            return int(invalid.argmax()), fault
    return None
