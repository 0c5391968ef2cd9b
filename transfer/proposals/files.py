"""Proposals files (our format, and the published MATLAB files of selective search), and image sets with proposals."""

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
_MAX_BYTES = 1 << 33  # size limit of the arrays in a file

_FROM_MATLAB = np.array([1, 1, 0, 0], np.float32)  # subtracted from MATLAB's 1-based corners with inclusive ends

# Boxes (P, 4) by image name: x₁ y₁ x₂ y₂ in 0-based pixels with exclusive ends, so the full image is 0 0 width height.
Boxes = Mapping[str, np.ndarray]


def save_boxes(
    path: Path,
    boxes: Boxes,
    metadata: Mapping[str, str],
    write: Writer = atomic_write,
    digests: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write boxes to an ``.npz`` file, with the name, box count and digest of each image, and metadata.

    Args:
        path: file to write.
        boxes: boxes by image name.
        metadata: metadata such as the method.
        write: context manager that yields the path to write to.
        digests: image digests by name, see :func:`picture_digests`.
    """
    arrays = {
        "digests": np.array([digests.get(name, "") for name in boxes], np.str_),
        "names": np.array(list(boxes), np.str_),
        "counts": np.array([len(array) for array in boxes.values()], np.int64),
        "boxes": np.concatenate([np.empty((0, 4), np.int32), *boxes.values()]).astype(np.int32),
        "told": np.array(json.dumps({"format": _FORMAT, **metadata})),
    }
    with write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def picture_digests(images: ImageSet, names: Container[str]) -> dict[str, str]:
    """Return a digest of each named image's file, 16 hex digits; unreadable images are excluded."""
    digests = {}
    for index, name in enumerate(images.names):
        if name in names:
            with contextlib.suppress(OSError):
                digests[name] = sha256(images.read(index)).hexdigest()[:16]
    return digests


def load_digests(path: Path) -> dict[str, str]:
    """Load the image digests of an ``.npz`` file of proposals. Files of earlier versions have none.

    Raises:
        UserError: the file is damaged.
    """
    arrays = read_arrays(path, _MAX_BYTES)
    names, digests = arrays.get("names", np.empty(0)), arrays.get("digests", np.empty(0))
    if digests.dtype.kind != "U" or names.shape != digests.shape:
        return {}
    return {name: digest for name, digest in zip(names.tolist(), digests.tolist(), strict=True) if digest}


def check_pictures(path: Path, images: ImageSet) -> None:
    """Raise a UserError if a file has proposals for a different image of the same name."""
    boxes, stored = load_boxes(path), load_digests(path)
    digests = picture_digests(images, stored)
    for index, name in enumerate(images.names):
        if name in digests and digests[name] != stored[name]:
            raise UserError(f"{path} has proposals for another image named {name}; delete it or choose another --out")
        if name in boxes and name not in stored:  # written by an earlier version
            check_boxes(boxes[name], images, index, str(path))


def check_boxes(boxes: np.ndarray, images: ImageSet, index: int, source: str) -> None:
    """Raise a UserError if a proposal does not lie in its image.

    Args:
        boxes: (P, 4) boxes of the image.
        images, index: image set, and index of the image in it.
        source: file of the boxes, for the message.
    """
    invalid = invalid_box(boxes, picture_size(images, index))
    if invalid:
        box_index, fault = invalid
        box = " ".join(f"{edge:g}" for edge in boxes[box_index].tolist())
        raise UserError(f"{source}: proposal {box_index + 1} for {images.names[index]} (x₁ y₁ x₂ y₂ {box}) {fault}")


def load_boxes(path: Path | str, max_boxes: int = 0) -> dict[str, np.ndarray]:
    """Load the boxes of a file, by image name.

    Args:
        path: an ``.npz`` file written by :func:`save_boxes`, or a ``.mat`` file with ``images`` and ``boxes``, whose
            boxes are y₁ x₁ y₂ x₂ in 1-based pixels with inclusive ends.
        max_boxes: number of boxes to load per image, from the first; 0: all.

    Raises:
        UserError: the file is missing or damaged, or has an unknown format.
    """
    path = user_path(path)
    if not path.is_file():
        raise UserError(f"the proposals file {path} does not exist")
    if path.suffix == ".mat":
        by_name = _read_mat(path)
    elif path.suffix == ".npz":
        by_name = _read_npz(path)
    else:
        raise UserError(f"{path}: a proposals file must be .npz (written by `transfer proposals`) or .mat")
    return {name: boxes[: max_boxes or None] for name, boxes in by_name.items()}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path, _MAX_BYTES)
    try:
        names, counts, boxes = arrays["names"], arrays["counts"], arrays["boxes"]
        metadata = json.loads(str(arrays["told"]))
        is_valid = metadata["format"] == _FORMAT and len(names) == len(counts) and boxes.shape == (int(counts.sum()), 4)
        is_valid = is_valid and names.ndim == counts.ndim == 1 and counts.dtype.kind in "iu"
        if not (is_valid and names.dtype.kind == "U" and boxes.dtype.kind in "iuf" and (counts >= 0).all()):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged, or was not written by `transfer proposals`") from None
    by_image = np.split(boxes.astype(np.float32), np.cumsum(counts)[:-1]) if len(counts) else []
    return _by_name(names.tolist(), by_image, path)


def _by_name(names: Sequence[str], boxes: Sequence[np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Map image names to their boxes.

    Raises:
        UserError: the file lists an image twice.
    """
    by_name = dict(zip(names, boxes, strict=True))
    if len(by_name) < len(names):
        duplicate = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{path} lists {duplicate} twice")
    return by_name


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    with wrap_external_errors(f"{path} is damaged or not a MATLAB file"):
        content: dict[str, Any] = loadmat(str(path), variable_names=("images", "boxes"))
    if not {"images", "boxes"} <= content.keys():
        raise UserError(f"{path} lacks the variables images and boxes of a proposals file")
    with wrap_external_errors(f"{path} does not have the format of the published proposals"):
        cells, names = content["boxes"].ravel(), content["images"].ravel()
        stems = [PurePath(str(np.asarray(name).ravel()[0])).stem for name in names]
        pairs = list(zip(stems, map(np.asarray, cells), strict=True))
    for stem, cell in pairs:
        if cell.size and (cell.ndim != 2 or cell.shape[1] != 4 or cell.dtype.kind not in "iuf"):
            raise UserError(
                f"{path}: the proposals for {stem} must be (P, 4) real numbers, got {cell.dtype} of shape {cell.shape}"
            )
    boxes = [cell.astype(np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]] - _FROM_MATLAB for _, cell in pairs]
    return _by_name(stems, boxes, path)


class WithProposals(AnnotatedImages):
    """Image set with the additional field ``proposals``, boxes (P, 4) float32.

    Args:
        images: image set to wrap.
        boxes: boxes by image name, or by its last component, such as 000012. Unreadable images may be missing.
        source: file of the boxes, for messages.

    Raises:
        UserError: an image has no entry, or a box does not lie in its image.
    """

    def __init__(self, images: ImageSet, boxes: Boxes, source: str):
        super().__init__(images)
        by_image = [boxes.get(name, boxes.get(PurePath(name).stem)) for name in images.names]
        missing = [index for index, array in enumerate(by_image) if array is None and picture_size(images, index)]
        if missing:
            raise UserError(
                f"{source} lacks proposals for {len(missing)} of the {len(images)} images, such as "
                f"{self.names[missing[0]]}; was it computed for other images?"
            )
        empty = np.empty((0, 4), np.float32)
        self.boxes = [empty if array is None else array.astype(np.float32, copy=False) for array in by_image]
        for index, array in enumerate(self.boxes):
            check_boxes(array, images, index, source)

    def fields(self, index: int) -> Mapping[str, Any]:
        return {**super().fields(index), "proposals": self.boxes[index]}


def recall(truths: Sequence[np.ndarray], boxes: Sequence[np.ndarray], iou: float = 0.5) -> float:
    """Return the fraction of objects that overlap sufficiently with a proposal.

    Args:
        truths: object boxes (G, 4) of each image.
        boxes: proposals (P, 4) of each image.
        iou: minimum IoU of the object and the proposal.
    """
    best_ious = [overlaps(truth, proposals).max(1, initial=0) for truth, proposals in zip(truths, boxes, strict=True)]
    return float((np.concatenate(best_ious) >= iou).mean())
