"""Samples of more than 8 bits as 8-bit ones, and the TIFF files that Pillow misreads."""

import io
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import tifffile

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes; the last two: BigTIFF
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
# Pictures by photometric interpretation, samples a pixel and extra samples (2: alpha that the others are not scaled by)
_PICTURES = {(_WHITE_IS_ZERO, 1, ()), (_BLACK_IS_ZERO, 1, ()), (_RGB, 3, ()), (_RGB, 4, (2,))}
_ORIENTATION, _PROFILE = 274, 34675  # tags
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else its remarks on damaged files are printed


def eight_bits(values: np.ndarray, bits: int = 16) -> np.ndarray:
    """Scale samples to 8 bits.

    Args:
        values: floating-point numbers from 0 (black) to 1 (white), or unsigned integers of up to 16 bits, white at
            the largest one. Wider and signed integers rarely use their range: nothing says which number is white.
        bits: of an integer sample; fewer than its type has, where it is stored in a larger one.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: other samples; the message says which would do.
    """
    remedy = "save it with 8 or 16 bits a sample"
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:  # NaN is not
            raise ValueError(f"its floating-point samples are in {low:.6g}..{high:.6g} instead of 0..1; {remedy}")
        white = 1
    elif values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        white = 2**bits - 1
    else:
        raise ValueError(f"its samples are {values.dtype.name}, in which no number stands for white; {remedy}")
    return np.rint(values * np.float32(255 / white)).astype(np.uint8)


def eight_bit_picture(image: Image.Image) -> Image.Image:
    """A Pillow image with at most 8 bits a sample: the same one, or one in grey, with alpha where a value stands for
    transparency.

    Raises:
        ValueError: as :func:`eight_bits`.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # the latter: before Pillow 11
        values = values.astype(np.uint16)
    grey = Image.fromarray(eight_bits(values))
    grey.info = dict(image.info)
    transparent = grey.info.pop("transparency", None)
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(values != transparent).convert("L"))
    return grey


def read_tiff(data: bytes, check_size: Callable[[int, int], None]) -> tuple[Image.Image, int] | None:
    """Read the first picture of a TIFF file that Pillow misreads, by tifffile.

    Args:
        data: the file.
        check_size: called with height and width before pixels are read; raises if they are too many.

    Returns:
        8-bit grey, RGB or RGBA as it is stored, and its EXIF orientation; None for files to leave to Pillow.

    Raises:
        ValueError: the file is cut off, is neither grey nor RGB, or has samples that :func:`eight_bits` refuses.
    """
    import tifffile

    try:
        page = tifffile.TiffFile(io.BytesIO(data)).pages.first
    except Exception:  # not even the tags can be read
        return None
    if _is_plain(page):
        return None
    check_size(page.imagelength, page.imagewidth)
    if (page.photometric, page.samplesperpixel, page.extrasamples) not in _PICTURES or page.imagedepth != 1:
        raise ValueError("it is neither grey nor RGB")
    if any(sum(place) > len(data) for place in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise ValueError("the file is cut off")
    try:
        values = page.asarray()
    except (ValueError, KeyError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise ValueError(
            f"its compression ({page.compression.name}) needs a package: pip install imagecodecs"
        ) from None
    values = eight_bits(np.moveaxis(values, 0, -1) if page.axes.startswith("S") else values, page.bitspersample)
    picture = Image.fromarray(255 - values if page.photometric == _WHITE_IS_ZERO else values)
    if _PROFILE in page.tags:
        picture.info["icc_profile"] = page.tags.valueof(_PROFILE)
    return picture, page.tags.valueof(_ORIENTATION, 1)


def _is_plain(page: "tifffile.TiffPage") -> bool:
    """Whether Pillow reads a page correctly, or refuses it: it has unsigned samples of at most 8 bits, or of 16 that
    are neither inverted nor in planes that lie one after the other."""
    if page.sampleformat != 1 or not isinstance(page.bitspersample, int):
        return False
    planes = page.planarconfig == 2 and page.compression == 1
    return page.bitspersample <= 8 or (page.bitspersample == 16 and page.photometric != _WHITE_IS_ZERO and not planes)
