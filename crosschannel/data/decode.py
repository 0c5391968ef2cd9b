"""Encoded bytes → uint8 RGB: JPEG by libjpeg-turbo at a reduced size where that is enough, the rest by Pillow."""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # by their first bytes, whatever a file is called
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs


class BrokenImage(Exception):
    """Bytes that do not decode to an image; the message says why."""


class EncodedImage:
    """An image. Of an upright JPEG only the header is read until its pixels are asked for.

    Args:
        data: a JPEG, PNG, WebP, TIFF, BMP or GIF file, grey, palette, CMYK, 16-bit or with alpha (laid over white).

    Attributes:
        data: the bytes.
        width, height: of the upright image, in pixels.

    Raises:
        BrokenImage: the bytes are no image, or would hold more than 178 million pixels.
    """

    def __init__(self, data: bytes):
        if not data:
            raise BrokenImage("the file is empty")
        self.data = data
        try:
            size = _plain_jpeg_size(data)
            self._picture = None if size else _upright(data)
            self.width, self.height = size or self._picture.size
        except Exception as error:  # decoders raise whatever they like on bytes they cannot read
            raise broken(error) from None
        check_size(self.height, self.width)

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """The upright 8-bit RGB image.

        Args:
            shrink: 1, 2, 4 or 8: a JPEG may be decoded at this part of its size.

        Returns:
            (H, W, 3) uint8, writable.

        Raises:
            BrokenImage: the bytes are cut off or damaged.
        """
        try:
            if self._picture is None:
                # Only these fractions have fast inverse transforms; 7/8 takes longer than the whole.
                least = {"min_height": -(-self.height // shrink), "min_width": -(-self.width // shrink)}
                return simplejpeg.decode_jpeg(self.data, "RGB", **(least if shrink > 1 else {}))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return np.array(to_rgb(self._picture))
        except Exception as error:
            raise broken(error) from None


def decode(data: bytes) -> np.ndarray:
    """Decode one image to upright 8-bit RGB: (H, W, 3) uint8; see :class:`EncodedImage`."""
    return EncodedImage(data).pixels()


def broken(error: Exception) -> BrokenImage:
    """Any decoder's complaint as a BrokenImage with a reason that reads the same every time."""
    if isinstance(error, BrokenImage):
        return error
    if isinstance(error, UnidentifiedImageError):
        return BrokenImage("it is no image")
    return BrokenImage(f"{error}".strip() or type(error).__name__)


def open_picture(data: bytes) -> Image.Image:
    """Pillow's view of an encoded picture, not decoded yet. Formats other than ``FORMATS`` are none here: some of
    Pillow's readers hand a file to other programs.

    Raises:
        BrokenImage: it would hold more than 178 million pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_size(image.height, image.width)
    return image


def check_size(height: int, width: int) -> None:
    """Refuse pictures too large to decode safely."""
    if height * width > MAX_PIXELS:
        raise BrokenImage(f"{width} × {height} is more than {MAX_PIXELS // 10**6} million pixels")


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of what libjpeg-turbo alone can decode: an upright JPEG that is not CMYK."""
    if data[:2] != b"\xff\xd8":
        return None
    if data.find(b"Exif\0", 0, 1 << 18) >= 0:  # segments of up to 64 KiB, such as colour profiles, may stand before it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if open_picture(data).getexif().get(0x0112, 1) != 1:
                return None
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    return None if space in ("CMYK", "YCCK") else (width, height)


def _upright(data: bytes) -> Image.Image:
    """What Pillow makes of it; decoded already where the orientation may stand behind the pixels (PNG)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(open_picture(data))


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a Pillow image of any mode; 16-bit grey is scaled, alpha is laid over white."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")  # of 65535 parts, 255
    if image.mode == "F":
        grey = np.nan_to_num(np.asarray(image))
        return Image.fromarray((grey * (255 if grey.max() <= 1 else 1)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
