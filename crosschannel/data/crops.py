"""Crop boxes, and extraction of square crops from encoded images."""

import numpy as np
import torch
from torch import nn

from crosschannel.config.training import CropConfig
from crosschannel.data.decode import EncodedImage

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the full image


def centre_box(width: int, height: int, size: int, resize: int) -> Box:
    """Return the box of a centre crop of side ``size``, taken after the short side is resized to ``resize``."""
    return _square(width, height, size, resize, 0.5, 0.5)


def random_box(width: int, height: int, crop: CropConfig, u: list[float]) -> Box:
    """Return the box of a training crop, as a function of four uniform random numbers u in [0, 1)."""
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
    shrink = min(1, width / w, height / h)  # shrink a box larger than the image, keeping its aspect ratio
    w, h = max(1, round(w * shrink)), max(1, round(h * shrink))
    left, top = int(u[0] * (width - w + 1)), int(u[1] * (height - h + 1))
    return left, top, left + w, top + h


def _square(width: int, height: int, size: int, resize: int, x: float, y: float) -> Box:
    """Return the box of a square at the relative position (x, y) in [0, 1], with integer coordinates.

    If the short side is already ``resize``, the crop is an exact copy of pixels, without resampling.
    """
    side = max(1, round(min(width, height) * min(1, size / resize)))
    left, top = (int(min(p * (length - side + 1), length - side)) for p, length in ((x, width), (y, height)))
    return left, top, left + side, top + side


def ten_crop_box(width: int, height: int, size: int, resize: int, index: int) -> tuple[Box, bool]:
    """Return the box of a test crop, and whether it is mirrored.

    The ten crops are the four corners and the centre, then the same five mirrored.
    """
    x, y = ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))[index % 5]
    return _square(width, height, size, resize, x, y), index >= 5


def crop_and_resize(
    image: EncodedImage, box: Box, out: int, mirror: bool = False, interpolation: str = "bilinear"
) -> np.ndarray:
    """Decode an image, crop a box and resize it to a square (antialiased).

    Args:
        image: the encoded image.
        box: box to crop.
        out: side of the result, in pixels.
        mirror: whether to flip the result horizontally.
        interpolation: "bilinear" or "bicubic".

    Returns:
        (out, out, 3) uint8.
    """
    short_side = min(box[2] - box[0], box[3] - box[1])
    shrink = max(k for k in (1, 2, 4, 8) if k == 1 or short_side >= k * out)
    pixels = image.pixels(shrink)
    if pixels.shape[0] == image.height:  # decoded at full size
        shrink = 1
    left, top, right, bottom = (round(edge / shrink) for edge in box)
    crop = pixels[top:bottom, left:right]
    if crop.shape[:2] != (out, out):
        batch = torch.from_numpy(crop)[None].permute(0, 3, 1, 2)  # channels_last, which torch resamples fastest
        batch = nn.functional.interpolate(batch, (out, out), mode=interpolation, antialias=True)
        crop = batch[0].permute(1, 2, 0).numpy()
    return flip_image(crop) if mirror else crop


def squash(image: EncodedImage, out: int, resize: int = 0, interpolation: str = "bilinear") -> np.ndarray:
    """Decode an image, and resize it to a square regardless of its aspect ratio (antialiased).

    Args:
        image: the encoded image.
        out: side of the result, in pixels.
        resize: short side after an intermediate resize that keeps the aspect ratio; 0 skips this resize.
        interpolation: "bilinear" or "bicubic".

    Returns:
        (out, out, 3) uint8.
    """
    if not resize:
        return crop_and_resize(image, (0, 0, image.width, image.height), out, interpolation=interpolation)
    short_side = min(image.width, image.height)
    pixels = image.pixels(max(k for k in (1, 2, 4, 8) if k == 1 or short_side >= k * resize))
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    for size in ((round(image.height * resize / short_side), round(image.width * resize / short_side)), (out, out)):
        batch = nn.functional.interpolate(batch, size, mode=interpolation, antialias=True)
    return batch[0].permute(1, 2, 0).numpy()


def flip_image(pixels: np.ndarray) -> np.ndarray:
    """Flip an image (H, W, 3) uint8 horizontally.

    Uses torch's flip kernel; a flipped NumPy view would be slower to copy later.
    """
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].flip(3)[0].permute(1, 2, 0).numpy()
