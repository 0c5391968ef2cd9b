"""Tar shards in the WebDataset layout, with an index of member offsets for random access."""

import os
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from crosschannel.data.folder import EXTENSIONS, format_count
from crosschannel.data.images import ImageSet, Names
from crosschannel.data.layout import split_of, split_word
from crosschannel.data.members import Member, check_uncompressed, is_data, select_input_images
from crosschannel.data.remote import Range, is_remote, read_file, read_ranges
from crosschannel.errors import UserError
from crosschannel.files import read_bytes, read_text

# Files next to shards: the class names in label order, and the file names of the shards (for http)
CLASSES, LISTING = "classes.txt", "shards.txt"
_INDEX_VERSION = "crosschannel-index-1"
_MAX_CLASSES, _MAX_SHARDS = 100_000, 100_000
_MAX_OPEN_FILES = 64  # shards per process


class Row(NamedTuple):
    """An image in a shard: the offset and size of its data in bytes, its label (-1 if unknown) and member name."""

    offset: int
    size: int
    label: int
    name: str


class ShardImages(ImageSet):
    """An ImageSet of the images in tar shards. The label of ``key.jpg`` is the content of ``key.cls``.

    The index of a shard is read from ``SHARD.idx`` if it matches the shard, otherwise built by scanning the tar file.

    Args:
        shards: paths or URLs of the shards.
        classes: class names in label order; by default the class indices.
    """

    def __init__(self, shards: list[str], classes: tuple[str, ...] = ()):
        self._shards, self.remote = shards, any(map(is_remote, shards))
        tables = [_load_index(shard) for shard in shards]
        self._ends = np.cumsum([len(table) for table in tables])
        self._offset, self._size, self.labels = (
            np.fromiter((row[i] for table in tables for row in table), np.int64) for i in range(3)
        )
        self.names = Names(_unique_names(shards, tables))
        if classes and int(self.labels.max(initial=-1)) >= len(classes):
            raise UserError(
                f"{CLASSES} next to {shards[0]} has {len(classes)} names, but the largest label is {self.labels.max()}"
            )
        self.classes = classes or tuple(str(i) for i in range(int(self.labels.max(initial=-1)) + 1))
        self._descriptors: dict[tuple[int, int], int] = {}

    def read(self, index: int) -> bytes:
        shard = int(np.searchsorted(self._ends, index, "right"))
        offset, size = int(self._offset[index]), int(self._size[index])
        if is_remote(self._shards[shard]):
            return self.read_many([index])[0]
        key = (os.getpid(), shard)
        if key not in self._descriptors:
            if len(self._descriptors) >= _MAX_OPEN_FILES:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[key] = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._descriptors[key], size, offset)

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def content_key(self) -> str:
        digest = sha256(self.names.fingerprint().encode() + self._offset.tobytes() + self._size.tobytes())
        for shard in self._shards:
            digest.update(shard.encode() if is_remote(shard) else str(Path(shard).stat().st_mtime_ns).encode())
        return digest.hexdigest()

    def files_of(self, indices: Sequence[int]) -> list[Mapping[str, bytes]]:
        return [{"image": data} for data in self.read_many(indices)] if self.remote else super().files_of(indices)

    def read_many(self, indices: Sequence[int]) -> list[bytes]:
        """Return the encoded bytes of several images in remote shards."""
        shards = np.searchsorted(self._ends, indices, "right")
        pairs = zip(shards, indices, strict=True)
        return read_ranges([Range(self._shards[s], int(self._offset[i]), int(self._size[i])) for s, i in pairs])


def _unique_names(shards: list[str], tables: list[list[Row]]) -> Iterator[str]:
    """Yield a unique name for each image: the shard's file name and the member name.

    Names stay the same if the shards are moved. Shards with the same file name are distinguished by as many parent
    folders as necessary, and members with the same name by a suffix such as "~2".

    Raises:
        UserError: a shard is listed twice.
    """
    for depth in range(1, 1 + max(len(PurePosixPath(shard).parts) for shard in shards)):
        shard_names = ["/".join(PurePosixPath(shard).parts[-depth:]) for shard in shards]
        if len(set(shard_names)) == len(shards):
            break
    else:
        duplicate = next(shard for i, shard in enumerate(shards) if shard in shards[:i])
        raise UserError(f"the shard {duplicate} is listed twice")
    for shard, rows in zip(shard_names, tables, strict=True):
        counts: Counter[str] = Counter()
        for row in rows:
            counts[row.name] += 1
            yield f"{shard}/{row.name}" + (f"~{counts[row.name]}" if counts[row.name] > 1 else "")


def _load_index(shard: str) -> list[Row]:
    """Load or build the index of a shard, in the order of the tar file."""
    if is_remote(shard):
        text = read_file(shard + ".idx")
        rows = None if text is None else parse_index(text.decode(errors="replace"))
        if rows is None:
            raise UserError(f"{shard} has no matching .idx next to it; write the shards with `crosschannel shard`")
        return rows
    path = Path(shard)
    sidecar = path.with_name(path.name + ".idx")
    rows = parse_index(read_bytes(sidecar).decode(errors="replace"), path.stat().st_size) if sidecar.is_file() else None
    if rows is None or (rows and not _is_member(path, rows[-1])):
        return scan(path)
    return rows


def format_index(rows: list[Row], size: int) -> str:
    """Format the index of a shard of ``size`` bytes.

    A header (version, size, number of rows and their digest) is followed by one line per row.
    """
    body = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    return f"{_INDEX_VERSION}\t{size}\t{len(rows)}\t{_digest(body)}\n{body}"


def parse_index(text: str, size: int | None = None) -> list[Row] | None:
    """Parse an index; return None if it is damaged or belongs to a shard of another size."""
    header, _, body = text.partition("\n")
    version, stored_size, *checks = header.split("\t") if header.count("\t") == 3 else ("", "")
    if (
        version != _INDEX_VERSION
        or (size is not None and stored_size != str(size))
        or checks != [str(body.count("\n")), _digest(body)]
    ):
        return None
    try:
        fields = (line.split("\t", 3) for line in body.split("\n")[:-1])
        rows = [Row(int(offset), int(length), int(label), name) for offset, length, label, name in fields]
        is_valid = all(
            row.offset >= 0 <= row.size and row.offset + row.size <= int(stored_size) and -1 <= row.label < _MAX_CLASSES
            for row in rows
        )
    except ValueError:
        return None
    return rows if is_valid else None


def _digest(body: str) -> str:
    return sha256(body.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _is_member(path: Path, row: Row) -> bool:
    """Whether an image is preceded by a tar header with its name; false if the shard was replaced."""
    with path.open("rb") as file:
        file.seek(max(0, row.offset - 512))
        name = file.read(100).rstrip(b"\0").decode("utf-8", "surrogateescape")
    return bool(name) and (row.name.startswith(name) or row.name.endswith(name))  # long names are truncated or split


def scan(path: Path) -> list[Row]:
    """Index a tar file by reading its headers and labels. A damaged file is read up to the damage, with a warning.

    Raises:
        UserError: the file is not an uncompressed tar, a label is invalid, or the input image of a sample is ambiguous.
    """
    samples: dict[str, list[Member]] = {}  # images by key
    labels: dict[str, int] = {}
    file_size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := _next_member(tar)) is not None:
                if not member.isfile() or member.offset_data + member.size > file_size or not is_data(member.name):
                    continue
                key = _sample_key(member.name)
                if member.name.lower().endswith(EXTENSIONS):
                    samples.setdefault(key, []).append(Member(member.offset_data, member.size, member.name))
                elif member.name.endswith(".cls"):
                    labels[key] = _parse_label(path, member.name, tar.extractfile(member).read(32))
            end = tar.offset
    except (tarfile.TarError, ValueError, EOFError) as error:
        check_uncompressed(path)
        raise UserError(f"{path} is not an uncompressed tar shard: {error}") from None
    with path.open("rb") as file:
        file.seek(end)
        if file.read(512).strip(b"\0") or end > file_size:
            count = sum(map(len, samples.values()))
            warnings.warn(
                f"{path} is damaged or truncated at byte {min(end, file_size)} (readable images: {count})", stacklevel=2
            )
    images = select_input_images(path, samples)
    return sorted(
        Row(image.offset, image.size, labels.get(_sample_key(image.name), -1), image.name) for image in images
    )


def _parse_label(path: Path, name: str, text: bytes) -> int:
    match = re.fullmatch(rb"\s*(\d{1,9})\s*", text)
    if not match or int(match[1]) >= _MAX_CLASSES:
        raise UserError(f"{path}: the member {name} must contain a class index, got {text!r}")
    return int(match[1])


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """Return the next member; None at the end of the file, which may be truncated."""
    try:
        return tar.next()
    except tarfile.ReadError:
        return None


def _sample_key(name: str) -> str:
    """Return the sample key of a member, which is its name up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def expand(pattern: str) -> list[str]:
    """Expand a brace pattern with a range or a list, such as ``train-{000000..000146}.tar`` or ``{a,b}.tar``."""
    names = _expand(pattern)
    if len(names) > _MAX_SHARDS:
        raise UserError(f"{pattern!r} expands to more than {_MAX_SHARDS} shards")
    return names


def _expand(pattern: str) -> list[str]:
    """Expand a brace pattern to at most ``_MAX_SHARDS + 1`` names."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds:
        first, last = bounds.groups()
        if int(first) > int(last):
            raise UserError(f"the range {match[0]} in {pattern!r} is empty: its start is greater than its end")
        alternatives: Iterable[str] = (str(i).zfill(len(first)) for i in range(int(first), int(last) + 1))
    else:
        alternatives = match[1].split(",")
    endings = _expand(pattern[match.end() :])
    names = (pattern[: match.start()] + middle + ending for middle in alternatives for ending in endings)
    return list(islice(names, _MAX_SHARDS + 1))


def open_shards(data: str) -> tuple[ShardImages, ShardImages | None, str]:
    """Open the training and validation images of tar shards.

    Args:
        data: a path or URL of a shard, or a brace pattern, whose images are all used for training; or a folder of
            shards (over http, a folder with a ``shards.txt``), which are assigned to splits by their names.

    Returns:
        Training images, validation images (None if there are none), and a one-line summary.

    Raises:
        UserError: a shard is missing or not a tar, or the names do not determine the splits.
    """
    val_shards, unused = [], 0
    if is_remote(data) and not data.endswith(".tar"):
        listing = read_file(f"{data.rstrip('/')}/{LISTING}")
        if listing is None:
            raise UserError(f"no {LISTING} at {data}; pass a folder written by `crosschannel shard`, or its .tar files")
        names = _decode_text(listing, data).split()
        train_shards, val_shards, unused = _split([f"{data.rstrip('/')}/{name}" for name in names], data)
    elif Path(data).is_dir():
        paths = [path for folder in _shard_folders(Path(data)) for path in sorted(folder.glob("[!.]*.tar"))]
        train_shards, val_shards, unused = _split([str(path) for path in paths], data)
    else:
        train_shards = expand(data)
        missing = [path for path in train_shards if not is_remote(path) and not Path(path).is_file()]
        if missing:
            raise UserError(f"no such shard: {missing[0]} ({len(missing)} missing from {data!r})")
    classes = _read_classes(train_shards[0])
    train, val = ShardImages(train_shards, classes), ShardImages(val_shards, classes) if val_shards else None
    if val is not None:  # without class names, use the largest label of both splits
        train.classes = val.classes = max(train.classes, val.classes, key=len)
    summary = f"{format_count(len(train), 'training image')} ({format_count(len(train_shards), 'shard')})"
    if val is not None:
        summary += f", {format_count(len(val), 'validation image')} ({format_count(len(val_shards), 'shard')})"
    return train, val, summary + (f"; ignored: {format_count(unused, 'test shard')}" if unused else "")


def holds_shards(folder: Path) -> bool:
    """Whether a folder contains tar shards."""
    return any(any(path.glob("[!.]*.tar")) for path in _shard_folders(folder))


def _shard_folders(folder: Path) -> list[Path]:
    """Return the subfolders that are named after splits, or else the folder itself."""
    return sorted(path for path in folder.iterdir() if split_of(path.name) and path.is_dir()) or [folder]


def _split(shards: list[str], data: str) -> tuple[list[str], list[str], int]:
    """Assign shards to the training and validation splits by their names; also return the number of unused shards.

    Shards that are not named after a split are training shards. Test shards are used for validation if there are no
    validation shards.

    Raises:
        UserError: there are no training shards, or only some shards are named after a split.
    """
    by_split: dict[str, list[str]] = {"train": [], "val": [], "test": [], "": []}
    for shard in shards:
        by_split[split_word(shard.removeprefix(data))].append(shard)
    if (by_split["train"] or by_split["val"]) and by_split[""]:
        raise UserError(f"{by_split[''][0]} is named neither train nor val, unlike other shards; pass a brace pattern")
    train = by_split["train"] or by_split[""]
    if not train:
        raise UserError(f"no training shards in {data!r}: none is named train-….tar")
    return train, by_split["val"] or by_split["test"], len(by_split["test"]) if by_split["val"] else 0


def _read_classes(shard: str) -> tuple[str, ...]:
    """Read the class names next to a shard; return () if there are none."""
    path = f"{shard.rpartition('/')[0]}/{CLASSES}" if "/" in shard else CLASSES
    if is_remote(shard):
        text = _decode_text(read_file(path) or b"", path)
    else:
        text = read_text(Path(path)) if Path(path).is_file() else ""
    names = tuple(text.removesuffix("\n").split("\n")) if text else ()
    if len(set(names)) < len(names):
        raise UserError(f"{path} contains a duplicate name")
    return names


def _decode_text(data: bytes, url: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UserError(f"the response from {url} is not UTF-8 text") from None
