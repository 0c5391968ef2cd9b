"""Images with segmentation masks: the devkit's, SBD's, and the rule by which their sets do not overlap."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crosschannel.data.decode import EncodedImage
from crosschannel.data.images import Names
from crosschannel.data.open import staged
from crosschannel.errors import UserError
from crosschannel.files import read_bytes, user_path
from transfer.pascal.config import MasksConfig, named_sets
from transfer.pascal.devkit import CLASSES as OBJECTS
from transfer.pascal.devkit import check_files, fetch, key_of_files, read_names, read_set, unpack, year_folder
from transfer.protocol import Data, Split

CLASSES = ("background", *OBJECTS)
IGNORED = 255  # the label of pixels that are neither learned nor scored
_SBD = Path("benchmark_RELEASE") / "dataset"


@dataclass(frozen=True)
class MaskFile:
    """A mask: a palette picture of the devkit, or a MATLAB file of SBD."""

    path: Path

    def read(self) -> np.ndarray:
        """The classes of its pixels: (H, W) uint8, 0 for background, 1 … 20, and 255 for what is left out.

        Raises:
            UserError: there is none, or it is no such mask.
        """
        try:
            data = read_bytes(self.path)
            labels = _from_matlab(data) if self.path.suffix == ".mat" else _from_picture(data)
        except FileNotFoundError:
            raise UserError(f"the devkit lacks the mask {self.path}") from None
        except Exception as error:  # decoders raise whatever they like on bytes they cannot read
            raise UserError(f"the mask {self.path} is damaged: {error}") from None
        return labels


def _from_picture(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return np.array(picture if picture.mode in ("P", "L") else picture.convert("L"), np.uint8)


def _from_matlab(data: bytes) -> np.ndarray:
    from scipy.io import loadmat

    return np.array(loadmat(io.BytesIO(data))["GTcls"][0, 0]["Segmentation"], np.uint8)


def labels_of(annotation: Any, image: EncodedImage, classes: int) -> np.ndarray:
    """The labels of an image's pixels, (H, W) uint8.

    Args:
        annotation: a mask: a :class:`MaskFile`, or (H, W) integers.
        image: that it is of.
        classes: there are; 255 is none of them.

    Raises:
        UserError: it is of another size, or has other labels.
    """
    is_file = isinstance(annotation, MaskFile)
    labels, what = (annotation.read(), annotation.path) if is_file else (np.asarray(annotation), "of an image")
    if labels.shape != (image.height, image.width):
        size = " × ".join(map(str, labels.shape[::-1]))
        raise UserError(f"the mask {what} is {size}, and its image {image.width} × {image.height}")
    odd = labels[(labels >= classes) & (labels != IGNORED) | (labels < 0)]
    if odd.size:
        raise UserError(f"the mask {what} has the label {odd[0]}: there are 0 to {classes - 1}, and {IGNORED}")
    return labels.astype(np.uint8)


class MaskedImages:
    """Images with masks, as an :class:`~crosschannel.data.ImageSet`.

    Args:
        places: (name, image, mask) of each; names are such as VOC2012/2007_000032.

    Raises:
        UserError: an image is named twice, or an image or a mask is missing; the message names it.
    """

    remote = False
    classes = CLASSES

    def __init__(self, places: Iterable[tuple[str, Path, Path]]):
        names, self.images, masks = zip(*places, strict=True)
        self.names, self.masks = Names(names), [MaskFile(path) for path in masks]
        self.labels = np.full(len(names), -1, np.int64)
        twice = {Path(name).name for name in names}
        if len(twice) < len(names):
            raise UserError("the image sets name an image twice")
        check_files(self.images, "images")
        check_files(masks, "masks")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        return read_bytes(self.images[index])

    def annotation(self, index: int) -> MaskFile:
        return self.masks[index]

    def content_key(self) -> str:
        return key_of_files(self.names, self.images)


def open_masks(data: Data, config: MasksConfig) -> Split:
    """The image sets that a config names, with masks.

    Args:
        data: the VOCdevkit folder, one that holds it, or image sets that are there, whose annotations are masks, (H, W)
            integers, of their ``classes`` (default PASCAL's 21); 255 is left out.
        config: names the sets, SBD's folder, and whether what is missing may be fetched.

    Raises:
        UserError: what is missing, or an image that is learned and scored, in one sentence.
    """
    if not isinstance(data, str):
        return data if isinstance(data, Split) else Split(*data, data[0].classes or CLASSES, "images from memory")
    root = user_path(staged(data))
    wanted = [named_sets(sets) for sets in (config.train_set, config.test_set)]
    if config.download:
        for year, name in (one for sets in wanted for one in sets):
            if year != "sbd":
                fetch(root, year, name)
            if year == "sbd" or name == "seg11valid":
                _fetch_sbd(root, config)
    train, test = (MaskedImages(_places(root, sets, config)) for sets in wanted)
    shared = {Path(name).name for name in train.names} & {Path(name).name for name in test.names}
    if shared:
        raise UserError(
            f"{len(shared)} images are in train_set and test_set, such as {min(shared)}; of SBD's train and VOC2011 "
            "take 2011:seg11valid"
        )
    return Split(train, test, CLASSES, data)


def _places(root: Path, sets: Iterable[tuple[str, str]], config: MasksConfig) -> Iterable[tuple[str, Path, Path]]:
    for year, name in sets:
        if year == "sbd":
            folder = _sbd_folder(root, config)
            for image in read_names(_sbd_set(folder, name)):
                yield f"SBD/{image}", folder / "img" / f"{image}.jpg", folder / "cls" / f"{image}.mat"
            continue
        folder = year_folder(root, year)
        # 2012's archive has all images and masks of 2011's: the list alone will do.
        home = folder if (folder / "JPEGImages").is_dir() else year_folder(root, "2012")
        for image in _seg11valid(root, config) if name == "seg11valid" else read_set(folder, name, "Segmentation"):
            mask = home / "SegmentationClass" / f"{image}.png"
            yield f"{home.name}/{image}", home / "JPEGImages" / f"{image}.jpg", mask


def _seg11valid(root: Path, config: MasksConfig) -> list[str]:
    """VOC2011's val without what SBD's train has (736 images), as fully convolutional nets were validated on."""
    learned = set(read_names(_sbd_set(_sbd_folder(root, config), "train")))
    found = [image for image in read_set(year_folder(root, "2011"), "val", "Segmentation") if image not in learned]
    if not found:
        raise UserError("seg11valid is empty: SBD's train has every image of VOC2011's val")
    return found


def _sbd_folder(root: Path, config: MasksConfig) -> Path:
    """Where SBD's lists, images and masks are.

    Raises:
        UserError: nowhere.
    """
    bases = [user_path(config.sbd)] if config.sbd else [root, root.parent]
    for base in bases:
        for place in (base, base / "dataset", base / _SBD):
            if (place / "cls").is_dir() and (place / "train.txt").is_file():
                return place
    where = bases[0] if config.sbd else f"{root} or beside it"
    raise UserError(f"no SBD (img, cls, train.txt) in {where}: give its folder by --sbd, or --download true")


def _sbd_set(folder: Path, name: str) -> Path:
    path = folder / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.txt")))
        raise UserError(f"no image set {path}; there are {known}")
    return path


def _fetch_sbd(root: Path, config: MasksConfig) -> None:
    from torchvision.datasets import SBDataset

    place = user_path(config.sbd) if config.sbd else root.parent if root.name == "VOCdevkit" else root
    there = next((at for at in (place, place / "dataset", place / _SBD) if (at / "cls").is_dir()), place / _SBD)
    unpack("SBD", place, there, SBDataset.url, SBDataset.filename, SBDataset.md5)
