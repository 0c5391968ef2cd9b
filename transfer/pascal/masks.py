"""Image sets with masks from the VOC devkit and SBD, including seg11valid, which is disjoint from SBD's train."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crosschannel.data.decode import EncodedImage
from crosschannel.data.images import AnnotatedImages, ImageSet, Names
from crosschannel.errors import UserError
from crosschannel.files import read_bytes, user_path
from transfer.pascal.config import MasksConfig, parse_sets
from transfer.pascal.devkit import CLASSES as OBJECTS
from transfer.pascal.devkit import (
    check_files,
    check_unique,
    devkit_folder,
    digest_files,
    fetch,
    find_images,
    find_year_folder,
    parent_of_year,
    read_names,
    read_set,
    unpack,
)
from transfer.pascal.mask_files import IGNORED, MaskFile
from transfer.protocol import Data, Split
from transfer.targets import Masks

CLASSES = ("background", *OBJECTS)
_SBD = Path("benchmark_RELEASE") / "dataset"


def read_labels(mask: Any, image: EncodedImage, classes: int) -> np.ndarray:
    """Return the labels of a mask, (H, W) uint8, after checking them.

    Args:
        mask: a :class:`MaskFile`, or (H, W) integers.
        image: the image that the mask belongs to.
        classes: number of classes, not counting the ignored label 255.

    Raises:
        UserError: the mask has the wrong type, a size other than the image's, or an invalid label.
    """
    if classes > IGNORED:
        raise UserError(f"{classes} classes are too many: labels are 0 to {IGNORED - 1}, and {IGNORED} is ignored")
    is_file = isinstance(mask, MaskFile)
    labels, origin = (mask.read(), mask.path) if is_file else (_as_array(mask), "of an image")
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise UserError(f"the mask {origin} must be (H, W) integers, got {labels.dtype} of shape {labels.shape}")
    if labels.shape != (image.height, image.width):
        size = " × ".join(map(str, labels.shape[::-1]))
        raise UserError(f"the mask {origin} is {size}, but its image is {image.width} × {image.height}")
    invalid = labels[(labels >= classes) & (labels != IGNORED) | (labels < 0)]
    if invalid.size:
        raise UserError(
            f"the mask {origin} has the label {invalid[0]}; labels must be 0 to {classes - 1}, or {IGNORED}"
        )
    return labels.astype(np.uint8)


def _as_array(mask: Any) -> np.ndarray:
    try:
        if np.ma.is_masked(mask):
            raise ValueError("masked values")
        return np.asarray(mask)
    except Exception as error:  # such as nested lists of different lengths, or a tensor on a GPU
        kind = type(mask).__name__
        raise UserError(f"the mask of an image must be (H, W) integers, got {kind}: {error}") from None


class MaskedImages(ImageSet):
    """Images with the field ``mask``.

    Args:
        entries: (name, image file, mask file) of each image; names are like VOC2012/2007_000032.
        classes: class names by label; default: PASCAL's 21.

    Raises:
        UserError: an image is listed twice, or an image or mask is missing.
    """

    def __init__(self, entries: Iterable[tuple[str, Path, Path]], classes: Sequence[str] = CLASSES):
        names, self.images, masks = zip(*entries, strict=True)
        self.names, self.classes = Names(names), tuple(classes)
        self.masks = [MaskFile(path, self.classes == CLASSES) for path in masks]
        self.labels = np.full(len(names), -1, np.int64)
        check_unique(self.names, "masks")
        check_files(self.images, "images")
        check_files(masks, "masks")

    def read(self, index: int) -> bytes:
        return read_bytes(self.images[index])

    def fields(self, index: int) -> dict[str, MaskFile]:
        return {"mask": self.masks[index]}

    def content_key(self) -> str:
        return digest_files(self.names, self.images)


class _RemappedMasks(AnnotatedImages):
    """Image set that remaps the ignore label of its masks to IGNORED.

    Args:
        images: image set with masks.
        ignored: ignore label of the original masks.
    """

    def __init__(self, images: ImageSet, ignored: int):
        super().__init__(images)
        self.ignored = ignored

    def fields(self, index: int) -> dict[str, Any]:
        fields = super().fields(index)
        mask = fields.get("mask")
        labels = mask.read() if isinstance(mask, MaskFile) else _as_array(mask)
        if labels.dtype.kind not in "iu":
            return fields  # read_labels rejects it
        if (labels == IGNORED).any():
            raise UserError(
                f"the mask of {self.names[index]} contains the label {IGNORED}, which cannot be a class; "
                f"the ignored label is {self.ignored}"
            )
        return {**fields, "mask": np.where(labels == self.ignored, IGNORED, labels.astype(np.int64))}


def open_masks(data: Data, config: MasksConfig) -> Split:
    """Open the image sets of a config, with their masks.

    Args:
        data: VOCdevkit folder, its parent, or image sets from memory. The latter have a field ``mask``, (H, W)
            integers that index their ``classes`` (default: PASCAL's 21). Pixels labelled 255, or with the
            ``ignore_index`` of :class:`~transfer.targets.Masks`, are ignored.
        config: provides the image sets, the folder of SBD, and whether to download missing data.

    Raises:
        UserError: a set, an image or a mask is missing.
    """
    if not isinstance(data, str):
        split = data if isinstance(data, Split) else Split(*data, data[0].classes or CLASSES, "images from memory")
        if tuple(split.test.classes or split.classes) != tuple(split.classes):
            raise UserError(f"test images have the classes {split.test.classes}, training images {split.classes}")
        ignored = split.targets.ignore_index if isinstance(split.targets, Masks) else IGNORED
        if ignored == IGNORED:
            return split
        return replace(split, train=_RemappedMasks(split.train, ignored), test=_RemappedMasks(split.test, ignored))
    # The original folder is searched, too, because staging copies the devkit without its sibling folders.
    roots = list(dict.fromkeys((devkit_folder(data), parent_of_year(user_path(data)))))
    set_lists = [parse_sets(sets) for sets in (config.train_set, config.test_set)]
    if config.download:
        for year, name in (entry for sets in set_lists for entry in sets):
            if year != "sbd":
                fetch(roots[-1], year, name)
            if year == "sbd" or name == "seg11valid":
                _fetch_sbd(roots[-1], config)
    train, test = (MaskedImages(_locate_files(roots, sets, config)) for sets in set_lists)
    return Split(train, test, Masks(CLASSES), data)


def _locate_files(
    roots: Sequence[Path], sets: Iterable[tuple[str, str]], config: MasksConfig
) -> Iterable[tuple[str, Path, Path]]:
    """Yield name, image file and mask file of every image in the sets."""
    for year, name in sets:
        if year == "sbd":
            folder = _sbd_folder(roots, config)
            image_names = read_names(_sbd_set(folder, name))
            for image, path in zip(image_names, find_images(folder / "img", image_names), strict=True):
                yield f"SBD/{image}", path, folder / "cls" / f"{image}.mat"
            continue
        folder = _year_folder(roots, year)
        source = folder
        if year == "2011" and not (folder / "JPEGImages").is_dir():  # VOC2012 has all images and masks of VOC2011
            source = _year_folder(roots, "2012")
        images = _seg11valid(roots, config) if name == "seg11valid" else read_set(folder, name, "Segmentation")
        for image, path in zip(images, find_images(source / "JPEGImages", images), strict=True):
            yield f"{folder.name}/{image}", path, source / "SegmentationClass" / f"{image}.png"


def _year_folder(roots: Sequence[Path], year: str) -> Path:
    """Find the folder of a year in any of the roots.

    Raises:
        UserError: no root has this folder.
    """
    for root in roots[:-1]:
        with contextlib.suppress(UserError):
            return find_year_folder(root, year)
    return find_year_folder(roots[-1], year)


def _seg11valid(roots: Sequence[Path], config: MasksConfig) -> list[str]:
    """Return VOC2011's val without the images of SBD's train: the 736 validation images of the FCN paper."""
    sbd_train = set(read_names(_sbd_set(_sbd_folder(roots, config), "train")))
    images = [image for image in read_set(_year_folder(roots, "2011"), "val", "Segmentation") if image not in sbd_train]
    if not images:
        raise UserError("seg11valid is empty: SBD's train contains all images of VOC2011's val")
    return images


def _sbd_folder(roots: Sequence[Path], config: MasksConfig) -> Path:
    """Find the SBD folder, with image lists, images and masks.

    Raises:
        UserError: the folder was not found.
    """
    bases = [user_path(config.sbd)] if config.sbd else [base for root in roots for base in (root, root.parent)]
    for base in bases:
        for folder in (base, base / "dataset", base / _SBD):
            if (folder / "cls").is_dir() and (folder / "train.txt").is_file():
                return folder
    searched = bases[0] if config.sbd else f"or next to {roots[-1]}"
    raise UserError(
        f"found no SBD folder (img, cls, train.txt) in {searched}; set --sbd to it, or pass --download true"
    )


def _sbd_set(folder: Path, name: str) -> Path:
    path = folder / f"{name}.txt"
    if not path.is_file():
        available = ", ".join(sorted(file.stem for file in folder.glob("*.txt")))
        raise UserError(f"unknown image set {path}; available: {available}")
    return path


def _fetch_sbd(root: Path, config: MasksConfig) -> None:
    """Download SBD unless it already exists."""
    from torchvision.datasets import SBDataset

    with contextlib.suppress(UserError):
        _sbd_folder([root], config)
        return
    target = user_path(config.sbd) if config.sbd else root.parent if root.name == "VOCdevkit" else root
    unpacked = target / _SBD
    unpack("SBD", target, unpacked, SBDataset.url, SBDataset.filename, SBDataset.md5)
