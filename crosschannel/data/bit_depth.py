"""Conversion of images with more than 8 bits per sample, and a reader for TIFF files that Pillow misreads."""

import io
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import tifffile

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # magic bytes of TIFF, then of BigTIFF
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
# (photometric interpretation, samples per pixel, extra samples); the extra sample 2 is alpha, not premultiplied
_SUPPORTED = {(_WHITE_IS_ZERO, 1, ()), (_BLACK_IS_ZERO, 1, ()), (_RGB, 3, ()), (_RGB, 4, (2,))}
_ORIENTATION, _PROFILE = 274, 34675  # TIFF tags
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # otherwise it prints warnings about damaged files


def scale_to_8_bit(values: np.ndarray, bits: int = 16) -> np.ndarray:
    """Scale samples to 8 bits.

    Args:
        values: floats in [0, 1], or unsigned integers of at most 16 bits, the largest of which is white. Signed and
            wider integers are not supported: they rarely use their full range, so their white level is unknown.
        bits: bit depth of integer samples; it may be smaller than that of the dtype.

    Returns:
        uint8 array of the same shape.

    Raises:
        ValueError: the dtype is not supported or floats are outside [0, 1]; the message includes a remedy.
    """
    remedy = "convert the image to 8 or 16 bits per sample"
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:  # or NaN
            raise ValueError(f"floating-point samples must be in 0..1, got {low:.6g}..{high:.6g}; {remedy}")
        white = 1
    elif values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        white = 2**bits - 1
    else:
        raise ValueError(f"{values.dtype.name} samples have no defined white level; {remedy}")
    return np.rint(values * np.float32(255 / white)).astype(np.uint8)


def to_8_bit_picture(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to at most 8 bits per sample.

    Returns:
        The image itself if it has at most 8 bits per sample, otherwise a greyscale image. A transparent grey value
        becomes an alpha channel.

    Raises:
        ValueError: the samples cannot be scaled; see :func:`scale_to_8_bit`.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # Pillow before 11: mode I
        values = values.astype(np.uint16)
    grey = Image.fromarray(scale_to_8_bit(values))
    grey.info = dict(image.info)
    transparent_value = grey.info.pop("transparency", None)
    if isinstance(transparent_value, int):
        grey.putalpha(Image.fromarray(values != transparent_value).convert("L"))
    return grey


def read_tiff(data: bytes, check_size: Callable[[int, int], None]) -> tuple[Image.Image, int] | None:
    """Read the first page of a TIFF file with tifffile if Pillow would misread it.

    Args:
        data: contents of the file.
        check_size: called with height and width before any pixel is decoded; raises if the image is too large.

    Returns:
        An 8-bit greyscale, RGB or RGBA image as stored (not rotated), and its EXIF orientation; None if the file should
        be read with Pillow.

    Raises:
        ValueError: the file is truncated or neither greyscale nor RGB, or its samples cannot be scaled; see
            :func:`scale_to_8_bit`.
    """
    import tifffile

    try:
        page = tifffile.TiffFile(io.BytesIO(data)).pages.first
    except Exception:  # unreadable tags
        return None
    if _pillow_reads(page):
        return None
    check_size(page.imagelength, page.imagewidth)
    if (page.photometric, page.samplesperpixel, page.extrasamples) not in _SUPPORTED or page.imagedepth != 1:
        raise ValueError("unsupported TIFF: neither greyscale nor RGB")
    if any(sum(strip) > len(data) for strip in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise ValueError("the file is truncated")
    try:
        values = page.asarray()
    except (ValueError, KeyError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise ValueError(f"{page.compression.name} compression requires imagecodecs: pip install imagecodecs") from None
    values = scale_to_8_bit(np.moveaxis(values, 0, -1) if page.axes.startswith("S") else values, page.bitspersample)
    picture = Image.fromarray(255 - values if page.photometric == _WHITE_IS_ZERO else values)
    if _PROFILE in page.tags:
        picture.info["icc_profile"] = page.tags.valueof(_PROFILE)
    return picture, page.tags.valueof(_ORIENTATION, 1)


def _pillow_reads(page: "tifffile.TiffPage") -> bool:
    """Whether Pillow reads a page correctly, or fails instead of misreading it.

    True for unsigned samples of at most 8 bits, and for 16-bit samples unless they are inverted or stored in separate
    uncompressed planes.
    """
    if page.sampleformat != 1 or not isinstance(page.bitspersample, int):
        return False
    is_raw_planar = page.planarconfig == 2 and page.compression == 1
    return page.bitspersample <= 8 or (
        page.bitspersample == 16 and page.photometric != _WHITE_IS_ZERO and not is_raw_planar
    )
