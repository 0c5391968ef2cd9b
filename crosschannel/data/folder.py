"""Image sets of folders of any depth, and the rules for which files are data."""

import os
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np

from crosschannel.data.decode import READS_AVIF, READS_HEIC
from crosschannel.data.images import ImageSet, Names
from crosschannel.errors import UserError
from crosschannel.files import MARKERS, is_output_folder, read_bytes, recorded_files

_MOST_NAMES = 100  # of one folder, by way of links
_MAX_LISTED = 4  # extensions or folders in one message
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *((".avif",) if READS_AVIF else ()),
    *((".heic", ".heif") if READS_HEIC else ()),
)
_REMEDIES = {".heic": "pip install 'crosschannel[heif]'", ".avif": "pip install 'pillow>=11.3'"}
# Files and folders that operating systems, network drives and archivers leave among data
SYSTEM_NAMES = {
    *("@eadir", "@recycle", "#recycle", "#snapshot", "~snapshot", "__macosx", "__pycache__", "$recycle.bin"),
    *("recycler", "system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}


def is_hidden(name: str) -> bool:
    """Whether a file or folder with this name is hidden or created by the system, and so not data."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES or name.startswith("PaxHeader")


@dataclass
class Listing:
    """The files below a folder.

    Attributes:
        files: relative paths of the pictures, '/'-separated, sorted.
        endings: number of other files by extension.
        written: number of pictures left out because a crosschannel command wrote them.
        folders: number of folders left out by name: hidden ones and output folders of commands.
    """

    files: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    written: int = 0
    folders: Counter[str] = field(default_factory=Counter)

    def left_out(self) -> str:
        """Describe the rest, such as "27 files (25 .heic, 2 .txt), 1 folder (.git)"; empty if there is none."""
        parts = []
        if self.endings:
            parts.append(f"{format_count(self.endings.total(), 'file')} ({_listed(self.endings)})")
        if self.written:
            parts.append(f"{format_count(self.written, 'picture')} that crosschannel wrote")
        if self.folders:
            parts.append(f"{format_count(self.folders.total(), 'folder')} ({_listed(self.folders)})")
        remedies = (f"; to read {ending}: {remedy}" for ending, remedy in _REMEDIES.items() if ending in self.endings)
        return ", ".join(parts) + "".join(remedies)

    def __add__(self, other: "Listing") -> "Listing":
        return Listing(
            self.files + other.files,
            self.endings + other.endings,
            self.written + other.written,
            self.folders + other.folders,
        )


def format_count(number: int, noun: str, plural: str = "") -> str:
    """Format a count, such as "1 image" or "2 images"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _listed(counts: Counter[str]) -> str:
    shown = [f"{count} {name}" if count > 1 else name for name, count in counts.most_common(_MAX_LISTED)]
    return ", ".join(shown) + (f" and {len(counts) - _MAX_LISTED} more" if len(counts) > _MAX_LISTED else "")


def list_folder(root: Path) -> Listing:
    """List the files below ``root``.

    Links to folders are followed, unless they lead back up. Hidden folders and outputs of commands (runs, studies,
    coloured pictures) are left out, unless ``root`` is such a folder or holds no other pictures.

    Raises:
        UserError: a folder cannot be read, or links give it more names than anybody can mean.
    """
    listing, written = Listing(), []
    names: Counter[tuple[int, int]] = Counter()  # of every folder, by device and inode
    todo: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while todo:
        folder, above = todo.pop()
        place, entries = _entries(folder)
        noted: set[str] = set()
        if any(entry.name in MARKERS for entry in entries):
            if folder != root and is_output_folder(folder):
                listing.folders[folder.name] += 1
                continue
            noted = recorded_files(folder)
        if place in above:
            continue
        names[place] += 1
        if names[place] > _MOST_NAMES:
            raise UserError(f"links below {root} give the folder {folder} more than {_MOST_NAMES} names")
        prefix = "" if folder == root else folder.relative_to(root).as_posix() + "/"
        for entry in entries:
            if is_hidden(entry.name):
                if _is_folder(entry):
                    listing.folders[entry.name] += 1
            elif _is_folder(entry):
                todo.append((Path(entry.path), above | {place}))
            elif not entry.name.lower().endswith(EXTENSIONS):
                listing.endings[Path(entry.name).suffix.lower() or "without an ending"] += 1
            else:
                (written if entry.name in noted else listing.files).append(prefix + entry.name)
    if listing.files:
        listing.written = len(written)
    else:
        listing.files = written
    listing.files.sort()
    return listing


def _entries(folder: Path) -> tuple[tuple[int, int], list[os.DirEntry]]:
    """Device and inode of a folder, and its entries."""
    try:
        status = folder.stat()
        return (status.st_dev, status.st_ino), list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def list_files(root: Path) -> list[str]:
    """Relative paths of the pictures below a folder; see :func:`list_folder`."""
    return list_folder(root).files


def subfolders(root: Path) -> list[str]:
    """Names of the subfolders of a folder, sorted, without hidden ones."""
    return sorted(entry.name for entry in _entries(root)[1] if _is_folder(entry) and not is_hidden(entry.name))


class FolderImages(ImageSet):
    """An ImageSet of the files below a folder. The first level of subfolders names the classes.

    Args:
        root: the folder.
        labels: class name by file stem, for layouts that keep labels elsewhere (ILSVRC's val).
        classes: class names by label, to share those of training with validation; default: names of the subfolders.

    Attributes:
        listing: the files, and counts of those left out.
    """

    def __init__(self, root: Path, labels: dict[str, str] | None = None, classes: tuple[str, ...] | None = None):
        self._root = root
        self.listing = list_folder(root)
        files = self.listing.files
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

    def read(self, index: int) -> bytes:
        return read_bytes(self._root / self.names[index])

    def label(self, index: int) -> int:
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
