"""Proposals by image: our files, MATLAB's of selective search as published, and image sets that carry them."""

import contextlib
import json
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

import numpy as np

from crosschannel.data import ImageSet
from crosschannel.data.images import AnnotatedImages
from crosschannel.errors import UserError, wrap_external_errors
from crosschannel.files import Writer, atomic_write, user_path
from crosschannel.stored import read_arrays
from transfer.boxes import invalid_box, overlaps, picture_size

_FORMAT = "crosschannel.proposals"
_MAX_BYTES = 1 << 33  # of the arrays of a file

_FROM_MATLAB = np.array([1, 1, 0, 0], np.float32)  # offset of corners that count from 1, both inside

# Boxes are (P, 4) x₁ y₁ x₂ y₂ in pixels from 0, the ends outside: a box of the whole image is 0 0 width height.
Boxes = Mapping[str, np.ndarray]


def save_boxes(
    path: Path,
    boxes: Boxes,
    metadata: Mapping[str, str],
    write: Writer = atomic_write,
    digests: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write ``.npz``: names, number of boxes and digest of each picture, the boxes, and metadata.

    Args:
        path: the file.
        boxes: boxes by image.
        metadata: such as the method.
        write: context that yields the path to write to.
        digests: digests of the pictures by image, see :func:`picture_digests`.
    """
    arrays = {
        "digests": np.array([digests.get(name, "") for name in boxes], np.str_),
        "names": np.array(list(boxes), np.str_),
        "counts": np.array([len(found) for found in boxes.values()], np.int64),
        "boxes": np.concatenate([np.empty((0, 4), np.int32), *boxes.values()]).astype(np.int32),
        "told": np.array(json.dumps({"format": _FORMAT, **metadata})),
    }
    with write(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def picture_digests(images: ImageSet, names: Container[str]) -> dict[str, str]:
    """Hash each named picture to 16 hex digits; unreadable ones are left out."""
    digests = {}
    for index, name in enumerate(images.names):
        if name in names:
            with contextlib.suppress(OSError):
                digests[name] = sha256(images.read(index)).hexdigest()[:16]
    return digests


def load_digests(path: Path) -> dict[str, str]:
    """Load the picture digests of a ``.npz`` file of proposals; files of earlier versions have none.

    Raises:
        UserError: the file is damaged.
    """
    arrays = read_arrays(path, _MAX_BYTES)
    names, digests = arrays.get("names", np.empty(0)), arrays.get("digests", np.empty(0))
    if digests.dtype.kind != "U" or names.shape != digests.shape:
        return {}
    return {name: digest for name, digest in zip(names.tolist(), digests.tolist(), strict=True) if digest}


def check_pictures(path: Path, images: ImageSet) -> None:
    """Raise a UserError if a file has proposals for other pictures of the same names."""
    boxes, stored = load_boxes(path), load_digests(path)
    digests = picture_digests(images, stored)
    for index, name in enumerate(images.names):
        if name in digests and digests[name] != stored[name]:
            raise UserError(f"{path} has proposals of another picture called {name}; delete it, or give another --out")
        if name in boxes and name not in stored:  # in a file of an earlier version
            check_boxes(boxes[name], images, index, str(path))


def check_boxes(boxes: np.ndarray, images: ImageSet, index: int, source: str) -> None:
    """Raise a UserError if a proposal does not lie in its picture.

    Args:
        boxes: (P, 4) boxes of the picture.
        images, index: the picture.
        source: file of the boxes, for the message.
    """
    invalid = invalid_box(boxes, picture_size(images, index))
    if invalid:
        number, fault = invalid
        box = " ".join(f"{edge:g}" for edge in boxes[number].tolist())
        raise UserError(f"{source}: proposal {number + 1} of {images.names[index]} (x₁ y₁ x₂ y₂ {box}) {fault}")


def load_boxes(path: Path | str, most: int = 0) -> dict[str, np.ndarray]:
    """The boxes of a file by image.

    Args:
        path: ``.npz`` of ours, or ``.mat`` with ``images`` and ``boxes``, whose boxes are y₁ x₁ y₂ x₂ from 1 with both
            ends inside.
        most: boxes of an image that are kept, the first ones; 0: all.

    Raises:
        UserError: it is neither, or damaged.
    """
    path = user_path(path)
    if not path.is_file():
        raise UserError(f"no file of proposals {path}")
    if path.suffix == ".mat":
        found = _read_mat(path)
    elif path.suffix == ".npz":
        found = _read_npz(path)
    else:
        raise UserError(f"{path}: proposals are .npz (of `transfer proposals`) or .mat files")
    return {name: boxes[: most or None] for name, boxes in found.items()}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path, _MAX_BYTES)
    try:
        names, counts, boxes = arrays["names"], arrays["counts"], arrays["boxes"]
        told = json.loads(str(arrays["told"]))
        whole = told["format"] == _FORMAT and len(names) == len(counts) and boxes.shape == (int(counts.sum()), 4)
        whole = whole and names.ndim == counts.ndim == 1 and counts.dtype.kind in "iu"
        if not (whole and names.dtype.kind == "U" and boxes.dtype.kind in "iuf" and (counts >= 0).all()):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged, or holds no proposals of `transfer proposals`") from None
    parts = np.split(boxes.astype(np.float32), np.cumsum(counts)[:-1]) if len(counts) else []
    return _by_name(names.tolist(), parts, path)


def _by_name(names: Sequence[str], boxes: Sequence[np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Map image names to their boxes.

    Raises:
        UserError: a file lists an image twice.
    """
    by_name = dict(zip(names, boxes, strict=True))
    if len(by_name) < len(names):
        duplicate = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{path} has proposals of {duplicate} twice")
    return by_name


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    with wrap_external_errors(f"{path} is damaged, or no MATLAB file"):
        content: dict[str, Any] = loadmat(str(path), variable_names=("images", "boxes"))
    if not {"images", "boxes"} <= content.keys():
        raise UserError(f"{path} has no images and boxes: it holds no proposals")
    with wrap_external_errors(f"{path} holds no proposals as they were published"):
        cells, names = content["boxes"].ravel(), content["images"].ravel()
        stems = [PurePath(str(np.asarray(name).ravel()[0])).stem for name in names]
        pairs = list(zip(stems, map(np.asarray, cells), strict=True))
    for stem, cell in pairs:
        if cell.size and (cell.ndim != 2 or cell.shape[1] != 4 or cell.dtype.kind not in "iuf"):
            raise UserError(
                f"{path}: the proposals of {stem} must be (P, 4) real numbers, got {cell.dtype} of shape {cell.shape}"
            )
    boxes = [cell.astype(np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]] - _FROM_MATLAB for _, cell in pairs]
    return _by_name(stems, boxes, path)


class WithProposals(AnnotatedImages):
    """Another image set with the field ``proposals``, boxes (P, 4) float32.

    Args:
        images: the set.
        boxes: by name, or by what a name ends with, such as 000012. An image that cannot be read needs none.
        source: of the boxes, for messages.

    Raises:
        UserError: an image has no entry, or a box does not lie in its picture.
    """

    def __init__(self, images: ImageSet, boxes: Boxes, source: str):
        super().__init__(images)
        found = [boxes.get(name, boxes.get(PurePath(name).stem)) for name in images.names]
        lacking = [index for index, array in enumerate(found) if array is None and picture_size(images, index)]
        if lacking:
            raise UserError(
                f"{source} has no proposals of {len(lacking)} of the {len(images)} images, the first is "
                f"{self.names[lacking[0]]}: they are of other images"
            )
        none = np.empty((0, 4), np.float32)
        self.boxes = [none if own is None else own.astype(np.float32, copy=False) for own in found]
        for index, array in enumerate(self.boxes):
            check_boxes(array, images, index, source)

    def fields(self, index: int) -> Mapping[str, Any]:
        return {**super().fields(index), "proposals": self.boxes[index]}


def recall(truths: Sequence[np.ndarray], boxes: Sequence[np.ndarray], iou: float = 0.5) -> float:
    """The share of objects that some box overlaps enough.

    Args:
        truths: (G, 4) of each image, as boxes are.
        boxes: (P, 4) of each.
        iou: least intersection over union.
    """
    best = [overlaps(truth, found).max(1, initial=0) for truth, found in zip(truths, boxes, strict=True)]
    return float((np.concatenate(best) >= iou).mean())
