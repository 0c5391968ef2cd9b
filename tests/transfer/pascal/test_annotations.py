"""Annotations and their pictures: an object outside its picture is refused, with file and number."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import transfer
from crosschannel import UserError
from crosschannel.data.images import MemoryImages
from transfer.boxes import clip_boxes, from_voc, invalid_box
from transfer.pascal.annotations import CLASSES, Objects, read_annotation
from transfer.pascal.config import PascalConfig
from transfer.pascal.detections import detection_metrics, detection_rows
from transfer.pascal.devkit import VOCImages, open_devkit

WIDTH, HEIGHT = 64, 48
SIZE = (WIDTH, HEIGHT)


def entry(*box: object, name: str = "boat", extra: str = "") -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False)
    inner = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    return f"<object><name>{name}</name>{extra}<bndbox>{inner}</bndbox></object>"


def document(*objects: str, size: str = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>") -> str:
    return f"<annotation>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "000007.xml"


def read(path: Path, text: str | bytes, size: tuple[int, int] | None = SIZE) -> Objects:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotation(path, size)


GOOD = {
    "the whole picture": entry(1, 1, 64, 48),
    "counted from 0": entry(0, 0, 63, 47),
    "a pixel past the edge": entry(1, 1, 65, 49),
    "fractions": entry("45.70000076293945", "1e0", 60.5, "4.75e1"),
    "one pixel": entry(20, 20, 20, 20),
    "white space": entry(" 10\n", "\t10 ", " 20 ", "20"),
    "the last pixel": entry(64, 48, 64, 48),
    "parts with boxes": entry(
        10, 10, 40, 40, name="person", extra="<part><name>head</name><bndbox><xmin>nan</xmin></bndbox></part>"
    ),
}


@pytest.mark.parametrize("case", GOOD)
@pytest.mark.parametrize("size", [SIZE, None])
def test_boxes_in_the_picture_are_accepted(path, case, size):
    objects = read(path, document(GOOD[case]), size)
    assert objects.boxes.shape == (1, 4) and objects.difficult.tolist() == [False]


BAD = {
    "nan": (entry("nan", 12, 48, 36), r"object 1 \(nan 12 48 36\) is not finite"),
    "infinite": (entry(1, 1, "inf", 36), "is not finite"),
    "more than a float holds": (entry("-1e999", 1, 20, 36), "is not finite"),
    "swapped": (entry(48, 36, 16, 12), r"\(48 36 16 12\) has no area"),
    "swapped in x": (entry(48, 12, 16, 36), "has no area"),
    "swapped in y": (entry(16, 36, 48, 12), "has no area"),
    "empty": (entry(20, 20, 19, 20), "has no area"),
    "outside": (entry(100, 90, 140, 120), "does not lie in the image, which is 64 × 48 pixels"),
    "left of it": (entry(-40, 10, -4, 20), "does not lie in the image"),
    "reaching out": (entry(10, 10, 66.5, 40), "does not lie in the image"),
    "in the border alone": (entry(65, 10, 65, 20), "does not lie in the image"),
    "of a larger picture": (entry(100, 100, 400, 300), "does not lie in the image"),
    "x and y exchanged": (entry(10, 20, 40, 60), "does not lie in the image"),
    "shares of the sides": (entry(0.25, 0.25, 0.75, 0.9), "coordinates must be in pixels, not fractions"),
    "an edge missing": (entry(1, 2, 3), "is damaged: the box of object 1 has .* ymax missing"),
    "an edge without a number": (entry(1, 2, "right", 4), "xmax right"),
    "no box": ("<object><name>dog</name></object>", "xmin missing"),
    "a name of others": (entry(1, 1, 9, 9, name="zebra"), "class 'zebra', which is not one of PASCAL's 20"),
    "a name in capitals": (entry(1, 1, 9, 9, name="Boat"), "class 'Boat'"),
    "no name": ("<object><bndbox/></object>", "class ''"),
    "an odd flag": (
        entry(1, 1, 9, 9, extra="<difficult>yes</difficult>"),
        "object 1 has difficult = 'yes', expected 0 or 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_an_object_outside_the_picture_is_refused_with_its_file(path, case):
    text, words = BAD[case]
    with pytest.raises(UserError, match=words) as caught:
        read(path, document(text))
    assert str(path) in str(caught.value)


def test_the_message_numbers_objects_as_the_file_does(path):
    with pytest.raises(UserError, match=r"object 3 \(100 1 120 9\)"):
        read(path, document(entry(1, 1, 9, 9), entry(1, 1, 20, 20), entry(100, 1, 120, 9)))


def test_a_perfect_detector_misses_no_accepted_object(path):
    """Random boxes in and around the picture are refused, or their visible part overlaps them by half."""
    generator = np.random.default_rng(0)
    accepted = []
    for _ in range(1000):
        box = generator.choice([-1, 0, 1, 2, 20, 30, 46, 47, 48, 49, 62, 63, 64, 65, 66, 90], 4)
        try:
            accepted.append(read(path, document(entry(*box))))
        except UserError:
            continue
    visible = [clip_boxes(from_voc(objects.boxes), HEIGHT, WIDTH) for objects in accepted]
    detections = [np.concatenate([[[CLASSES.index("boat"), 0.9]], boxes], 1) for boxes in visible]
    rows = detection_rows([str(i) for i in range(len(accepted))], CLASSES, detections, accepted)
    assert len(accepted) > 30 and detection_metrics(rows, np.ones((1, len(accepted))))["ap50"][0] == 1


@pytest.mark.parametrize("root", ["html", "Annotation", "annotations", "object"])
def test_a_file_with_another_root_is_refused(path, root):
    with pytest.raises(UserError, match=rf"000007\.xml is not an annotation: its root is <{root}>"):
        read(path, f"<{root}>{entry(1, 1, 9, 9)}</{root}>")


def test_a_picture_without_objects_is_a_negative_of_all_classes(path):
    assert not read(path, document()).labels().any()


SIZES = {
    "as seen": (64, 48, True),
    "a pixel more": (65, 47, True),
    "unknown": (0, 0, True),
    "fractions": ("64.0", "48.0", True),
    "exchanged": (48, 64, False),
    "of the picture before it was shrunk": (128, 96, False),
    "nan": ("nan", 48, False),
    "words": ("wide", "high", False),
}


@pytest.mark.parametrize("case", SIZES)
def test_the_stated_size_must_match_the_picture(path, case):
    width, height, fits = SIZES[case]
    text = document(entry(10, 10, 40, 40), size=f"<size><width>{width}</width><height>{height}</height></size>")
    if fits:
        assert len(read(path, text).boxes) == 1
    else:
        with pytest.raises(UserError, match=r"the annotation .*000007\.xml"):
            read(path, text)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_refer_to_the_upright_picture(tmp_path, orientation):
    folder = devkit(tmp_path, {"000007": entry(10, 10, 40, 40)})
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", SIZE).save(file, "JPEG", exif=exif)
    (folder / "JPEGImages" / "000007.jpg").write_bytes(file.getvalue())
    if orientation < 5:
        assert VOCImages(tmp_path, [("2007", "test")]).labels[0].sum() == 1
        return
    with pytest.raises(
        UserError, match=r"states a size of 64 × 48 pixels, but the image is 48 × 64, rotated by its EXIF"
    ):
        VOCImages(tmp_path, [("2007", "test")])
    upright = document(entry(10, 10, 40, 60), size="<size><width>48</width><height>64</height></size>")
    (folder / "Annotations" / "000007.xml").write_text(upright)
    assert len(VOCImages(tmp_path, [("2007", "test")])) == 1


def devkit(root: Path, objects: dict[str, str]) -> Path:
    """Write pictures of 64 × 48 with one object each, listed in the sets trainval and test."""
    folder = root / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for part in ("trainval", "test"):
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in objects))
    for name, text in objects.items():
        Image.new("RGB", SIZE).save(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations" / f"{name}.xml").write_text(document(text))
    return folder


def test_a_picture_that_cannot_be_read_is_left_to_the_loader(tmp_path):
    folder = devkit(tmp_path, {"000001": entry(1, 1, 9, 9), "000002": entry(1, 1, 9, 9)})
    (folder / "JPEGImages" / "000002.jpg").write_bytes(b"no picture")
    assert len(VOCImages(tmp_path, [("2007", "test")])) == 2


def test_small_inputs_that_once_failed(tmp_path, real_data):
    cases = real_data.parent / "cases"
    if not cases.is_dir():
        pytest.skip(f"no cases at {cases}")
    for path in cases.glob("box_*.xml"):
        with pytest.raises(UserError, match=path.name):
            read_annotation(path, SIZE)


BOMB = "<!ENTITY e0 'ha'>" + "".join(f"<!ENTITY e{i + 1} '{f'&e{i};' * 10}'>" for i in range(9))
XML = {
    "an unknown encoding": b'<?xml version="1.0" encoding="klingon"?><annotation/>',
    "an encoding that the parser lacks": b'<?xml version="1.0" encoding="shift_jis"?><annotation/>',
    "bytes of another encoding": "<annotation><folder>é</folder></annotation>".encode("latin-1"),
    "no XML": b"{}",
    "nothing": b"",
    "a picture": b"\x89PNG\r\n\x1a\n\0\0",
    "cut off": document(entry(1, 1, 9, 9)).encode()[:-20],
    "entities that stand for a gigabyte": f"<!DOCTYPE x [{BOMB}]><annotation>&e9;</annotation>".encode(),
    "an external entity": b"<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><annotation>&e;</annotation>",
    "megabytes": b"<annotation>" + b" " * (1 << 23) + b"</annotation>",
}  # fmt: skip


@pytest.mark.parametrize("case", XML)
def test_unreadable_xml_is_refused_at_once(path, case):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"annotation .*000007\.xml"):
        read(path, XML[case])
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_declared_encodings_are_read(path, encoding):
    name = encoding.removesuffix("-sig")
    text = f'<?xml version="1.0" encoding="{name}"?>' + document(entry(1, 1, 9, 9), "<folder>é</folder>")
    assert len(read(path, text.encode(encoding)).boxes) == 1


class Pictures(MemoryImages):
    """Pictures of 64 × 48 with the given annotations, each a positive of the class boat."""

    def __init__(self, name: str, *annotations: object):
        file = io.BytesIO()
        Image.new("RGB", SIZE).save(file, "PNG")
        names = [f"{name}{number}" for number in range(len(annotations))]
        super().__init__(names, [0] * len(names), [file.getvalue()] * len(names), CLASSES)
        self.labels, self.values = np.tile(np.eye(20, dtype=np.int8)[3], (len(names), 1)), annotations

    def fields(self, index: int) -> dict[str, object]:
        return {"objects": self.values[index]}


def objects(*boxes: object, dtype: type = float) -> Objects:
    return Objects(np.array(boxes, dtype), np.full(len(boxes), 3), np.full(len(boxes), False))


SOUND = objects([1, 1, 40, 40])
MEMORY = {
    "nan": (objects([1, 1, 9, 9], [np.nan, 1, 9, 9]), r"b1: the box of object 2 \(nan 1 9 9\) is not finite"),
    "outside": (objects([1, 1, 400, 40]), "b1: the box of object 1 .* does not lie in the image, which is 64 × 48"),
    "swapped": (objects([30, 1, 20, 40]), "has no area"),
    "shares of the sides": (objects([0.1, 0.1, 0.9, 0.9]), "must be in pixels"),
    "complex": (objects([1, 1, 9, 9], dtype=complex), r"must be \(1, 4\) real numbers"),
    "three edges": (objects([1, 1, 9]), r"must be \(1, 4\) real numbers, one row per object, got \(1, 3\)"),
    "a class too few": (Objects(np.ones((2, 4)), np.array([3]), np.array([False])), r"must be \(1, 4\) real numbers"),
    "flags that are numbers": (Objects(SOUND.boxes, SOUND.classes, np.array([0])), "difficult must be True or False"),
    "a label": (3, "must be transfer.pascal.devkit.Objects, got int"),
}


@pytest.mark.parametrize("case", MEMORY)
@pytest.mark.parametrize("is_test", [False, True])
def test_objects_from_memory_must_lie_in_their_pictures_too(monkeypatch, case, is_test):
    monkeypatch.setattr("transfer.protocol.load_backbone", None)
    invalid, words = MEMORY[case]
    pair = (Pictures("a", SOUND, SOUND), Pictures("b", SOUND, invalid))
    with pytest.raises(UserError, match=words):
        transfer.detect("random:alexnet", pair if is_test else pair[::-1], "voc-mini")


def test_labels_need_valid_annotations_too(tmp_path):
    devkit(tmp_path, {"000001": entry(1, 1, 9, 9), "000002": entry(1, 1, 900, 9)})
    with pytest.raises(UserError, match=r"000002\.xml: the box of object 1"):
        open_devkit(str(tmp_path), PascalConfig("backbone", "data"))


@pytest.mark.parametrize("size", [(8, 8), (500, 375), None])
def test_random_boxes_are_valid_exactly_if_they_lie_in_the_picture(size):
    """Against a plain restatement, box by box."""
    generator = np.random.default_rng(1)
    width, height = size or (1e9, 1e9)
    for _ in range(500):
        x1, y1, x2, y2 = (float(v) for v in generator.choice([-2, -1, 0, 3, 5, 7, 8, 9, 10, 374, 376, 499, 502], 4))
        inside = x1 < x2 and y1 < y2 and min(x1, y1) >= -1 and x2 <= width + 1 and y2 <= height + 1
        visible = max(0, min(x2, width) - max(x1, 0)) * max(0, min(y2, height) - max(y1, 0))
        inside = inside and visible >= (x2 - x1) * (y2 - y1) / 2
        assert (invalid_box(np.array([[x1, y1, x2, y2]]), size) is None) == inside


def test_real_annotations_lie_in_their_pictures(real_data):
    images = VOCImages(real_data / "voc-mini" / "VOCdevkit", [("2007", "trainval"), ("2007", "test")])
    assert len(images) == 288 and sum(len(objects.boxes) for objects in images.objects) == 1698
