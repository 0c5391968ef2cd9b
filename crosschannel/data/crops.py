"""Crops as boxes: which part of an image is seen, and how it becomes a square of pixels."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from crosschannel.data.decode import decode


@dataclass
class CropConfig:
    """How images become square crops."""

    size: int = 176
    """side of the crop, in pixels"""
    resize: int = 256
    """short side that images are resized to before a random or a centre crop"""
    train: Literal["random", "random-resized", "centre"] = "random"
    """random: a random square of the resized image; random-resized: a random part of the area and shape below"""
    area: tuple[float, float] = (0.25, 1.0)
    """random-resized: least and greatest share of the image's area"""
    aspect: float = 4 / 3
    """random-resized: greatest ratio of the sides, either way"""
    mirror: bool = True
    """mirror half of the training crops"""


Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the full image


def centre_box(width: int, height: int, crop: CropConfig) -> Box:
    """The centre square of ``crop.size`` once the short side is ``crop.resize``."""
    return _square(width, height, crop, 0.5, 0.5)


def random_box(width: int, height: int, crop: CropConfig, u: list[float]) -> Box:
    """A training box from four numbers u in [0, 1)."""
    if crop.train == "centre":
        return centre_box(width, height, crop)
    if crop.train == "random":
        return _square(width, height, crop, u[0], u[1])
    low, high = crop.area
    area = (low + (high - low) * u[2]) * width * height
    ratio = crop.aspect ** (2 * u[3] - 1)
    w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
    shrink = min(1, width / w, height / h)  # a box that would stick out shrinks, keeping its shape
    w, h = w * shrink, h * shrink
    left, top = u[0] * (width - w), u[1] * (height - h)
    return left, top, left + w, top + h


def _square(width: int, height: int, crop: CropConfig, x: float, y: float) -> Box:
    side = min(width, height) * min(1, crop.size / crop.resize)
    left, top = x * (width - side), y * (height - side)
    return left, top, left + side, top + side


def cut(data: bytes, size: tuple[int, int], box: Box, out: int, mirror: bool) -> np.ndarray:
    """Decode an image and resample a box of it (bilinear, antialiased).

    Args:
        data: the encoded image.
        size: its full width and height, the frame of ``box``.
        box: what to cut.
        out: side of the result.
        mirror: flip it left to right.

    Returns:
        (out, out, 3) uint8.
    """
    width, height = size
    # The reduced image must still give the box at least `out` pixels.
    least = min(1.0, out / max(1e-6, min(box[2] - box[0], box[3] - box[1])))
    image = decode(data, int(np.ceil(height * least)), int(np.ceil(width * least)))
    sy, sx = image.shape[0] / height, image.shape[1] / width
    scaled = (
        max(0.0, box[0] * sx),
        max(0.0, box[1] * sy),
        min(image.shape[1], box[2] * sx),
        min(image.shape[0], box[3] * sy),
    )
    pixels = np.asarray(Image.fromarray(image).resize((out, out), Image.Resampling.BILINEAR, scaled))
    return pixels[:, ::-1] if mirror else pixels
