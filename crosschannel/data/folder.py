"""Image sets from folders of any depth, and the rules for which files are images."""

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

_MAX_PATHS = 100  # paths to the same folder, through links
_MAX_LISTED = 4  # extensions or folders listed in a message
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *((".avif",) if READS_AVIF else ()),
    *((".heic", ".heif") if READS_HEIC else ()),
)
_REMEDIES = {".heic": "pip install 'crosschannel[heif]'", ".avif": "pip install 'pillow>=11.3'"}
# Files and folders that operating systems, network drives and archivers create (in lower case)
SYSTEM_NAMES = {
    *("@eadir", "@recycle", "#recycle", "#snapshot", "~snapshot", "__macosx", "__pycache__", "$recycle.bin"),
    *("recycler", "system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or created by the operating system, judging by its name."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES or name.startswith("PaxHeader")


@dataclass
class Listing:
    """Images below a folder, and counts of skipped files and folders.

    Attributes:
        files: relative paths of the images, '/'-separated, sorted.
        extensions: skipped files, counted by extension.
        outputs: number of images skipped because a crosschannel command wrote them.
        folders: skipped folders (hidden ones and output folders of commands), counted by name.
    """

    files: list[str] = field(default_factory=list)
    extensions: Counter[str] = field(default_factory=Counter)
    outputs: int = 0
    folders: Counter[str] = field(default_factory=Counter)

    def skipped(self) -> str:
        """Summarise the skipped files and folders, such as "27 files (25 .heic, 2 .txt), 1 folder (.git)"."""
        counts = []
        if self.extensions:
            counts.append(f"{format_count(self.extensions.total(), 'file')} ({_format_counts(self.extensions)})")
        if self.outputs:
            counts.append(f"{format_count(self.outputs, 'picture')} written by crosschannel")
        if self.folders:
            counts.append(f"{format_count(self.folders.total(), 'folder')} ({_format_counts(self.folders)})")
        remedies = (f"; to read {name}: {remedy}" for name, remedy in _REMEDIES.items() if name in self.extensions)
        return ", ".join(counts) + "".join(remedies)

    def __add__(self, other: "Listing") -> "Listing":
        return Listing(
            self.files + other.files,
            self.extensions + other.extensions,
            self.outputs + other.outputs,
            self.folders + other.folders,
        )


def format_count(number: int, noun: str, plural: str = "") -> str:
    """Format a count, such as "1 image" or "2 images"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _format_counts(counts: Counter[str]) -> str:
    items = [f"{count} {name}" if count > 1 else name for name, count in counts.most_common(_MAX_LISTED)]
    return ", ".join(items) + (f" and {len(counts) - _MAX_LISTED} more" if len(counts) > _MAX_LISTED else "")


def list_folder(root: Path) -> Listing:
    """List the images below ``root``, at any depth.

    Links to folders are followed unless they lead to a parent folder. Hidden folders and outputs of crosschannel
    commands (runs, studies, coloured pictures) are skipped, unless ``root`` is such a folder or has no other images.

    Raises:
        UserError: a folder cannot be read, or is reachable by too many paths through links.
    """
    listing, outputs = Listing(), []
    path_counts: Counter[tuple[int, int]] = Counter()  # by (device, inode) of the folder
    stack: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while stack:
        folder, parents = stack.pop()
        folder_id, entries = _scan_folder(folder)
        recorded_names: set[str] = set()
        if any(entry.name in MARKERS for entry in entries):
            if folder != root and is_output_folder(folder):
                listing.folders[folder.name] += 1
                continue
            recorded_names = recorded_files(folder)
        if folder_id in parents:
            continue
        path_counts[folder_id] += 1
        if path_counts[folder_id] > _MAX_PATHS:
            raise UserError(f"links below {root} lead to the folder {folder} by more than {_MAX_PATHS} paths")
        prefix = "" if folder == root else folder.relative_to(root).as_posix() + "/"
        for entry in entries:
            if is_hidden(entry.name):
                if _is_folder(entry):
                    listing.folders[entry.name] += 1
            elif _is_folder(entry):
                stack.append((Path(entry.path), parents | {folder_id}))
            elif not entry.name.lower().endswith(EXTENSIONS):
                listing.extensions[Path(entry.name).suffix.lower() or "without extension"] += 1
            else:
                (outputs if entry.name in recorded_names else listing.files).append(prefix + entry.name)
    if listing.files:
        listing.outputs = len(outputs)
    else:
        listing.files = outputs
    listing.files.sort()
    return listing


def _scan_folder(folder: Path) -> tuple[tuple[int, int], list[os.DirEntry]]:
    """Return (device, inode) of a folder, and its entries."""
    try:
        status = folder.stat()
        return (status.st_dev, status.st_ino), list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"could not read the folder {folder}: {error.strerror}") from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def list_files(root: Path) -> list[str]:
    """Return the relative paths of the images below a folder; see :func:`list_folder`."""
    return list_folder(root).files


def subfolders(root: Path) -> list[str]:
    """Return the names of the subfolders that are not hidden, sorted."""
    return sorted(entry.name for entry in _scan_folder(root)[1] if _is_folder(entry) and not is_hidden(entry.name))


class FolderImages(ImageSet):
    """An ImageSet of the images below a folder. The names of its subfolders are the classes.

    Args:
        root: folder of the images.
        labels: class name by file stem, for layouts that store labels in separate files (ILSVRC validation images).
        classes: class names in label order, such as those of the training images for validation images; by default
            the sorted names of the subfolders.

    Attributes:
        listing: image files, and counts of skipped files.
    """

    def __init__(self, root: Path, labels: dict[str, str] | None = None, classes: tuple[str, ...] | None = None):
        self._root = root
        self.listing = list_folder(root)
        files = self.listing.files
        if labels is None:
            class_names = [f.split("/", 1)[0] if "/" in f else None for f in files]
        else:
            class_names = [labels.get(Path(f).stem) for f in files]
        self.classes = tuple(sorted({c for c in class_names if c})) if classes is None else classes
        class_index = {c: i for i, c in enumerate(self.classes)}
        unknown_classes = sorted({c for c in class_names if c and c not in class_index})
        if unknown_classes:
            raise UserError(f"{root} has the class {unknown_classes[0]!r}, which is not among the training images")
        self.names = Names(files)
        self.labels = np.array([class_index[c] if c else -1 for c in class_names], np.int64)

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
            except OSError:  # for example a broken link, which counts as a broken image
                digest.update(b"none\n")
        return digest.hexdigest()
