import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from crosschannel.data.decode import BrokenImage, EncodedImage, decode

COLOURS = np.array([[[200, 30, 30], [30, 200, 30]], [[30, 30, 200], [240, 240, 240]]], np.uint8)
PICTURE = COLOURS.repeat(16, 0).repeat(24, 1)  # 32 × 48


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


RGB = Image.fromarray(PICTURE)


@pytest.mark.parametrize(
    ("name", "data", "tolerance"),
    [
        ("jpeg", encoded(RGB, "JPEG", quality=98, subsampling=0), 6),
        ("progressive jpeg", encoded(RGB, "JPEG", quality=98, subsampling=0, progressive=True), 6),
        ("png", encoded(RGB, "PNG"), 0),
        ("webp", encoded(RGB, "WEBP", lossless=True), 0),
        ("bmp", encoded(RGB, "BMP"), 0),
        ("tiff", encoded(RGB, "TIFF"), 0),
        ("palette png", encoded(RGB.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), 3),
        ("opaque alpha", encoded(RGB.convert("RGBA"), "PNG"), 0),
        ("cmyk jpeg", encoded(RGB.convert("CMYK"), "JPEG", quality=98), 12),
    ],
)
def test_colour_formats_decode_to_the_picture(name, data, tolerance):
    pixels = decode(data)
    assert pixels.dtype == np.uint8 and pixels.shape == (32, 48, 3)
    inner = np.s_[4:12, 4:20]  # away from the edges that JPEG smears
    assert np.abs(pixels[inner].astype(int) - PICTURE[inner].astype(int)).max() <= tolerance, name
    assert (EncodedImage(data).width, EncodedImage(data).height) == (48, 32)


def test_grey_and_16_bit_pictures_become_three_equal_channels():
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(8, 0)
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.uint16) * 257)):
        pixels = decode(encoded(image, "PNG"))
        assert (pixels == pixels[:, :, :1]).all()
        assert np.abs(pixels[..., 0].astype(int) - ramp).max() <= 1
    assert (decode(encoded(Image.fromarray(ramp), "JPEG", quality=95)).std(2) == 0).all()


def test_alpha_is_laid_over_white():
    image = RGB.convert("RGBA")
    image.putalpha(0)
    assert (decode(encoded(image, "PNG")) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {1: PICTURE, 2: PICTURE[:, ::-1], 3: PICTURE[::-1, ::-1], 4: PICTURE[::-1]}
    turned = {5: PICTURE.transpose(1, 0, 2), 6: np.rot90(PICTURE, 1), 7: PICTURE[::-1, ::-1].transpose(1, 0, 2)}
    stored |= turned | {8: np.rot90(PICTURE, -1)}
    image = Image.fromarray(np.ascontiguousarray(stored[orientation]))
    data = encoded(image, "JPEG", quality=98, subsampling=0, exif=exif)
    pixels = decode(data)
    assert pixels.shape == PICTURE.shape and (EncodedImage(data).width, EncodedImage(data).height) == (48, 32)
    assert np.abs(pixels[4:12, 4:20].astype(int) - PICTURE[4:12, 4:20]).max() <= 6


def test_an_orientation_behind_a_long_colour_profile_is_honoured():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(np.ascontiguousarray(np.rot90(PICTURE, 1))), "JPEG", exif=exif)
    profile = b"\xff\xe2" + (60_002).to_bytes(2, "big") + bytes(60_000)
    assert decode(turned[:2] + profile * 2 + turned[2:]).shape == PICTURE.shape


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("height", [512, 509])
def test_a_shrunk_jpeg_is_that_part_of_its_size(photos, shrink, height):
    data = encoded(Image.fromarray(photos[0][:height]), "JPEG")
    pixels = EncodedImage(data).pixels(shrink)
    assert pixels.shape == (-(-height // shrink), 512 // shrink, 3)
    whole = height // shrink  # the last row may stand for fewer
    means = decode(data)[: whole * shrink].reshape(whole, shrink, 512 // shrink, shrink, 3).mean((1, 3))
    assert np.abs(pixels[:whole] - means).mean() < 3


def test_a_format_that_cannot_shrink_is_decoded_whole():
    assert EncodedImage(PNG).pixels(4).shape == (32, 48, 3)


PNG = encoded(RGB, "PNG")
JPEG = encoded(RGB, "JPEG")


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, I am a text file", JPEG[:40], JPEG[: len(JPEG) // 2], PNG[:60], PNG[: len(PNG) // 2], b"\xff\xd8"],
    ids=["empty", "text", "JPEG header", "half JPEG", "PNG header", "half PNG", "two bytes"],
)
def test_broken_bytes_are_a_broken_image(data):
    with pytest.raises(BrokenImage):
        decode(data)


def test_an_absurdly_large_picture_is_refused_before_it_is_decoded():
    header = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    header[16:24] = struct.pack(">II", 60_000, 60_000)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    with pytest.raises(BrokenImage, match="pixels"):
        decode(bytes(header))
