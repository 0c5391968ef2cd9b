"""Decode image files to uint8 RGB.

:func:`read_picture` reads every format and is shared by all commands. For undamaged upright JPEGs,
:class:`EncodedImage` uses libjpeg-turbo, which returns the same pixels faster and can decode at a reduced size.
"""

import importlib.util
import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, PngImagePlugin, UnidentifiedImageError, features

from crosschannel.data.bit_depth import TIFF, read_tiff, to_8_bit_picture

READS_AVIF = "avif" in features.modules and features.check("avif")
READS_HEIC = importlib.util.find_spec("pillow_heif") is not None
# Detected by magic bytes, not by file name. Other formats are disabled: some of Pillow's readers run external programs.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", *(("AVIF",) if READS_AVIF else ()))
MAX_PIXELS = 178_956_970  # Pillow's limit against decompression bombs
_AVIF, _HEIC = (b"avif", b"avis"), (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation

# Photo editors write text chunks and colour profiles above Pillow's limit of 1 MB per chunk. MAX_TEXT_MEMORY still
# limits the total text of a file.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


class BrokenImage(Exception):
    """Failure to read, decode or write an image; the message is the reason."""


class EncodedImage:
    """An encoded image. The pixels of upright JPEGs are decoded on demand, those of other files at construction.

    Args:
        data: contents of a JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC file. Greyscale, palette, CMYK and 16-bit
            images are supported; alpha is composited over white.

    Attributes:
        data: contents of the file.
        width, height: size of the upright image, in pixels.

    Raises:
        BrokenImage: the data is not an image, or the image has more than 178 million pixels.
    """

    def __init__(self, data: bytes):
        self.data = data
        size = _upright_jpeg_size(data)
        self._picture = None if size else read_picture(data)
        self.width, self.height = size or self._picture.size
        check_size(self.height, self.width)

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Decode the upright 8-bit RGB image.

        Args:
            shrink: 1, 2, 4 or 8; JPEGs may be decoded at 1/shrink of their size, other images at full size.

        Returns:
            (H, W, 3) uint8, writable.

        Raises:
            BrokenImage: the data is truncated or damaged.
        """
        if self._picture is None:
            # libjpeg-turbo has fast inverse DCTs only for 1/2, 1/4 and 1/8; 7/8 would be slower than full size.
            min_size = {"min_height": -(-self.height // shrink), "min_width": -(-self.width // shrink)}
            try:
                return simplejpeg.decode_jpeg(self.data, "RGB", **(min_size if shrink > 1 else {}))
            except Exception:  # a libjpeg warning or error; Pillow tolerates more damage
                self._picture = read_picture(self.data)
        try:
            return np.array(to_rgb(self._picture))
        except Exception as error:
            raise broken_image(error) from None


def decode(data: bytes) -> np.ndarray:
    """Decode an image to upright 8-bit RGB, (H, W, 3) uint8; see :class:`EncodedImage`."""
    return EncodedImage(data).pixels()


def read_picture(data: bytes) -> Image.Image:
    """Decode a picture to at most 8 bits per sample and turn it upright, keeping its mode and ``info``.

    Only the first picture of a file is read. The orientation is read from EXIF, or else from XMP.

    Raises:
        BrokenImage: the data is not an image, is truncated or damaged, or has more than 178 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture, orientation = (data[:4] in TIFF and read_tiff(data, check_size)) or _read(data)
            return picture.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else picture
    except Exception as error:  # decoders raise all kinds of exceptions for invalid data
        raise broken_image(error) from None


def _read(data: bytes) -> tuple[Image.Image, int]:
    """Read a picture with Pillow, as stored (not rotated), and its EXIF orientation."""
    image = open_picture(data)
    image.load()
    return to_8_bit_picture(image), _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data: no rotation
        return 1


def broken_image(error: Exception) -> BrokenImage:
    """Convert the error of a decoder to a BrokenImage with a reproducible message."""
    if isinstance(error, BrokenImage):
        return error
    if isinstance(error, UnidentifiedImageError):
        return BrokenImage("not an image")
    return BrokenImage(f"{error}".strip() or type(error).__name__)


def open_picture(data: bytes) -> Image.Image:
    """Open an encoded picture with Pillow without decoding its pixels.

    Raises:
        BrokenImage: the file is empty, has an unsupported format or more than 178 million pixels.
    """
    if not data:
        raise BrokenImage("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        brand = data[8:12] if data[4:8] == b"ftyp" else b""
        if brand in _AVIF and not READS_AVIF:
            raise BrokenImage("AVIF requires a newer Pillow: pip install 'pillow>=11.3', or convert it to PNG or JPEG")
        image = _open_heic(data) if brand in _HEIC else Image.open(io.BytesIO(data), formats=FORMATS)
    check_size(image.height, image.width)
    return image


def _open_heic(data: bytes) -> Image.Image:
    if not READS_HEIC:
        raise BrokenImage("HEIC requires pillow-heif: pip install 'crosschannel[heif]', or convert it to PNG or JPEG")
    from pillow_heif import HeifImageFile

    return HeifImageFile(io.BytesIO(data))


def check_size(height: int, width: int) -> None:
    """Raise BrokenImage for images too large to decode safely."""
    if height * width > MAX_PIXELS:
        raise BrokenImage(f"{width} × {height} pixels exceed the limit of {MAX_PIXELS // 10**6} million")


def _upright_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of an upright JPEG; None for CMYK and other files that libjpeg-turbo cannot decode."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        if _has_metadata(data) and _orientation(open_picture(data)) != 1:
            return None
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    except Exception:  # Pillow tolerates more damage
        return None
    return None if colour_space in ("CMYK", "YCCK") else (width, height)


def _has_metadata(data: bytes) -> bool:
    """Whether a JPEG has EXIF or XMP data before its pixels, or a header that only Pillow can parse."""
    offset = 2
    while data[offset : offset + 1] == b"\xff":
        marker = data[offset + 1 : offset + 2]
        if marker == b"\xda":  # start of scan
            return False
        if marker == b"\xe1":  # APP1
            return True
        offset += 1 if marker == b"\xff" else 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return True


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image of any mode to 8-bit RGB; alpha is composited over white.

    Raises:
        ValueError: unsupported samples (see :func:`~crosschannel.data.bit_depth.scale_to_8_bit`) or colour space.
    """
    image = to_8_bit_picture(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
