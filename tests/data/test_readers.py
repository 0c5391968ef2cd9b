"""The loader and the commands that colour pictures read the same pixels of every file, or both refuse it."""

import io
import itertools
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin, features

from crosschannel.data.decode import BrokenImage, EncodedImage, decode, read_picture, to_rgb

Y, X = np.mgrid[:24, :40]
RGB = np.stack((X * 6, Y * 10, 255 - X * 6), -1).astype(np.uint8)
GREY = RGB[..., 0]
CASES = (
    Path(os.environ.get("CROSSCHANNEL_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data")).parent
    / "cases"
)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def xmp(orientation):
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def turned(orientation):
    """RGB as stored for an orientation."""
    flat = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1]}
    upright = {5: RGB.transpose(1, 0, 2), 6: np.rot90(RGB), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB, -1)}
    return Image.fromarray(np.ascontiguousarray((flat | upright)[orientation]))


def of_mode(mode):
    image = Image.fromarray(RGB)
    if mode == "I;16":
        return Image.fromarray(GREY.astype(np.uint16) * 257)
    image = Image.fromarray(GREY) if mode == "L" else image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def segment(marker, data):
    return b"\xff" + bytes([marker]) + (len(data) + 2).to_bytes(2, "big") + data


def with_segment(jpeg, marker, data):
    return jpeg[:2] + segment(marker, data) + jpeg[2:]


FORMATS = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
}
PLAIN = {f"{format} {mode}": encoded(of_mode(mode), format) for format, modes in FORMATS.items() for mode in modes}
JPEG = encoded(Image.fromarray(RGB), "JPEG", quality=95)
PNG = encoded(Image.fromarray(RGB), "PNG")
RECOVERABLE = {
    "97 extraneous bytes before the end": JPEG[:-2] + bytes(97) + JPEG[-2:],
    "5 extraneous bytes before a marker": JPEG[: JPEG.index(b"\xff\xda")] + b"\0" * 5 + JPEG[JPEG.index(b"\xff\xda") :],
    "JFIF 0.00": JPEG[:11] + b"\0\0" + JPEG[13:],
    "JFIF 9.99": JPEG[:11] + b"\x09\x63" + JPEG[13:],
    "an unknown Adobe transform": with_segment(JPEG, 0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 7])),
    "bytes after the end": JPEG + b"more of something else" * 10,
    "fill bytes": JPEG[:2] + b"\xff" * 5 + JPEG[2:],
    "damaged EXIF": with_segment(JPEG, 0xE1, b"Exif\0\0" + b"nonsense" * 9),
    "EXIF that is cut off": with_segment(JPEG, 0xE1, b"Exif\0\0MM\0*\0\0"),
    "an empty comment": with_segment(JPEG, 0xFE, b""),
}


def outcome(read):
    try:
        return read()
    except BrokenImage as error:
        assert str(error).strip()
        return None


def check_alike(data):
    """Check that both readers agree; return their pixels, or None if both refuse."""
    ours = outcome(lambda: decode(data))
    other = outcome(lambda: np.asarray(to_rgb(read_picture(data))))
    assert (ours is None) == (other is None)
    assert ours is None or np.array_equal(ours, other)
    return ours


@pytest.mark.parametrize("name", PLAIN)
def test_readers_agree_about_every_format_and_mode(name):
    pixels = check_alike(PLAIN[name])
    mode = name.split()[1]
    if mode in ("L", "I;16", "RGB") and not name.startswith("GIF"):
        truth = RGB if mode == "RGB" else np.repeat(GREY[..., None], 3, 2)
        assert np.abs(pixels.astype(int) - truth).mean() < (8 if name.startswith(("JPEG", "WEBP")) else 0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}], ids=str
)
def test_readers_agree_about_orientation_in_jpegs(orientation, options):
    upright = decode(encoded(turned(1), "JPEG", quality=98, **options)).astype(int)
    for tags in ({"exif": exif(orientation)}, {"xmp": xmp(orientation)}, {"exif": exif(orientation), "xmp": xmp(3)}):
        pixels = check_alike(encoded(turned(orientation), "JPEG", quality=98, **tags, **options))
        assert pixels.shape == RGB.shape and np.abs(pixels - upright).mean() < 8, tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_readers_agree_about_orientation_in_other_formats(orientation, format):
    options = {"lossless": True} if format == "WEBP" else {}
    pixels = check_alike(encoded(turned(orientation), format, exif=exif(orientation), **options))
    assert np.array_equal(pixels, RGB)


@pytest.mark.parametrize("name", RECOVERABLE)
def test_a_jpeg_that_libjpeg_recovers_is_read_as_pillow_reads_it(name):
    data = RECOVERABLE[name]
    pixels = check_alike(data)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))), name
    assert (EncodedImage(data).width, EncodedImage(data).height) == (40, 24)
    assert EncodedImage(data).pixels(2).shape in ((12, 20, 3), (24, 40, 3))


@pytest.mark.parametrize("name", [name for name in PLAIN if not name.startswith(("BMP", "GIF"))])
def test_readers_agree_about_files_that_are_cut_off(name):
    data = PLAIN[name]
    for share in (0.1, 0.3, 0.6):
        assert check_alike(data[: int(share * len(data))]) is None, share
    for missing in range(1, 40):  # all pixels may be there
        check_alike(data[:-missing])


@pytest.mark.parametrize("name", PLAIN)
def test_readers_agree_about_damaged_files(name):
    generator = np.random.default_rng(3)
    for _ in range(25):
        data = bytearray(PLAIN[name])
        for place in generator.integers(0, len(data), 3):
            data[place] ^= int(generator.integers(1, 256))
        check_alike(bytes(data))


def samples(dtype):
    """RGB in the range of a type."""
    dtype = np.dtype(dtype)
    white = 1 if dtype.kind == "f" else np.iinfo(dtype).max
    return np.rint(RGB / 255 * white).astype(dtype) if dtype.kind != "f" else (RGB / 255).astype(dtype)


TIFFS = [
    case
    for case in itertools.product(
        ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"),
        ("minisblack", "miniswhite", "rgb", "rgba"),
        ("contig", "separate"),
        (None, "zlib"),
        "<>",
        (None, (16, 16)),
    )
    if case[1].startswith("rgb") or case[2] == "contig"
]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"])
def test_a_scientific_tiff_is_read_correctly_or_refused_with_a_reason(dtype):
    for case in TIFFS:
        if case[0] != dtype:
            continue
        _, kind, planes, compression, order, tile = case
        values, truth, options = samples(dtype), RGB, {}
        if kind.startswith("minis"):
            values, truth = values[..., 0], np.repeat(GREY[..., None], 3, 2)
            truth = 255 - truth if kind == "miniswhite" else truth
        elif kind == "rgba":
            opaque = np.full_like(values[..., :1], 1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max)
            values, options = np.concatenate((values, opaque), -1), {"extrasamples": ["unassalpha"]}
        if planes == "separate":
            values = np.moveaxis(values, -1, 0)
        if values.ndim == 3:
            options["planarconfig"] = planes
        file = io.BytesIO()
        options |= {"photometric": kind.removesuffix("a"), "compression": compression, "byteorder": order, "tile": tile}
        tifffile.imwrite(file, values, metadata=None, **options)
        pixels = check_alike(file.getvalue())
        if dtype in ("u1", "u2", "f2", "f4", "f8"):
            assert pixels is not None and np.abs(pixels.astype(int) - truth).max() <= 1, case
        else:
            with pytest.raises(BrokenImage, match="no defined white level; convert the image to 8 or 16 bits"):
                decode(file.getvalue())
        if tile is None and compression is None:
            assert check_alike(file.getvalue()[: -file.getbuffer().nbytes // 3]) is None, case


@pytest.mark.parametrize(
    "values", [RGB * 257.0, GREY * 1.0, GREY / 255 - 0.1, np.where(GREY > 100, np.nan, GREY / 255)]
)
def test_floating_point_samples_outside_0_to_1_are_refused(values):
    file = io.BytesIO()
    tifffile.imwrite(file, values.astype(np.float32), photometric="rgb" if values.ndim == 3 else "minisblack")
    with pytest.raises(BrokenImage, match=r"floating-point samples must be in 0\.\.1, got "):
        decode(file.getvalue())
    assert check_alike(file.getvalue()) is None


def test_a_turned_scientific_tiff_is_upright():
    file = io.BytesIO()
    stored = np.rot90(samples("f4"))  # clockwise by 90 degrees is upright
    tifffile.imwrite(file, stored, photometric="rgb", extratags=[(274, 3, 1, 6, True)], metadata=None)
    assert np.array_equal(check_alike(file.getvalue()), RGB)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP"])
def test_pngs_with_megabytes_of_text_or_profile_are_read(kind, place):
    big = np.random.default_rng(0).integers(32, 100, 3 << 20, np.uint8).tobytes()
    if kind == "iCCP":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        data = b"icc\0\0" + zlib.compress(profile + big)
    else:
        payloads = {"zTXt": b"\0" + zlib.compress(big), "iTXt": b"\1\0\0\0" + zlib.compress(big), "tEXt": big}
        data = b"Comment\0" + payloads[kind]
    at = 33 if place == "before" or kind == "iCCP" else PNG.index(b"IEND") - 4  # after IHDR, or after the pixels
    assert np.array_equal(check_alike(PNG[:at] + chunk(kind.encode(), data) + PNG[at:]), RGB)


def test_the_transparent_value_of_a_16_bit_png_becomes_white():
    grey = np.arange(960, dtype=np.uint16).reshape(24, 40) * 60
    png = encoded(Image.fromarray(grey), "PNG")
    pixels = check_alike(png[:33] + chunk(b"tRNS", struct.pack(">H", 60 * 100)) + png[33:])
    expected = np.rint(grey / 257)
    expected[2, 20] = 255
    assert np.array_equal(pixels[..., 0], expected)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_pictures_is_taken(format):
    options = {"lossless": True} if format == "WEBP" else {}
    others = [Image.new("RGB", (40, 24), colour) for colour in ("red", "blue")]
    first = Image.fromarray(RGB).convert("P" if format == "GIF" else "RGB")
    data = encoded(first, format, save_all=True, append_images=others, **options)
    assert np.array_equal(check_alike(data), np.asarray(first.convert("RGB")))


def test_avif_is_read_or_refused_with_the_remedy(monkeypatch):
    if "avif" in features.modules and features.check("avif"):
        data = encoded(Image.fromarray(RGB), "AVIF", quality=95)
        assert np.abs(check_alike(data).astype(int) - RGB).mean() < 4
    monkeypatch.setattr("crosschannel.data.decode.READS_AVIF", False)
    with pytest.raises(BrokenImage, match=r"AVIF.*pip install 'pillow>=11\.3'"):
        decode(b"\0\0\0\x20ftypavif" + bytes(64))


def test_heic_is_read_or_refused_with_the_remedy(monkeypatch):
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        file = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(RGB)).save(file, quality=95)
        assert np.abs(check_alike(file.getvalue()).astype(int) - RGB).mean() < 4
    monkeypatch.setattr("crosschannel.data.decode.READS_HEIC", False)
    for brand in (b"heic", b"mif1"):
        with pytest.raises(BrokenImage, match=r"HEIC.*pip install 'crosschannel\[heif\]'"):
            decode(b"\0\0\0\x20ftyp" + brand + bytes(64))


def test_text_that_would_fill_the_memory_is_refused():
    bomb = b"Comment\0\0" + zlib.compress(bytes(1 << 27))
    with pytest.raises(BrokenImage):
        decode(PNG[:33] + chunk(b"zTXt", bomb) + PNG[33:])
    assert PngImagePlugin.MAX_TEXT_MEMORY <= 1 << 26


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no files at {CASES}")
def test_files_from_public_bug_reports():
    read = {
        path.name: check_alike(path.read_bytes()) for path in CASES.iterdir() if path.suffix in (".jpg", ".tif", ".png")
    }
    for name in ("jpeg_extraneous_bytes.jpg", "jpeg_jfif_revision_0.jpg"):
        assert np.array_equal(read[name], np.asarray(Image.open(CASES / name).convert("RGB")))
    assert read["jpeg_turned_by_exif.jpg"].shape == read["jpeg_turned_by_xmp_alone.jpg"].shape == (64, 48, 3)
    assert read["tiff_float_0_65535.tif"] is None
    planes = np.moveaxis(tifffile.imread(CASES / "tiff_rgb_16_bit_planar.tif"), 0, -1)
    assert np.abs(read["tiff_rgb_16_bit_planar.tif"] - planes / 257).max() <= 0.5
    assert np.array_equal(read["png_large_text.png"], read["tiff_rgb_16_bit_planar.tif"])
