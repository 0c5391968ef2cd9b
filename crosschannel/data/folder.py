"""Images in folders: any depth, train/ and val/ honoured, the raw ILSVRC layout too."""

import csv
import os
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np

from crosschannel.data.images import Names
from crosschannel.errors import UserError
from crosschannel.files import is_run_folder, read_bytes, read_text

_MOST_NAMES = 100  # of one folder, by way of links
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff")


def list_files(root: Path, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Paths below ``root`` with one of the extensions, relative, '/'-separated, sorted.

    Links to folders are followed, unless they lead back up. Folders of runs below ``root`` are left out: what a run
    writes is not what it learns from.

    Raises:
        UserError: a folder cannot be read, or links give it more names than anybody can mean.
    """
    found: list[str] = []
    names: Counter[tuple[int, int]] = Counter()  # of every folder, by device and inode
    todo: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while todo:
        folder, above = todo.pop()
        try:
            place = (folder.stat().st_dev, folder.stat().st_ino)
            entries = list(os.scandir(folder))
        except OSError as error:
            raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None
        is_run = any(entry.name == "config.yaml" for entry in entries) and is_run_folder(folder)
        if place in above or (is_run and folder != root):
            continue
        names[place] += 1
        if names[place] > _MOST_NAMES:
            raise UserError(f"links below {root} give the folder {folder} more than {_MOST_NAMES} names")
        prefix = "" if folder == root else folder.relative_to(root).as_posix() + "/"
        for entry in entries:
            if _is_folder(entry):
                todo.append((Path(entry.path), above | {place}))
            elif entry.name.lower().endswith(extensions) and not entry.name.startswith("._"):
                found.append(prefix + entry.name)
    return sorted(found)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


class FolderImages:
    """An ImageSet of the files below a folder. The first level of subfolders names the classes.

    Args:
        root: the folder.
        labels: class name by file stem, for layouts that keep labels elsewhere (ILSVRC's val).
        classes: class names to number by, so that val agrees with train; default: those found.
    """

    remote = False

    def __init__(self, root: Path, labels: dict[str, str] | None = None, classes: tuple[str, ...] | None = None):
        self._root = root
        files = list_files(root)
        if labels is None:
            named = [f.split("/", 1)[0] if "/" in f else None for f in files]
        else:
            named = [labels.get(Path(f).stem) for f in files]
        self.classes = tuple(sorted({c for c in named if c})) if classes is None else classes
        number = {c: i for i, c in enumerate(self.classes)}
        unknown = sorted({c for c in named if c and c not in number})
        if unknown:
            raise UserError(f"{root} has the class {unknown[0]!r}, which the training images lack")
        self.names = Names(files)
        self.labels = np.array([number[c] if c else -1 for c in named], np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        return read_bytes(self._root / self.names[index])

    def annotation(self, index: int) -> int:
        return int(self.labels[index])

    def content_key(self) -> str:
        digest = sha256(self.names.fingerprint().encode())
        for name in self.names:
            try:
                stat = (self._root / name).stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
            except OSError:  # such as a broken link: an image that cannot be read, as everywhere
                digest.update(b"none\n")
        return digest.hexdigest()


def open_folder(root: Path) -> tuple[FolderImages, FolderImages | None]:
    """Training and validation images of a folder; the latter is None where the layout has none."""
    for ilsvrc in (root, root / "ILSVRC"):
        if (ilsvrc / "Data" / "CLS-LOC" / "train").is_dir():
            return _open_ilsvrc(ilsvrc)
    if (root / "train").is_dir():
        train = FolderImages(root / "train")
        has_val = (root / "val").is_dir()
        return train, FolderImages(root / "val", classes=train.classes) if has_val else None
    return FolderImages(root), None


def _open_ilsvrc(root: Path) -> tuple[FolderImages, FolderImages | None]:
    """The layout in which ILSVRC is distributed: Data/CLS-LOC/{train/WNID/, val/} and labels elsewhere."""
    data = root / "Data" / "CLS-LOC"
    train = FolderImages(data / "train")
    if not (data / "val").is_dir():
        return train, None
    return train, FolderImages(data / "val", labels=_ilsvrc_val_labels(root), classes=train.classes)


def _ilsvrc_val_labels(root: Path) -> dict[str, str]:
    for table in (root / "LOC_val_solution.csv", root.parent / "LOC_val_solution.csv"):
        if table.is_file():
            try:
                rows = csv.DictReader(read_text(table).splitlines())
                return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
            except (KeyError, IndexError, AttributeError, csv.Error):
                raise UserError(
                    f"{table} is damaged: a line needs an ImageId, and a PredictionString that begins with a class"
                ) from None
    annotations = root / "Annotations" / "CLS-LOC" / "val"
    names = ((path.stem, re.search(r"<name>(n\d+)</name>", read_text(path))) for path in annotations.glob("*.xml"))
    return {stem: match[1] for stem, match in names if match}
