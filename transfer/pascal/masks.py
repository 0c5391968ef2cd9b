"""Images with segmentation masks: the devkit's, SBD's, and the rule by which their sets do not overlap."""

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
from transfer.pascal.config import MasksConfig, named_sets
from transfer.pascal.devkit import CLASSES as OBJECTS
from transfer.pascal.devkit import (
    above_year,
    check_files,
    check_unique,
    devkit_folder,
    fetch,
    find_images,
    key_of_files,
    read_names,
    read_set,
    unpack,
    year_folder,
)
from transfer.pascal.mask_files import IGNORED, MaskFile
from transfer.protocol import Data, Split
from transfer.targets import Masks

CLASSES = ("background", *OBJECTS)
_SBD = Path("benchmark_RELEASE") / "dataset"


def labels_of(mask: Any, image: EncodedImage, classes: int) -> np.ndarray:
    """The labels of an image's pixels, (H, W) uint8.

    Args:
        mask: a :class:`MaskFile`, or (H, W) integers.
        image: that it is of.
        classes: number of classes; 255 is none of them.

    Raises:
        UserError: the mask has another size or type, or other labels.
    """
    if classes > IGNORED:
        raise UserError(f"{classes} classes are too many: labels are 0 to {IGNORED - 1}, and {IGNORED} is left out")
    is_file = isinstance(mask, MaskFile)
    labels, what = (mask.read(), mask.path) if is_file else (_as_array(mask), "of an image")
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise UserError(f"the mask {what} must be (H, W) integers, got {labels.dtype} of shape {labels.shape}")
    if labels.shape != (image.height, image.width):
        size = " × ".join(map(str, labels.shape[::-1]))
        raise UserError(f"the mask {what} is {size}, and its image {image.width} × {image.height}")
    odd = labels[(labels >= classes) & (labels != IGNORED) | (labels < 0)]
    if odd.size:
        raise UserError(f"the mask {what} has the label {odd[0]}: there are 0 to {classes - 1}, and {IGNORED}")
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
        places: (name, image, mask) of each; names are such as VOC2012/2007_000032.
        classes: by label; default PASCAL's.

    Raises:
        UserError: an image is named twice, or an image or a mask is missing; the message names it.
    """

    def __init__(self, places: Iterable[tuple[str, Path, Path]], classes: Sequence[str] = CLASSES):
        names, self.images, masks = zip(*places, strict=True)
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
        return key_of_files(self.names, self.images)


class _RemappedMasks(AnnotatedImages):
    """Masks whose ignore label is mapped to IGNORED.

    Args:
        images: an image set with masks.
        ignored: ignore label of its masks.
    """

    def __init__(self, images: ImageSet, ignored: int):
        super().__init__(images)
        self.ignored = ignored

    def fields(self, index: int) -> dict[str, Any]:
        fields = super().fields(index)
        mask = fields.get("mask")
        labels = mask.read() if isinstance(mask, MaskFile) else _as_array(mask)
        if labels.dtype.kind not in "iu":
            return fields  # refused as any mask
        if (labels == IGNORED).any():
            raise UserError(
                f"the mask of {self.names[index]} contains the label {IGNORED}, which no class can "
                f"have; the ignored label is {self.ignored}"
            )
        return {**fields, "mask": np.where(labels == self.ignored, IGNORED, labels.astype(np.int64))}


def open_masks(data: Data, config: MasksConfig) -> Split:
    """The image sets that a config names, with masks.

    Args:
        data: the VOCdevkit folder, one that holds it, or image sets that are there, whose field ``mask`` is (H, W)
            integers, of their ``classes`` (default PASCAL's 21). Pixels labelled 255, or with the
            ``ignore_index`` of :class:`~transfer.targets.Masks`, are ignored.
        config: names the sets, SBD's folder, and whether what is missing may be fetched.

    Raises:
        UserError: a set, an image or a mask is missing.
    """
    if not isinstance(data, str):
        split = data if isinstance(data, Split) else Split(*data, data[0].classes or CLASSES, "images from memory")
        if tuple(split.test.classes or split.classes) != tuple(split.classes):
            raise UserError(f"test images are of the classes {split.test.classes}, training images of {split.classes}")
        ignored = split.targets.ignore_index if isinstance(split.targets, Masks) else IGNORED
        if ignored == IGNORED:
            return split
        return replace(split, train=_RemappedMasks(split.train, ignored), test=_RemappedMasks(split.test, ignored))
    roots = list(dict.fromkeys((devkit_folder(data), above_year(user_path(data)))))  # folders beside it are not copied
    wanted = [named_sets(sets) for sets in (config.train_set, config.test_set)]
    if config.download:
        for year, name in (one for sets in wanted for one in sets):
            if year != "sbd":
                fetch(roots[-1], year, name)
            if year == "sbd" or name == "seg11valid":
                _fetch_sbd(roots[-1], config)
    train, test = (MaskedImages(_places(roots, sets, config)) for sets in wanted)
    return Split(train, test, Masks(CLASSES), data)


def _places(
    roots: Sequence[Path], sets: Iterable[tuple[str, str]], config: MasksConfig
) -> Iterable[tuple[str, Path, Path]]:
    for year, name in sets:
        if year == "sbd":
            folder = _sbd_folder(roots, config)
            image_names = read_names(_sbd_set(folder, name))
            for image, path in zip(image_names, find_images(folder / "img", image_names), strict=True):
                yield f"SBD/{image}", path, folder / "cls" / f"{image}.mat"
            continue
        folder = _year_folder(roots, year)
        home = folder
        if year == "2011" and not (folder / "JPEGImages").is_dir():  # 2012's archive has all of 2011's: a list will do
            home = _year_folder(roots, "2012")
        images = _seg11valid(roots, config) if name == "seg11valid" else read_set(folder, name, "Segmentation")
        for image, path in zip(images, find_images(home / "JPEGImages", images), strict=True):
            yield f"{folder.name}/{image}", path, home / "SegmentationClass" / f"{image}.png"


def _year_folder(roots: Sequence[Path], year: str) -> Path:
    """A year's folder in any of the places.

    Raises:
        UserError: in none of them.
    """
    for root in roots[:-1]:
        with contextlib.suppress(UserError):
            return year_folder(root, year)
    return year_folder(roots[-1], year)


def _seg11valid(roots: Sequence[Path], config: MasksConfig) -> list[str]:
    """VOC2011's val without what SBD's train has (736 images), as fully convolutional nets were validated on."""
    learned = set(read_names(_sbd_set(_sbd_folder(roots, config), "train")))
    found = [image for image in read_set(_year_folder(roots, "2011"), "val", "Segmentation") if image not in learned]
    if not found:
        raise UserError("seg11valid is empty: SBD's train has every image of VOC2011's val")
    return found


def _sbd_folder(roots: Sequence[Path], config: MasksConfig) -> Path:
    """Where SBD's lists, images and masks are.

    Raises:
        UserError: nowhere.
    """
    bases = [user_path(config.sbd)] if config.sbd else [base for root in roots for base in (root, root.parent)]
    for base in bases:
        for place in (base, base / "dataset", base / _SBD):
            if (place / "cls").is_dir() and (place / "train.txt").is_file():
                return place
    where = bases[0] if config.sbd else f"{roots[-1]} or beside it"
    raise UserError(f"no SBD (img, cls, train.txt) in {where}: give its folder by --sbd, or --download true")


def _sbd_set(folder: Path, name: str) -> Path:
    path = folder / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.txt")))
        raise UserError(f"no image set {path}; there are {known}")
    return path


def _fetch_sbd(root: Path, config: MasksConfig) -> None:
    from torchvision.datasets import SBDataset

    with contextlib.suppress(UserError):
        _sbd_folder([root], config)
        return
    place = user_path(config.sbd) if config.sbd else root.parent if root.name == "VOCdevkit" else root
    there = place / _SBD
    unpack("SBD", place, there, SBDataset.url, SBDataset.filename, SBDataset.md5)
