"""Tar shards in the webdataset layout, with an index of member offsets so that any image can be read at once."""

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
from crosschannel.data.members import Member, check_uncompressed, images_of_samples, is_data
from crosschannel.data.remote import Range, is_remote, read_file, read_ranges
from crosschannel.errors import UserError
from crosschannel.files import read_bytes, read_text

CLASSES, LISTING = "classes.txt", "shards.txt"  # beside shards: class names by label; file names, for http
_INDEX_VERSION = "crosschannel-index-1"
_MOST_CLASSES, _MOST_SHARDS = 100_000, 100_000
_OPEN_FILES = 64  # shards that a process keeps open


class Row(NamedTuple):
    """An image in a shard: where its bytes are, its label (-1 for none) and its member's name."""

    offset: int
    size: int
    label: int
    name: str


class ShardImages(ImageSet):
    """An ImageSet of the image members of tar files; ``key.cls`` beside ``key.jpg`` is its label.

    A shard's index is read from ``SHARD.idx`` where that fits the shard, else made by scanning the tar once.

    Args:
        shards: paths or addresses.
        classes: class names by label; default the labels themselves.
    """

    def __init__(self, shards: list[str], classes: tuple[str, ...] = ()):
        self._shards, self.remote = shards, any(map(is_remote, shards))
        tables = [_index(shard) for shard in shards]
        self._ends = np.cumsum([len(table) for table in tables])
        self._offset, self._size, self.labels = (
            np.fromiter((row[i] for table in tables for row in table), np.int64) for i in range(3)
        )
        self.names = Names(_unique(shards, tables))
        if classes and int(self.labels.max(initial=-1)) >= len(classes):
            raise UserError(
                f"{CLASSES} beside {shards[0]} has {len(classes)} names, and there is label {self.labels.max()}"
            )
        self.classes = classes or tuple(str(i) for i in range(int(self.labels.max(initial=-1)) + 1))
        self._files: dict[tuple[int, int], int] = {}

    def read(self, index: int) -> bytes:
        shard = int(np.searchsorted(self._ends, index, "right"))
        offset, size = int(self._offset[index]), int(self._size[index])
        if is_remote(self._shards[shard]):
            return self.read_many([index])[0]
        key = (os.getpid(), shard)
        if key not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[key] = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._files[key], size, offset)

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
        """The bytes of several images of remote shards."""
        shards = np.searchsorted(self._ends, indices, "right")
        places = zip(shards, indices, strict=True)
        return read_ranges([Range(self._shards[s], int(self._offset[i]), int(self._size[i])) for s, i in places])


def _unique(shards: list[str], tables: list[list[Row]]) -> Iterator[str]:
    """What each image is called: its shard's name and its member's, so that shards can move. Shards of one name have
    as much of their folders before it as tells them apart; of members of one name the second is "…~2".

    Raises:
        UserError: a shard is named twice.
    """
    for depth in range(1, 1 + max(len(PurePosixPath(shard).parts) for shard in shards)):
        called = ["/".join(PurePosixPath(shard).parts[-depth:]) for shard in shards]
        if len(set(called)) == len(shards):
            break
    else:
        twice = next(shard for number, shard in enumerate(shards) if shard in shards[:number])
        raise UserError(f"the shard {twice} is named twice")
    for shard, rows in zip(called, tables, strict=True):
        met: Counter[str] = Counter()
        for row in rows:
            met[row.name] += 1
            yield f"{shard}/{row.name}" + (f"~{met[row.name]}" if met[row.name] > 1 else "")


def _index(shard: str) -> list[Row]:
    """The images of a shard, in the order of the tar."""
    if is_remote(shard):
        text = read_file(shard + ".idx")
        rows = None if text is None else parse_index(text.decode(errors="replace"))
        if rows is None:
            raise UserError(f"{shard} has no .idx beside it that fits; `crosschannel shard` writes them")
        return rows
    path = Path(shard)
    sidecar = path.with_name(path.name + ".idx")
    rows = parse_index(read_bytes(sidecar).decode(errors="replace"), path.stat().st_size) if sidecar.is_file() else None
    if rows is None or (rows and not _is_member(path, rows[-1])):
        return scan(path)
    return rows


def index_text(rows: list[Row], size: int) -> str:
    """An index of a shard of ``size`` bytes: a head with its version, size, rows and their digest, then the rows."""
    body = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    return f"{_INDEX_VERSION}\t{size}\t{len(rows)}\t{_digest(body)}\n{body}"


def parse_index(text: str, size: int | None = None) -> list[Row] | None:
    """The rows of an index; None where it is damaged or belongs to a shard of another size."""
    head, _, body = text.partition("\n")
    version, of_size, *rest = head.split("\t") if head.count("\t") == 3 else ("", "")
    if (
        version != _INDEX_VERSION
        or (size is not None and of_size != str(size))
        or rest != [str(body.count("\n")), _digest(body)]
    ):
        return None
    try:
        fields = (line.split("\t", 3) for line in body.split("\n")[:-1])
        rows = [Row(int(offset), int(length), int(label), name) for offset, length, label, name in fields]
        fits = all(
            row.offset >= 0 <= row.size and row.offset + row.size <= int(of_size) and -1 <= row.label < _MOST_CLASSES
            for row in rows
        )
    except ValueError:
        return None
    return rows if fits else None


def _digest(body: str) -> str:
    return sha256(body.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _is_member(path: Path, row: Row) -> bool:
    """Whether the tar's header before an image's bytes names it: the shard may have been made anew."""
    with path.open("rb") as file:
        file.seek(max(0, row.offset - 512))
        field = file.read(100).rstrip(b"\0").decode("utf-8", "surrogateescape")
    return bool(field) and (row.name.startswith(field) or row.name.endswith(field))  # a long name is cut or split


def scan(path: Path) -> list[Row]:
    """Index a tar by reading its headers and labels; a damaged tar is read up to the damage, with a warning.

    Raises:
        UserError: the file is not an uncompressed tar, a label is invalid, or a sample has several images.
    """
    samples: dict[str, list[Member]] = {}  # images by key
    labels: dict[str, int] = {}
    total = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := _next(tar)) is not None:
                if not member.isfile() or member.offset_data + member.size > total or not is_data(member.name):
                    continue
                key = _key(member.name)
                if member.name.lower().endswith(EXTENSIONS):
                    samples.setdefault(key, []).append(Member(member.offset_data, member.size, member.name))
                elif member.name.endswith(".cls"):
                    labels[key] = _label(path, member.name, tar.extractfile(member).read(32))
            end = tar.offset
    except (tarfile.TarError, ValueError, EOFError) as error:
        check_uncompressed(path)
        raise UserError(f"{path} is not an uncompressed tar shard: {error}") from None
    with path.open("rb") as file:
        file.seek(end)
        if file.read(512).strip(b"\0") or end > total:
            count = sum(map(len, samples.values()))
            warnings.warn(f"{path} is damaged or cut off at byte {min(end, total)}: {count} images", stacklevel=2)
    images = images_of_samples(path, samples)
    return sorted(Row(image.offset, image.size, labels.get(_key(image.name), -1), image.name) for image in images)


def _label(path: Path, name: str, text: bytes) -> int:
    number = re.fullmatch(rb"\s*(\d{1,9})\s*", text)
    if not number or int(number[1]) >= _MOST_CLASSES:
        raise UserError(f"{path}: its member {name} must be the number of a class, got {text!r}")
    return int(number[1])


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; None at the end and where the file is cut off."""
    try:
        return tar.next()
    except tarfile.ReadError:
        return None


def _key(name: str) -> str:
    """Key of a member's sample: the member's name up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def expand(pattern: str) -> list[str]:
    """Names of a brace pattern such as ``train-{000000..000146}.tar`` (comma lists too)."""
    names = _expand(pattern)
    if len(names) > _MOST_SHARDS:
        raise UserError(f"{pattern!r} names more than {_MOST_SHARDS} shards")
    return names


def _expand(pattern: str) -> list[str]:
    """As :func:`expand`; given up past the most that there may be."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds:
        first, last = bounds.groups()
        if int(first) > int(last):
            raise UserError(f"the range {match[0]} of {pattern!r} is empty: its first number is above its last")
        parts: Iterable[str] = (str(i).zfill(len(first)) for i in range(int(first), int(last) + 1))
    else:
        parts = match[1].split(",")
    rest = _expand(pattern[match.end() :])
    names = (pattern[: match.start()] + part + end for part in parts for end in rest)
    return list(islice(names, _MOST_SHARDS + 1))


def open_shards(data: str) -> tuple[ShardImages, ShardImages | None, str]:
    """Open training and validation images of tar shards; also return a line that summarises them.

    Args:
        data: a shard or a brace pattern of them, paths or http addresses: all are training images; or a folder (for
            http, one with a ``shards.txt``), where the names tell ``train`` from ``val``.

    Raises:
        UserError: a shard is missing or no tar, or the names leave open what is for validation.
    """
    val, unused = [], 0
    if is_remote(data) and not data.endswith(".tar"):
        listing = read_file(f"{data.rstrip('/')}/{LISTING}")
        if listing is None:
            raise UserError(f"no {LISTING} at {data}: give a folder that `crosschannel shard` wrote, or its .tar files")
        names = _decoded(listing, data).split()
        train, val, unused = _split([f"{data.rstrip('/')}/{name}" for name in names], data)
    elif Path(data).is_dir():
        paths = [path for folder in _places(Path(data)) for path in sorted(folder.glob("[!.]*.tar"))]
        train, val, unused = _split([str(path) for path in paths], data)
    else:
        train = expand(data)
        missing = [path for path in train if not is_remote(path) and not Path(path).is_file()]
        if missing:
            raise UserError(f"no shard {missing[0]}, the first of {len(missing)} missing ones named by {data!r}")
    classes = _classes(train[0])
    training, validation = ShardImages(train, classes), ShardImages(val, classes) if val else None
    if validation is not None:  # where classes have no names, labels of both count
        training.classes = validation.classes = max(training.classes, validation.classes, key=len)
    summary = f"{format_count(len(training), 'training image')} ({format_count(len(train), 'shard')})"
    if validation is not None:
        summary += f", {format_count(len(validation), 'validation image')} ({format_count(len(val), 'shard')})"
    return training, validation, summary + (f"; not used: {format_count(unused, 'test shard')}" if unused else "")


def holds_shards(folder: Path) -> bool:
    """Whether a folder of data is one of shards."""
    return any(any(path.glob("[!.]*.tar")) for path in _places(folder))


def _places(folder: Path) -> list[Path]:
    """Where the shards of a folder are: in its own folders for training and validation or, without such, in itself."""
    return sorted(path for path in folder.iterdir() if split_of(path.name) and path.is_dir()) or [folder]


def _split(shards: list[str], data: str) -> tuple[list[str], list[str], int]:
    """Split shards into training and validation by their names; also return the number of unused ones.

    Shards without a split's word are for training; test shards serve for validation if there are no others.

    Raises:
        UserError: no training shards, or shards both with and without a split's word.
    """
    found: dict[str, list[str]] = {"train": [], "val": [], "test": [], "": []}
    for shard in shards:
        found[split_word(shard.removeprefix(data))].append(shard)
    if (found["train"] or found["val"]) and found[""]:
        raise UserError(f"{found[''][0]} is named neither train nor val, as its neighbours are; give a brace pattern")
    train = found["train"] or found[""]
    if not train:
        raise UserError(f"no training shards in {data!r}: none is named train-….tar")
    return train, found["val"] or found["test"], len(found["test"]) if found["val"] else 0


def _classes(shard: str) -> tuple[str, ...]:
    """The class names beside a shard, where there are any."""
    place = f"{shard.rpartition('/')[0]}/{CLASSES}" if "/" in shard else CLASSES
    if is_remote(shard):
        text = _decoded(read_file(place) or b"", place)
    else:
        text = read_text(Path(place)) if Path(place).is_file() else ""
    names = tuple(text.removesuffix("\n").split("\n")) if text else ()
    if len(set(names)) < len(names):
        raise UserError(f"{place} has a name twice")
    return names


def _decoded(text: bytes, what: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise UserError(f"what {what} gives is not UTF-8 text") from None
