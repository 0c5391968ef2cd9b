"""Conversion of deeper samples to 8 bits, and a reader for the TIFF files that Pillow misreads."""

import io
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import tifffile

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # magic bytes; the last two are of BigTIFF
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
# Photometric interpretation, samples per pixel and extra samples (2: alpha, not premultiplied)
_SUPPORTED = {(_WHITE_IS_ZERO, 1, ()), (_BLACK_IS_ZERO, 1, ()), (_RGB, 3, ()), (_RGB, 4, (2,))}
_ORIENTATION, _PROFILE = 274, 34675  # TIFF tags
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # or it prints warnings about damaged files


def scale_to_8_bit(values: np.ndarray, bits: int = 16) -> np.ndarray:
    """Scale samples to 8 bits.

    Args:
        values: floats from 0 (black) to 1 (white), or unsigned integers of up to 16 bits, whose largest value is white.
            Wider and signed integers rarely use their full range, so their white value is unknown.
        bits: bit depth of integer samples, which may be less than that of their type.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: any other samples; the message names the remedy.
    """
    remedy = "save it with 8 or 16 bits per sample"
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:  # or NaN
            raise ValueError(f"its floating-point samples are in {low:.6g}..{high:.6g} instead of 0..1; {remedy}")
        white = 1
    elif values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        white = 2**bits - 1
    else:
        raise ValueError(f"its samples are {values.dtype.name}, which has no defined white value; {remedy}")
    return np.rint(values * np.float32(255 / white)).astype(np.uint8)


def to_8_bit_picture(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to at most 8 bits per sample.

    Returns:
        The same image if it is no deeper, else a grey one; a transparent value becomes an alpha channel.

    Raises:
        ValueError: :func:`scale_to_8_bit` refuses the samples.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # mode I: before Pillow 11
        values = values.astype(np.uint16)
    grey = Image.fromarray(scale_to_8_bit(values))
    grey.info = dict(image.info)
    transparent = grey.info.pop("transparency", None)
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(values != transparent).convert("L"))
    return grey


def read_tiff(data: bytes, check_size: Callable[[int, int], None]) -> tuple[Image.Image, int] | None:
    """Read the first picture of a TIFF file with tifffile if Pillow would misread it.

    Args:
        data: the encoded file.
        check_size: called with height and width before any pixel is read; raises if the picture is too large.

    Returns:
        An 8-bit grey, RGB or RGBA picture as stored (not rotated), and its EXIF orientation; None for files that are
        left to Pillow.

    Raises:
        ValueError: the file is cut off, is neither grey nor RGB, or has samples that :func:`scale_to_8_bit` refuses.
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
        raise ValueError("it is neither grey nor RGB")
    if any(sum(extent) > len(data) for extent in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise ValueError("the file is cut off")
    try:
        values = page.asarray()
    except (ValueError, KeyError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise ValueError(
            f"its compression ({page.compression.name}) needs a package: pip install imagecodecs"
        ) from None
    values = scale_to_8_bit(np.moveaxis(values, 0, -1) if page.axes.startswith("S") else values, page.bitspersample)
    picture = Image.fromarray(255 - values if page.photometric == _WHITE_IS_ZERO else values)
    if _PROFILE in page.tags:
        picture.info["icc_profile"] = page.tags.valueof(_PROFILE)
    return picture, page.tags.valueof(_ORIENTATION, 1)


def _pillow_reads(page: "tifffile.TiffPage") -> bool:
    """Whether Pillow reads a page correctly or refuses it.

    It does for unsigned samples of at most 8 bits, and of 16 bits unless they are inverted or in separate raw planes.
    """
    if page.sampleformat != 1 or not isinstance(page.bitspersample, int):
        return False
    planes = page.planarconfig == 2 and page.compression == 1
    return page.bitspersample <= 8 or (page.bitspersample == 16 and page.photometric != _WHITE_IS_ZERO and not planes)
