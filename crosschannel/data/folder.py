"""Images in folders: any depth, train/ and val/ honoured, the raw ILSVRC layout too."""

import csv
import os
import re
from hashlib import sha256
from pathlib import Path

import numpy as np

from crosschannel.data.images import Names
from crosschannel.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff")


def list_files(root: Path, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    """Paths below ``root`` with one of the extensions, relative, '/'-separated, sorted.

    Links are followed, unless they lead back up.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}")

    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=refuse):
        prefix = "" if folder == str(root) else Path(folder).relative_to(root).as_posix() + "/"
        found += [prefix + f for f in files if f.lower().endswith(extensions) and not f.startswith("._")]
        above = os.path.realpath(folder) + "/"
        linked = [name for name in subfolders if Path(folder, name).is_symlink()]
        loops = {name for name in linked if above.startswith(os.path.realpath(f"{folder}/{name}") + "/")}
        subfolders[:] = [name for name in subfolders if name not in loops]
    return sorted(found)


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
        return (self._root / self.names[index]).read_bytes()

    def content_key(self) -> str:
        digest = sha256(self.names.fingerprint().encode())
        for name in self.names:
            stat = (self._root / name).stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
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
            with table.open(newline="") as file:
                return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    annotations = root / "Annotations" / "CLS-LOC" / "val"
    names = ((path.stem, re.search(r"<name>(n\d+)</name>", path.read_text())) for path in annotations.glob("*.xml"))
    return {stem: match[1] for stem, match in names if match}
