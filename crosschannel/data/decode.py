"""Encoded bytes → uint8 RGB: JPEG by libjpeg-turbo at a reduced size where that is enough, the rest by Pillow."""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs


class BrokenImage(Exception):
    """Bytes that do not decode to an image; the message says why."""


def decode(data: bytes, min_height: int = 0, min_width: int = 0) -> np.ndarray:
    """Decode one image to upright 8-bit RGB.

    Args:
        data: a JPEG, PNG, WebP, BMP or TIFF file, grey, palette, CMYK, 16-bit or with alpha (laid over white).
        min_height, min_width: a JPEG may be decoded at 1/2, 1/4 or 1/8 as long as it stays at least this large;
            0 asks for the full size.

    Returns:
        (H, W, 3) uint8.

    Raises:
        BrokenImage: the bytes are no image, are cut off, or hold more than 178 million pixels.
    """
    if not data:
        raise BrokenImage("the file is empty")
    try:
        if data[:2] == b"\xff\xd8" and not _turned(data):
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            check_size(height, width)
            if space not in ("CMYK", "YCCK"):
                reduced = {"min_height": min_height, "min_width": min_width} if min_height and min_width else {}
                return simplejpeg.decode_jpeg(data, "RGB", **reduced)
        return _decode_with_pillow(data)
    except Exception as error:  # decoders raise whatever they like on bytes they cannot read
        raise broken(error) from None


def broken(error: Exception) -> BrokenImage:
    """Any decoder's complaint as a BrokenImage with a reason that reads the same every time."""
    if isinstance(error, BrokenImage):
        return error
    if isinstance(error, UnidentifiedImageError):
        return BrokenImage("it is no image")
    return BrokenImage(f"{error}".strip() or type(error).__name__)


def check_size(height: int, width: int) -> None:
    """Refuse pictures too large to decode safely."""
    if height * width > MAX_PIXELS:
        raise BrokenImage(f"{width} × {height} is more than {MAX_PIXELS // 10**6} million pixels")


def _turned(data: bytes) -> bool:
    """Whether a JPEG carries an EXIF orientation other than upright."""
    if b"Exif\0" not in data[:4096]:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) != 1


def _decode_with_pillow(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        check_size(image.height, image.width)
        return np.asarray(to_rgb(ImageOps.exif_transpose(image)))


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a Pillow image of any mode; 16-bit grey is scaled, alpha is laid over white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((grey * 255 / 65535).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey = np.nan_to_num(np.asarray(image))
        return Image.fromarray((grey * (255 if grey.max() <= 1 else 1)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of the decoded image, from the header alone.

    Raises:
        BrokenImage: the header cannot be read.
    """
    try:
        if data[:2] == b"\xff\xd8" and not _turned(data):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            return width, height
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return image.size[::-1] if sideways else image.size
    except Exception as error:
        raise (broken(error) if data else BrokenImage("the file is empty")) from None
