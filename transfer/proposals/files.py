"""Proposals by image: our files, MATLAB's of selective search as published, and image sets that carry them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from crosschannel.data import ImageSet
from crosschannel.data.decode import BrokenImage, EncodedImage
from crosschannel.data.images import Annotated
from crosschannel.errors import UserError, foreign
from crosschannel.files import Writer, user_path, written_whole
from crosschannel.stored import read_arrays
from transfer.boxes import overlaps

_FORMAT = "crosschannel.proposals"
_LOOKED_AT = 50  # images whose size is held against their boxes

# Boxes are (P, 4) x₁ y₁ x₂ y₂ in pixels from 0, the ends outside: a box of the whole image is 0 0 width height.
Boxes = Mapping[str, np.ndarray]


def save_boxes(path: Path, boxes: Boxes, told: Mapping[str, str], write: Writer = written_whole) -> None:
    """Write ``.npz``: names, how many boxes each has, the boxes, and what is told of them."""
    arrays = {
        "names": np.array(list(boxes), np.str_),
        "counts": np.array([len(found) for found in boxes.values()], np.int64),
        "boxes": np.concatenate([np.empty((0, 4), np.int32), *boxes.values()]).astype(np.int32),
        "told": np.array(json.dumps({"format": _FORMAT, **told})),
    }
    with write(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


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
    arrays = read_arrays(path, 1 << 33)
    try:
        names, counts, boxes = arrays["names"], arrays["counts"], arrays["boxes"]
        told = json.loads(str(arrays["told"]))
        whole = told["format"] == _FORMAT and len(names) == len(counts) and boxes.shape == (int(counts.sum()), 4)
        if not (whole and names.dtype.kind == "U" and boxes.dtype.kind in "iuf" and (counts >= 0).all()):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged, or holds no proposals of `transfer proposals`") from None
    parts = np.split(boxes.astype(np.float32), np.cumsum(counts)[:-1]) if len(counts) else []
    return dict(zip(names.tolist(), parts, strict=True))


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    with foreign(f"{path} is damaged, or no MATLAB file"):
        content: dict[str, Any] = loadmat(str(path), variable_names=("images", "boxes"))
    if not {"images", "boxes"} <= content.keys():
        raise UserError(f"{path} has no images and boxes: it holds no proposals")
    found: dict[str, np.ndarray] = {}
    with foreign(f"{path} holds no proposals as they were published"):
        cells, names = content["boxes"].ravel(), content["images"].ravel()
        for name, boxes in zip(names, cells, strict=True):
            text = str(np.asarray(name).ravel()[0])
            boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
            found[PurePath(text).stem] = boxes[:, [1, 0, 3, 2]] - np.array([1, 1, 0, 0], np.float32)
    return found


class WithProposals(Annotated):
    """An image set whose annotation is (what it was before, boxes (P, 4) float32).

    Args:
        images: the set.
        boxes: by name, or by what a name ends with, such as 000012. An image that cannot be read needs none.
        source: of the boxes, for messages.

    Raises:
        UserError: images without an entry, or boxes that are of other images.
    """

    def __init__(self, images: ImageSet, boxes: Boxes, source: str):
        super().__init__(images)
        found = [boxes.get(name, boxes.get(PurePath(name).stem)) for name in images.names]
        lacking = [index for index, own in enumerate(found) if own is None and self._is_whole(index)]
        if lacking:
            raise UserError(
                f"{source} has no proposals of {len(lacking)} of the {len(images)} images, the first is "
                f"{self.names[lacking[0]]}: they are of other images"
            )
        none = np.empty((0, 4), np.float32)
        self.boxes = [none if own is None else own.astype(np.float32, copy=False) for own in found]
        self._check_sizes(source)

    def _is_whole(self, index: int) -> bool:
        try:
            EncodedImage(self.read(index))
        except (BrokenImage, OSError):
            return False
        return True

    def _check_sizes(self, source: str) -> None:
        for index in np.unique(np.linspace(0, len(self) - 1, _LOOKED_AT).astype(int)):
            try:
                image = EncodedImage(self.read(int(index)))
            except (BrokenImage, OSError):
                continue
            reach = self.boxes[index].max(0, initial=0)[2:]
            if (reach > np.array([image.width, image.height]) + 1).any():
                raise UserError(
                    f"{source} has proposals that reach to {reach[0]:.0f}, {reach[1]:.0f} in {self.names[int(index)]}, "
                    f"which is {image.width} × {image.height}: they are of other images"
                )

    def annotation(self, index: int) -> tuple[Any, np.ndarray]:
        return super().annotation(index), self.boxes[index]


def recall(truths: Sequence[np.ndarray], boxes: Sequence[np.ndarray], iou: float = 0.5) -> float:
    """The share of objects that some box overlaps enough.

    Args:
        truths: (G, 4) of each image, as boxes are.
        boxes: (P, 4) of each.
        iou: least intersection over union.
    """
    best = [overlaps(truth, found).max(1, initial=0) for truth, found in zip(truths, boxes, strict=True)]
    return float((np.concatenate(best) >= iou).mean())
