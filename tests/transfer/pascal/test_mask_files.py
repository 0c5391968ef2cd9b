"""Mask files of every kind: the labels equal the truth, or the file is refused."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from crosschannel import UserError
from crosschannel.data.decode import EncodedImage
from transfer.pascal.mask_files import PALETTE, MaskFile, labels_of_colours
from transfer.pascal.masks import read_labels

HEIGHT, WIDTH = 6, 10
TRUTH = np.random.default_rng(0).choice([0, 1, 4, 15, 20, 255], (HEIGHT, WIDTH))


def png(rows: np.ndarray, depth: int, colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Encode a PNG by its specification, without Pillow and its conversions.

    Args:
        rows: (H, W) samples, or (H, W, channels).
        depth: bits per sample.
        colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        chunks: name and data of the chunks before the pixels.
    """
    height, width = rows.shape[:2]
    flat = rows.reshape(height, -1).astype(np.uint32)
    bits = ((flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(height, -1).astype(np.uint8)
    packed = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    png_bytes = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(packed)), (b"IEND", b"")):
        png_bytes += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png_bytes


def encoded(height: int = HEIGHT, width: int = WIDTH) -> EncodedImage:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return EncodedImage(file.getvalue())


def read(tmp_path: Path, data: bytes, classes: int = 21, is_pascal: bool = True) -> np.ndarray:
    path = tmp_path / "2007_000032.png"
    path.write_bytes(data)
    return read_labels(MaskFile(path, is_pascal), encoded(), classes)


def palette(colours: np.ndarray) -> tuple[bytes, bytes]:
    return b"PLTE", colours.astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("colour", "depth"), [*((0, depth) for depth in (1, 2, 4, 8, 16)), (3, 1), (3, 2), (3, 4), (3, 8)]
)
def test_grey_values_and_palette_indices_of_any_depth_are_labels(tmp_path, depth, colour):
    truth = np.random.default_rng(1).integers(0, min(21, 1 << depth), (HEIGHT, WIDTH))
    chunks = [palette(PALETTE[: 1 << depth])] if colour == 3 else []
    for is_pascal in (True, False):
        labels = read(tmp_path, png(truth, depth, colour, *chunks), 21, is_pascal)
        assert labels.dtype == np.uint8 and (labels == truth).all()


def test_16_bit_masks_hold_labels_or_are_refused(tmp_path):
    assert (read(tmp_path, png(TRUTH, 16, 0)) == TRUTH).all()
    for label in (21, 254, 256, 300, 65535):
        with pytest.raises(UserError, match=rf"2007_000032\.png has the label {label}"):
            read(tmp_path, png(np.full((HEIGHT, WIDTH), label), 16, 0))


@pytest.mark.parametrize("has_alpha", [False, True])
def test_pascals_colours_are_labels_exactly(tmp_path, has_alpha):
    colours = PALETTE[TRUTH]
    if has_alpha:
        colours = np.concatenate([colours, np.full((HEIGHT, WIDTH, 1), 255)], 2)
    assert (read(tmp_path, png(colours, 8, 6 if has_alpha else 2)) == TRUTH).all()


def test_only_the_colours_of_pascals_labels_are_labels():
    labels = [*range(21), 255]
    assert labels_of_colours(PALETTE[labels]).tolist() == labels
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (5000, 3)).astype(np.uint8)
    known = {tuple(PALETTE[label].tolist()): label for label in labels}
    assert labels_of_colours(colours).tolist() == [known.get(tuple(colour), -1) for colour in colours.tolist()]
    assert (labels_of_colours(PALETTE[21:255]) == -1).all()


def test_a_palette_with_pascals_colours_in_another_order_is_read_by_its_colours(tmp_path):
    order = np.array([255, 20, 0, 15, 4, 1])
    indices = np.argsort(order)[np.searchsorted(np.sort(order), TRUTH)]
    data = png(indices, 4, 3, palette(PALETTE[order]))
    assert (read(tmp_path, data) == TRUTH).all()
    assert (read(tmp_path, data, is_pascal=False) == indices).all()  # other classes have other colours


def test_a_palette_of_other_colours_is_read_by_its_indices(tmp_path):
    for colours in (np.random.default_rng(0).integers(0, 256, (256, 3)), np.arange(768).reshape(256, 3) % 255):
        assert (read(tmp_path, png(TRUTH, 8, 3, palette(colours))) == TRUTH).all()
    short = np.where(TRUTH == 255, 0, TRUTH)  # a palette with fewer colours than labels
    assert (read(tmp_path, png(short, 8, 3, palette(PALETTE[:21]))) == short).all()


def test_an_opaque_grey_mask_is_read_as_its_grey_values(tmp_path):
    opaque = np.stack([TRUTH, np.full(TRUTH.shape, 255)], 2)
    assert (read(tmp_path, png(opaque, 8, 4)) == TRUTH).all()


ODD = PALETTE[TRUTH].astype(int)
ODD[2, 3] = (1, 2, 3)
REFUSED = {
    "a colour that is none of PASCAL's": (png(ODD, 8, 2), r"\(1, 2, 3\) is not one of PASCAL's"),
    "16-bit colours": (png(PALETTE[TRUTH].astype(int) * 257, 16, 2), "16-bit PNG of mode RGB"),
    "16-bit colours and alpha": (png(np.full((HEIGHT, WIDTH, 4), 65535), 16, 6), "16-bit PNG of mode RGBA"),
    "16-bit grey and alpha": (png(np.full((HEIGHT, WIDTH, 2), 65535), 16, 4), "16-bit PNG"),
    "transparent colours": (png(np.zeros((HEIGHT, WIDTH, 4)), 8, 6), "is partly transparent"),
    "transparent grey": (png(np.full((HEIGHT, WIDTH, 2), 4), 8, 4), "is partly transparent"),
    "turned by EXIF": (
        png(TRUTH, 8, 0, (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0")),
        "EXIF orientation",
    ),
    "cut off": (png(TRUTH, 8, 0)[:60], "is damaged"),
    "a JPEG": (b"\xff\xd8\xff\xe0" + b"\0" * 40, "is damaged"),
    "nothing": (b"", "is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ambiguous_and_damaged_masks_are_refused(tmp_path, case):
    data, words = REFUSED[case]
    with pytest.raises(UserError, match=r"the mask .*2007_000032\.png") as caught:
        read(tmp_path, data)
    assert re.search(words, str(caught.value))


def test_colours_are_not_labels_of_other_classes(tmp_path):
    with pytest.raises(UserError, match=r"2007_000032\.png is a colour image; a mask must be a palette or grey PNG"):
        read(tmp_path, png(PALETTE[TRUTH], 8, 2), 30, is_pascal=False)


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "LA", "RGB", "RGBA"])
def test_masks_in_every_mode_of_pillow_are_read_exactly_or_refused(tmp_path, mode):
    truth = np.where(TRUTH > 1, 1, TRUTH) if mode == "1" else np.where(TRUTH == 255, 0, TRUTH)
    if mode == "I;16":
        picture = Image.fromarray(truth.astype(np.uint16))
    elif mode in ("L", "1"):
        picture = Image.fromarray((truth * (255 if mode == "1" else 1)).astype(np.uint8)).convert(mode)
    else:
        picture = Image.fromarray(PALETTE[truth]).convert(mode)
    file = io.BytesIO()
    picture.save(file, "PNG")
    try:
        labels = read(tmp_path, file.getvalue())
    except UserError as error:
        assert "2007_000032.png" in str(error)
    else:
        assert (labels == truth).all()


def matlab(path: Path, labels: object) -> Path:
    inner = np.empty((1, 1), [("Segmentation", "O"), ("Boundaries", "O")])
    inner[0, 0] = (labels, 0)
    savemat(path, {"GTcls": inner})
    return path


INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]


@pytest.mark.parametrize("dtype", [*INTEGERS, bool])
def test_sbds_labels_of_any_type_are_read_exactly(tmp_path, dtype):
    truth = np.where(TRUTH == 255, 7, TRUTH) if dtype is not bool else TRUTH > 4
    path = matlab(tmp_path / "2008_000002.mat", truth.astype(dtype))
    assert (read_labels(MaskFile(path), encoded(), 21) == truth).all()


def changed(value: float) -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH))
    labels[3, 4] = value
    return labels


MATLAB = {
    "nan": (changed(np.nan), "has the label nan"),
    "infinite": (changed(np.inf), "has the label inf"),
    "a fraction": (changed(3.5), "has the label 3.5"),
    "276": (changed(276), "has the label 276"),
    "276 as an integer": (changed(276).astype(np.uint16), "has the label 276"),
    "-1": (changed(-1), "has the label -1"),
    "21": (changed(21).astype(np.uint8), "has the label 21"),
    "huge": (changed(1e300), "has the label 1e"),
    "complex": (changed(1) + 0j, "values of the type complex128"),
    "words": ("boat", "type <U4"),
    "cells": (np.array([[1, "a"]], object), "type object"),
    "another size": (np.zeros((WIDTH, HEIGHT), np.uint8), "is 6 × 10, but its image is 10 × 6"),
    "three dimensions": (np.zeros((HEIGHT, WIDTH, 3), np.uint8), "must be"),
}


@pytest.mark.parametrize("case", MATLAB)
def test_sbds_files_without_labels_are_refused(tmp_path, case):
    labels, words = MATLAB[case]
    path = matlab(tmp_path / "2008_000002.mat", labels)
    with pytest.raises(UserError, match=rf"2008_000002\.mat.*{words}"):
        read_labels(MaskFile(path), encoded(), 21)


def test_a_matlab_file_without_a_mask_is_reported_as_damaged(tmp_path):
    savemat(tmp_path / "a.mat", {"x": np.zeros(3)})
    with pytest.raises(UserError, match=r"the mask .*a\.mat is damaged"):
        read_labels(MaskFile(tmp_path / "a.mat"), encoded(), 21)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_arrays_of_integers_are_labels(dtype):
    truth = np.where(TRUTH == 255, 7, TRUTH)
    labels = read_labels(truth.astype(dtype), encoded(), 21)
    assert labels.dtype == np.uint8 and (labels == truth).all()
    assert (read_labels(truth.tolist(), encoded(), 21) == truth).all()


def test_tensors_are_labels():
    import torch

    assert (read_labels(torch.tensor(TRUTH), encoded(), 21) == TRUTH).all()


ARRAYS = {
    "fractions": TRUTH + 0.5,
    "floats": TRUTH.astype(np.float32),
    "truth values": TRUTH > 3,
    "complex": TRUTH + 0j,
    "text": TRUTH.astype(str),
    "none": None,
    "rows of different lengths": [[1, 2], [3]],
    "a label too large": np.where(TRUTH == 255, 300, TRUTH),
    "a label below 0": np.where(TRUTH == 255, -1, TRUTH),
    "masked values": np.ma.masked_array(TRUTH, TRUTH == 4),
    "colours": PALETTE[TRUTH],
    "a row": TRUTH[0],
    "another size": TRUTH.T,
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_are_not_labels_are_refused(case):
    with pytest.raises(UserError, match="the mask of an image"):
        read_labels(ARRAYS[case], encoded(), 21)


def test_small_inputs_that_once_failed(real_data):
    cases = real_data.parent / "cases"
    if not cases.is_dir():
        pytest.skip(f"no cases at {cases}")

    def labels(name: str) -> set[int]:
        return set(np.unique(read_labels(MaskFile(cases / name), encoded(48, 64), 21)).tolist())

    assert labels("mask_boat_palette.png") == labels("mask_boat_in_colours.png") == {0, 4}
    assert labels("mask_one_bit.png") == {0, 1}
    with pytest.raises(UserError, match="has the label 300"):
        labels("mask_16_bit_label_300.png")


def test_the_masks_of_real_photographs_are_read_as_before(real_data):
    folder = real_data / "voc-mini" / "VOCdevkit" / "VOC2007" / "SegmentationClass"
    for path in sorted(folder.glob("*.png"))[:40]:
        assert (MaskFile(path).read() == np.array(Image.open(path))).all()
