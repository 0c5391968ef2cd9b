"""The VOC devkit: image sets, annotations with their difficult flags, masks. What is missing is said at once."""

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
from transfer.pascal.config import PascalConfig, named_sets
from transfer.protocol import Data, Split

_OF_2011 = Path("TrainVal") / "VOCdevkit"


class VOCImages(ImageSet):
    """Image sets of a devkit, with the field ``objects``.

    Args:
        devkit: folder of VOC2007 and the like, or one that holds it.
        sets: (year, image set) of each.

    Attributes:
        names: such as VOC2007/000012.
        labels: (n, 20) int8, POSITIVE, NEGATIVE or IGNORED.
        objects: by image.

    Raises:
        UserError: a year, a set, an image or an annotation is missing or damaged; the message names it.
    """

    classes = CLASSES

    def __init__(self, devkit: Path, sets: Iterable[tuple[str, str]]):
        self._places: list[tuple[Path, str]] = []
        self._paths: list[Path] = []
        for year, name in sets:
            folder = year_folder(devkit, year)
            image_names = read_set(folder, name)
            self._places += [(folder, image) for image in image_names]
            self._paths += find_images(folder / "JPEGImages", image_names)
        self.names = Names(f"{folder.name}/{image}" for folder, image in self._places)
        check_unique(self.names, str(devkit))
        check_files(self._paths, "images")
        self.objects = [
            read_annotation(folder / "Annotations" / f"{image}.xml", picture_size(self, index))
            for index, (folder, image) in enumerate(self._places)
        ]
        self.labels = np.stack([objects.labels() for objects in self.objects])

    def image_path(self, index: int) -> Path:
        return self._paths[index]

    def read(self, index: int) -> bytes:
        return read_bytes(self.image_path(index))

    def fields(self, index: int) -> dict[str, Objects]:
        return {"objects": self.objects[index]}

    def content_key(self) -> str:
        return key_of_files(self.names, self._paths)


def find_images(folder: Path, names: Iterable[str]) -> list[Path]:
    """Find the files of images that a set lists without extensions: .jpg, or any other image extension in any case.
    The path of a missing image ends in .jpg."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    except OSError:
        files = []
    by_name = {path.stem: path for path in files}
    by_name |= {path.stem: path for path in files if path.suffix == ".jpg"}
    return [by_name.get(name, folder / f"{name}.jpg") for name in names]


def check_unique(names: Iterable[str], where: str) -> None:
    """Raise a UserError if image sets list an image twice, possibly under the names of two years."""
    known_names: set[str] = set()
    for name in names:
        shared = voc_name(name) or name
        if shared in known_names:
            raise UserError(f"the image sets of {where} name an image twice: {name}")
        known_names.add(shared)


def check_files(paths: Iterable[Path], what: str) -> None:
    """Raise a UserError that names the first file of a devkit that is not there."""
    lacking = [path for path in paths if not path.is_file()]
    if lacking:
        more = f" and {len(lacking) - 1} more {what}" if len(lacking) > 1 else ""
        raise UserError(f"the devkit lacks {lacking[0]}{more} that its image sets name")


def key_of_files(names: Names, paths: Iterable[Path]) -> str:
    """A digest of names, sizes and times of change (see :class:`~crosschannel.data.ImageSet`)."""
    digest = sha256(names.fingerprint().encode())
    for path in paths:
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def open_devkit(data: Data, config: PascalConfig) -> Split:
    """The image sets that a config names.

    Args:
        data: the VOCdevkit folder, one that holds it, or images that are there, with labels (n, classes) of POSITIVE,
            NEGATIVE and IGNORED.
        config: names the sets, and whether missing years may be fetched.

    Raises:
        UserError: what is missing, in one sentence.
    """
    if isinstance(data, str):
        root = devkit_folder(data)
        wanted = [named_sets(sets) for sets in (config.train_set, config.test_set)]
        if config.download:
            for year, name in (one for sets in wanted for one in sets):
                fetch(root, year, name)
        found = Split(*(VOCImages(root, sets) for sets in wanted), CLASSES, data)
    else:
        found = data if isinstance(data, Split) else Split(*data, data[0].classes or CLASSES, "images from memory")
    for images in (found.train, found.test):
        if np.shape(images.labels) != (len(images), len(found.classes)):
            raise UserError(f"labels must be ({len(images)}, {len(found.classes)}), got {np.shape(images.labels)}")
        if not (images.labels == POSITIVE).any():
            raise UserError(f"none of the {len(images)} images of {found.source!r} is a positive of any class")
    return found


def devkit_folder(data: str) -> Path:
    """Return the devkit that ``--data`` names, or its copy on this machine's disk. For the folder of a year return its
    parent, never a copy: names of copies contain no year."""
    path = user_path(data)
    above = above_year(path)
    return user_path(staged_path(data)) if above == path else above


def above_year(path: Path) -> Path:
    """Return the parent of a year's folder, such as VOCdevkit/VOC2007, and any other folder unchanged."""
    is_year = (path / "ImageSets").is_dir() and re.fullmatch(r"VOC\d{4}", path.resolve().name)
    return path.resolve().parent if is_year else path


def year_folder(root: Path, year: str) -> Path:
    """The folder of a year: in what was named, in VOCdevkit below it, or where 2011's archive has it.

    Raises:
        UserError: there is none.
    """
    found, places = _year_places(root, year)
    if found:
        return found
    there = sorted({found.parent.name for place in places[:3] for found in place.glob("VOC2*/ImageSets")})
    hint = f"it has {', '.join(there)}" if there else "it is no VOC devkit; --download true fetches the real one"
    if (root / "ImageSets").is_dir():
        hint = f"it is the folder of one year, which must be called VOC{year}"
    raise UserError(f"{root} has no VOC{year}/ImageSets: {hint}")


def _year_places(root: Path, year: str) -> tuple[Path | None, list[Path]]:
    """The folder of a year, if there is one, and where it was looked for."""
    bases = (root, root.parent) if root.name == "VOCdevkit" else (root,)
    places = [place for base in bases for place in (base, base / "VOCdevkit", base / _OF_2011)]
    folders = (place / f"VOC{year}" for place in places)
    return next((folder for folder in folders if (folder / "ImageSets").is_dir()), None), places


def read_set(folder: Path, name: str, kind: str = "Main") -> list[str]:
    """The images of a set.

    Args:
        folder: of a year.
        name: such as trainval.
        kind: "Main", or "Segmentation".

    Raises:
        UserError: no such set, or it is empty.
    """
    path = folder / "ImageSets" / kind / f"{name}.txt"
    if not path.is_file():
        known = {path.stem for path in path.parent.glob("*.txt")}
        known -= {stem for stem in known if stem.rpartition("_")[0] in CLASSES}
        raise UserError(f"no image set {path}; there are {', '.join(sorted(known)) or 'none'}")
    return read_names(path)


def read_names(path: Path) -> list[str]:
    """The first word of every line of an image set's file.

    Raises:
        UserError: there is none.
    """
    images = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    if not images:
        raise UserError(f"the image set {path} is empty")
    return images


def fetch(root: Path, year: str, name: str) -> None:
    """Download and unpack the archive of a year into ``root`` (or beside it, where it is called VOCdevkit), unless it
    is there.

    Raises:
        UserError: there is no such archive, or it cannot be had.
    """
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    key = "2007-test" if (year, name) == ("2007", "test") else year
    if key not in DATASET_YEAR_DICT:
        raise UserError(f"there is no archive of VOC{year}; there are {', '.join(sorted(DATASET_YEAR_DICT))}")
    if key != "2007-test" and _year_places(root, year)[0]:
        return
    archive: dict[str, str] = DATASET_YEAR_DICT[key]
    place = root.parent if root.name == "VOCdevkit" else root
    sets = place / archive["base_dir"] / "ImageSets"
    there = sets / "Main" / "test.txt" if key == "2007-test" else sets
    unpack(f"VOC{year}", place, there, archive["url"], archive["filename"], archive["md5"])


def unpack(what: str, place: Path, there: Path, url: str, filename: str, md5: str) -> None:
    """Download and unpack the archive of ``what`` into ``place``, unless ``there`` exists.

    Raises:
        UserError: it cannot be had.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    place.mkdir(parents=True, exist_ok=True)
    with (place / ".download.lock").open("w") as lock:  # one of all ranks downloads, the others wait
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if there.exists():
            return
        try:
            download_and_extract_archive(url, str(place), filename=filename, md5=md5)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{what} cannot be had from {url}: {error}") from None
