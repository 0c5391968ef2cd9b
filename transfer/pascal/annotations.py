"""Object annotations of the VOC devkit, checked against the image files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from crosschannel.errors import UserError
from crosschannel.files import read_bytes
from transfer.boxes import from_voc, invalid_box

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
POSITIVE, NEGATIVE, IGNORED = 1, 0, -1  # image labels per class; IGNORED: all objects of the class are difficult
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_MAX_BYTES = 1 << 22  # size limit of an annotation file


@dataclass(frozen=True)
class Objects:
    """Annotated objects of an image.

    Attributes:
        boxes: (G, 4) float64 x₁ y₁ x₂ y₂, in the devkit's 1-based pixel coordinates with inclusive ends.
        classes: (G,) int64 indices into ``CLASSES``.
        difficult: (G,) bool, whether each object is marked difficult.
    """

    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray

    def labels(self) -> np.ndarray:
        """Return the image's label for each class, (20,) int8: POSITIVE, NEGATIVE or IGNORED."""
        labels = np.full(len(CLASSES), NEGATIVE, np.int8)
        labels[self.classes[self.difficult]] = IGNORED
        labels[self.classes[~self.difficult]] = POSITIVE
        return labels

    def check(self, size: tuple[int, int] | None, name: str) -> None:
        """Raise a UserError if the arrays have inconsistent shapes or a box does not lie in the image.

        Args:
            size: width and height of the upright image; None: unknown.
            name: name or file of the image, for the message.
        """
        boxes, difficult = np.asarray(self.boxes), np.asarray(self.difficult)
        shape = (len(self.classes), 4)
        if boxes.shape != shape or boxes.dtype.kind not in "iuf" or len(difficult) != shape[0]:
            raise UserError(f"{name}: boxes must be {shape} real numbers, one row per object, got {boxes.shape}")
        if shape[0] and difficult.dtype.kind != "b":
            raise UserError(f"{name}: difficult must be True or False for each object, got {difficult.dtype}")
        invalid = invalid_box(from_voc(boxes.astype(np.float64)), size)
        if invalid:
            index, fault = invalid
            box = " ".join(f"{edge:g}" for edge in boxes[index])
            raise UserError(f"{name}: the box of object {index + 1} ({box}) {fault}")


def read_annotation(path: Path, size: tuple[int, int] | None = None) -> Objects:
    """Read the objects of an image.

    Args:
        path: XML file.
        size: width and height of the upright image; None: unknown.

    Raises:
        UserError: the file is missing or not an annotation, its size differs from the image's, or an object has an
            unknown class or a box that does not lie in the image.
    """
    root = _read_xml(path)
    if root.tag != "annotation":
        raise UserError(f"{path} is not an annotation: its root is <{root.tag}>, not <annotation>")
    _check_size(root, size, path)
    rows = list(_rows(root, path))
    boxes = np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4)
    classes, difficult = (np.array([row[column] for row in rows]) for column in (1, 2))
    objects = Objects(boxes, classes.astype(np.int64), difficult.astype(bool))
    objects.check(size, str(path))
    return objects


def _read_xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(read_bytes(path, _MAX_BYTES))
    except FileNotFoundError:
        raise UserError(f"the devkit lacks the annotation {path}") from None
    except OSError as error:
        raise UserError(f"could not read the annotation {path}: {error.strerror}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: an unknown encoding
        raise UserError(f"the annotation {path} is damaged: {error}") from None


def _check_size(root: ElementTree.Element, actual: tuple[int, int] | None, path: Path) -> None:
    """Raise a UserError if the size in the annotation is not the image's. Some tools write 0 for unknown sizes."""
    texts = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    if not all(texts):
        return
    try:
        size = tuple(round(float(text)) for text in texts)
    except (ValueError, OverflowError):
        raise UserError(f"the annotation {path} is damaged: it states the size {' × '.join(texts)}") from None
    if not actual or not all(size) or all(abs(a - b) <= 1 for a, b in zip(size, actual, strict=True)):
        return
    cause = ", rotated by its EXIF orientation or with width and height swapped" if size[::-1] == actual else ""
    raise UserError(
        f"the annotation {path} states a size of {size[0]} × {size[1]} pixels, but the image is {actual[0]} × "
        f"{actual[1]}{cause}: size and boxes must be those of the upright image"
    )


def _rows(root: ElementTree.Element, path: Path) -> Iterator[tuple[list[float], int, bool]]:
    """Yield the box, class index and difficult flag of every object."""
    for number, entry in enumerate(root.iter("object"), 1):
        name = entry.findtext("name", "").strip()
        if name not in CLASSES:
            raise UserError(f"{path} has an object of the class {name!r}, which is not one of PASCAL's 20")
        difficult = entry.findtext("difficult", "").strip() or "0"
        if difficult not in ("0", "1"):
            raise UserError(
                f"the annotation {path} is damaged: object {number} has difficult = {difficult!r}, expected 0 or 1"
            )
        edges = [entry.findtext(f"bndbox/{edge}", "") for edge in _EDGES]
        try:
            box = [float(edge) for edge in edges]
        except ValueError:
            values = ", ".join(f"{key} {edge.strip() or 'missing'}" for key, edge in zip(_EDGES, edges, strict=True))
            raise UserError(f"the annotation {path} is damaged: the box of object {number} has {values}") from None
        yield box, CLASSES.index(name), difficult == "1"
