"""Crops as boxes: which part of an image is seen, and how it becomes a square of pixels."""

import numpy as np
import torch
from torch import nn

from crosschannel.config.training import CropConfig
from crosschannel.data.decode import EncodedImage

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the full image


def centre_box(width: int, height: int, size: int, resize: int) -> Box:
    """The centre square of ``size`` once the short side is ``resize``."""
    return _square(width, height, size, resize, 0.5, 0.5)


def random_box(width: int, height: int, crop: CropConfig, u: list[float]) -> Box:
    """A training box from four numbers u in [0, 1)."""
    if crop.kind == "centre":
        return centre_box(width, height, crop.size, crop.resize)
    if crop.kind == "random":
        return _square(width, height, crop.size, crop.resize, u[0], u[1])
    if crop.kind == "random-in-centre":
        side = min(width, height)
        x, y = ((width - side) // 2, (height - side) // 2)
        left, top, right, bottom = _square(side, side, crop.size, crop.resize, u[0], u[1])
        return x + left, y + top, x + right, y + bottom
    low, high = crop.area
    area = (low + (high - low) * u[2]) * width * height
    ratio = crop.aspect ** (2 * u[3] - 1)
    w, h = (area * ratio) ** 0.5, (area / ratio) ** 0.5
    shrink = min(1, width / w, height / h)  # a box that would stick out shrinks, keeping its shape
    w, h = max(1, round(w * shrink)), max(1, round(h * shrink))
    left, top = int(u[0] * (width - w + 1)), int(u[1] * (height - h + 1))
    return left, top, left + w, top + h


def _square(width: int, height: int, size: int, resize: int, x: float, y: float) -> Box:
    """A square at the share x, y of its ways, on whole pixels: where the image has the short side that it would be
    resized to, a crop is a copy."""
    side = max(1, round(min(width, height) * min(1, size / resize)))
    left, top = (int(min(share * (length - side + 1), length - side)) for share, length in ((x, width), (y, height)))
    return left, top, left + side, top + side


def ten_crop_box(width: int, height: int, size: int, resize: int, number: int) -> tuple[Box, bool]:
    """One of ten test crops and whether it is mirrored: the four corners and the centre, then the same mirrored."""
    x, y = ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))[number % 5]
    return _square(width, height, size, resize, x, y), number >= 5


def crop_and_resize(
    image: EncodedImage, box: Box, out: int, mirror: bool = False, interpolation: str = "bilinear"
) -> np.ndarray:
    """Decode an image and resample a box of it (antialiased).

    Args:
        image: the encoded image.
        box: what to cut.
        out: side of the result.
        mirror: flip it left to right.
        interpolation: "bilinear" or "bicubic".

    Returns:
        (out, out, 3) uint8.
    """
    least = min(box[2] - box[0], box[3] - box[1])
    shrink = max(k for k in (1, 2, 4, 8) if k == 1 or least >= k * out)
    pixels = image.pixels(shrink)
    if pixels.shape[0] == image.height:  # a format that does not shrink
        shrink = 1
    left, top, right, bottom = (round(edge / shrink) for edge in box)
    part = pixels[top:bottom, left:right]
    if part.shape[:2] != (out, out):
        batch = torch.from_numpy(part)[None].permute(0, 3, 1, 2)  # channels_last, which torch resamples fastest
        batch = nn.functional.interpolate(batch, (out, out), mode=interpolation, antialias=True)
        part = batch[0].permute(1, 2, 0).numpy()
    return flip_image(part) if mirror else part


def squash(image: EncodedImage, out: int, resize: int = 0, interpolation: str = "bilinear") -> np.ndarray:
    """Decode an image and resample all of it to a square (antialiased).

    Args:
        image: the encoded image.
        out: side of the result, in pixels.
        resize: short side of an intermediate resize; 0 skips it.
        interpolation: "bilinear" or "bicubic".

    Returns:
        (out, out, 3) uint8.
    """
    if not resize:
        return crop_and_resize(image, (0, 0, image.width, image.height), out, interpolation=interpolation)
    short = min(image.width, image.height)
    pixels = image.pixels(max(k for k in (1, 2, 4, 8) if k == 1 or short >= k * resize))
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    for size in ((round(image.height * resize / short), round(image.width * resize / short)), (out, out)):
        batch = nn.functional.interpolate(batch, size, mode=interpolation, antialias=True)
    return batch[0].permute(1, 2, 0).numpy()


def flip_image(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, left to right: by torch, which has a kernel for it; a view of numpy costs more to copy later."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].flip(3)[0].permute(1, 2, 0).numpy()
