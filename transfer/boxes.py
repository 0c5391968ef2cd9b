"""Boxes, x₁ y₁ x₂ y₂ in pixels from 0 with the ends outside (width x₂ - x₁), which is what VOC's files have from 1 with
both ends inside."""

import numpy as np


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


def mirrored(boxes: np.ndarray, width: float) -> np.ndarray:
    """Boxes (N, 4) of an image mirrored left to right."""
    found = boxes.copy()
    found[:, 0], found[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return found
