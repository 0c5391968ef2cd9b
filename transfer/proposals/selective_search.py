"""Selective search (Uijlings et al., IJCV 2013), from OpenCV's contributed modules."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from crosschannel.data import Batch, Record, SampleRNG
from crosschannel.errors import UserError

Mode = Literal["fast", "quality"]
MODES: dict[str, Mode] = {"selective-search": "fast", "selective-search-quality": "quality"}  # by name of the method
_SIDE = 500  # long side, in pixels, to which larger images are resized; VOC's images have this size
MAX_BOXES = 2000  # per image


def check_opencv() -> None:
    """Raise a UserError if OpenCV or its contributed modules are missing."""
    try:
        import cv2

        cv2.ximgproc.segmentation  # noqa: B018
    except (ImportError, AttributeError):
        raise UserError(
            "selective search requires OpenCV's contributed modules: pip install opencv-contrib-python-headless "
            "(instead of any other opencv-python)"
        ) from None


def selective_search(pixels: np.ndarray, mode: Mode = "fast", max_boxes: int = MAX_BOXES) -> np.ndarray:
    """Compute the boxes of an image, most likely objects first. The result is deterministic.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        mode: "fast" or "quality".
        max_boxes: maximum number of boxes.

    Returns:
        (P, 4) int32 x₁ y₁ x₂ y₂ in 0-based pixels with exclusive ends.
    """
    import cv2

    cv2.setNumThreads(1)
    height, width = pixels.shape[:2]
    factor = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), size, interpolation=cv2.INTER_AREA))
    {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}[mode]()
    _seed_c()
    rects = search.process().astype(np.float64).reshape(-1, 4)
    corners = np.concatenate([rects[:, :2], rects[:, :2] + rects[:, 2:]], 1)
    corners = np.round(corners * np.tile([width / size[0], height / size[1]], 2)).astype(np.int32)
    corners = corners.clip(0, np.tile([width, height], 2))
    corners = corners[((corners[:, 2:] - corners[:, :2]) >= 2).all(1)]
    _, first_indices = np.unique(corners, axis=0, return_index=True)
    return corners[np.sort(first_indices)][:max_boxes].astype(np.int32)


def _seed_c() -> None:
    """Seed the random numbers of the C library, which OpenCV uses to rank the boxes."""
    try:
        ctypes.CDLL(None).srand(0)
    except (OSError, TypeError, AttributeError):  # not available on this platform, so the order varies between runs
        return


@dataclass
class BoxesBatch(Batch):
    """Batch of images with their boxes, (P, 4) int32 per image."""

    boxes: list[np.ndarray]


@dataclass(frozen=True)
class SelectiveSearch:
    """View that computes the boxes of an image in a loader worker."""

    mode: Mode
    max_boxes: int = MAX_BOXES
    views: ClassVar[int] = 1

    def __call__(self, record: Record, _rng: SampleRNG) -> np.ndarray:
        return selective_search(record.image().pixels(), self.mode, self.max_boxes)

    @staticmethod
    def collate(samples: Sequence[np.ndarray], base: Batch) -> BoxesBatch:
        return BoxesBatch(**vars(base), boxes=list(samples))
