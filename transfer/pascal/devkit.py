"""The VOC devkit: image sets and their annotations. Files are checked when a set is opened."""

import fcntl
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np

from crosschannel.data.folder import EXTENSIONS
from crosschannel.data.images import ImageSet, Names
from crosschannel.data.open import staged_path
from crosschannel.errors import UserError
from crosschannel.files import read_bytes, read_text, user_path
from transfer.boxes import picture_size
from transfer.disjoint import voc_name
from transfer.pascal.annotations import CLASSES, POSITIVE, Objects, read_annotation
from transfer.pascal.config import PascalConfig, parse_sets
from transfer.protocol import Data, Split

_DEVKIT_2011 = Path("TrainVal") / "VOCdevkit"  # devkit folder in the archive of 2011


class VOCImages(ImageSet):
    """Images of one or several image sets of a devkit, with the field ``objects``.

    Args:
        devkit: VOCdevkit folder, with VOC2007, VOC2012, …, or its parent.
        sets: pairs (year, image set).

    Attributes:
        names: image names, such as VOC2007/000012.
        labels: (n, 20) int8, POSITIVE, NEGATIVE or IGNORED.
        objects: annotated objects of each image.

    Raises:
        UserError: a year, set, image or annotation is missing or damaged.
    """

    classes = CLASSES

    def __init__(self, devkit: Path, sets: Iterable[tuple[str, str]]):
        self._entries: list[tuple[Path, str]] = []  # folder of the year, image name
        self._paths: list[Path] = []
        for year, name in sets:
            folder = find_year_folder(devkit, year)
            image_names = read_set(folder, name)
            self._entries += [(folder, image) for image in image_names]
            self._paths += find_images(folder / "JPEGImages", image_names)
        self.names = Names(f"{folder.name}/{image}" for folder, image in self._entries)
        check_unique(self.names, str(devkit))
        check_files(self._paths, "images")
        self.objects = [
            read_annotation(folder / "Annotations" / f"{image}.xml", picture_size(self, index))
            for index, (folder, image) in enumerate(self._entries)
        ]
        self.labels = np.stack([objects.labels() for objects in self.objects])

    def image_path(self, index: int) -> Path:
        return self._paths[index]

    def read(self, index: int) -> bytes:
        return read_bytes(self.image_path(index))

    def fields(self, index: int) -> dict[str, Objects]:
        return {"objects": self.objects[index]}

    def content_key(self) -> str:
        return digest_files(self.names, self._paths)


def find_images(folder: Path, names: Iterable[str]) -> list[Path]:
    """Find the files of images that a set lists without extensions.

    ``.jpg`` takes precedence over other image extensions, which are case-insensitive. For a missing image, the path
    that ends in ``.jpg`` is returned.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    except OSError:
        files = []
    by_name = {path.stem: path for path in files}
    by_name |= {path.stem: path for path in files if path.suffix == ".jpg"}
    return [by_name.get(name, folder / f"{name}.jpg") for name in names]


def check_unique(names: Iterable[str], source: str) -> None:
    """Raise a UserError if image sets list an image twice, or the same image under two years."""
    known_names: set[str] = set()
    for name in names:
        canonical = voc_name(name) or name
        if canonical in known_names:
            raise UserError(f"the image sets of {source} list an image twice: {name}")
        known_names.add(canonical)


def check_files(paths: Iterable[Path], kind: str) -> None:
    """Raise a UserError if files of a devkit are missing; ``kind`` is the plural noun for them in the message."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more {kind}" if len(missing) > 1 else ""
        raise UserError(f"the devkit lacks {missing[0]}{more} listed in its image sets")


def digest_files(names: Names, paths: Iterable[Path]) -> str:
    """Return a digest of image names, file sizes and mtimes (see :class:`~crosschannel.data.ImageSet`)."""
    digest = sha256(names.fingerprint().encode())
    for path in paths:
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def open_devkit(data: Data, config: PascalConfig) -> Split:
    """Open the image sets of a config.

    Args:
        data: VOCdevkit folder, its parent, or image sets from memory with labels (n, classes) of POSITIVE, NEGATIVE
            and IGNORED.
        config: provides the image sets, and whether to download missing years.

    Raises:
        UserError: a year, a set, an image or an annotation is missing or damaged, or the labels have the wrong shape or
            no positives.
    """
    if isinstance(data, str):
        root = devkit_folder(data)
        set_lists = [parse_sets(sets) for sets in (config.train_set, config.test_set)]
        if config.download:
            for year, name in (entry for sets in set_lists for entry in sets):
                fetch(root, year, name)
        split = Split(*(VOCImages(root, sets) for sets in set_lists), CLASSES, data)
    else:
        split = data if isinstance(data, Split) else Split(*data, data[0].classes or CLASSES, "images from memory")
    for images in (split.train, split.test):
        if np.shape(images.labels) != (len(images), len(split.classes)):
            raise UserError(f"labels must be ({len(images)}, {len(split.classes)}), got {np.shape(images.labels)}")
        if not (images.labels == POSITIVE).any():
            raise UserError(f"none of the {len(images)} images of {split.source!r} is a positive of any class")
    return split


def devkit_folder(data: str) -> Path:
    """Return the devkit for a value of ``--data``, or its copy on this machine's disk.

    For the folder of a year, return its parent and never a copy, because the names of copies do not contain the year.
    """
    path = user_path(data)
    parent = parent_of_year(path)
    return user_path(staged_path(data)) if parent == path else parent


def parent_of_year(path: Path) -> Path:
    """Return the parent of a year's folder, such as VOCdevkit/VOC2007; return any other folder unchanged."""
    is_year = (path / "ImageSets").is_dir() and re.fullmatch(r"VOC\d{4}", path.resolve().name)
    return path.resolve().parent if is_year else path


def find_year_folder(root: Path, year: str) -> Path:
    """Find the folder of a year: in the root, in a VOCdevkit folder below it, or in the layout of the archive of 2011.

    Raises:
        UserError: the folder was not found.
    """
    folder, candidates = _search_year(root, year)
    if folder:
        return folder
    years = sorted({sets.parent.name for candidate in candidates[:3] for sets in candidate.glob("VOC2*/ImageSets")})
    hint = (
        f"it has {', '.join(years)}" if years else "it is not a VOC devkit; --download true downloads the original data"
    )
    if (root / "ImageSets").is_dir():
        hint = f"it is the folder of one year, and must be named VOC{year}"
    raise UserError(f"{root} has no VOC{year}/ImageSets: {hint}")


def _search_year(root: Path, year: str) -> tuple[Path | None, list[Path]]:
    """Return the folder of a year, or None, and the folders that were searched for it."""
    bases = (root, root.parent) if root.name == "VOCdevkit" else (root,)
    candidates = [folder for base in bases for folder in (base, base / "VOCdevkit", base / _DEVKIT_2011)]
    year_folders = (candidate / f"VOC{year}" for candidate in candidates)
    return next((folder for folder in year_folders if (folder / "ImageSets").is_dir()), None), candidates


def read_set(folder: Path, name: str, kind: str = "Main") -> list[str]:
    """Read the image names of a set.

    Args:
        folder: folder of a year.
        name: name of the set, such as trainval.
        kind: subfolder of ImageSets, "Main" or "Segmentation".

    Raises:
        UserError: the set does not exist or is empty.
    """
    path = folder / "ImageSets" / kind / f"{name}.txt"
    if not path.is_file():
        available = {path.stem for path in path.parent.glob("*.txt")}
        available -= {stem for stem in available if stem.rpartition("_")[0] in CLASSES}
        raise UserError(f"unknown image set {path}; available: {', '.join(sorted(available)) or 'none'}")
    return read_names(path)


def read_names(path: Path) -> list[str]:
    """Read image names, the first word of every line, from the file of an image set.

    Raises:
        UserError: the file is empty.
    """
    images = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    if not images:
        raise UserError(f"the image set {path} is empty")
    return images


def fetch(root: Path, year: str, name: str) -> None:
    """Download and unpack the archive of a year into ``root``, or next to it if it is named VOCdevkit.

    Does nothing if the year already exists.

    Raises:
        UserError: the year has no archive, or the download failed.
    """
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    key = "2007-test" if (year, name) == ("2007", "test") else year
    if key not in DATASET_YEAR_DICT:
        raise UserError(f"there is no archive of VOC{year}; available: {', '.join(sorted(DATASET_YEAR_DICT))}")
    if key != "2007-test" and _search_year(root, year)[0]:
        return
    archive: dict[str, str] = DATASET_YEAR_DICT[key]
    target = root.parent if root.name == "VOCdevkit" else root
    sets = target / archive["base_dir"] / "ImageSets"
    unpacked = sets / "Main" / "test.txt" if key == "2007-test" else sets
    unpack(f"VOC{year}", target, unpacked, archive["url"], archive["filename"], archive["md5"])


def unpack(title: str, target: Path, unpacked: Path, url: str, filename: str, md5: str) -> None:
    """Download and unpack an archive, unless its content already exists.

    Args:
        title: name of the data set, for error messages.
        target: folder to unpack into.
        unpacked: path that exists once the archive is unpacked.
        url, filename, md5: address, file name and checksum of the archive.

    Raises:
        UserError: the download failed.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    target.mkdir(parents=True, exist_ok=True)
    with (target / ".download.lock").open("w") as lock:  # one rank downloads while the others wait
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if unpacked.exists():
            return
        try:
            download_and_extract_archive(url, str(target), filename=filename, md5=md5)
        except (OSError, RuntimeError) as error:
            raise UserError(f"could not download {title} from {url}: {error}") from None
