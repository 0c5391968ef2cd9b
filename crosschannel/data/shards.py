"""Tar shards in the webdataset layout, with an index of member offsets so that any image can be read at once."""

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from crosschannel.data.decode import BrokenImage, decode
from crosschannel.data.folder import EXTENSIONS
from crosschannel.data.images import ImageSet, Names
from crosschannel.data.order import epoch_order
from crosschannel.errors import UserError

_INDEX_VERSION = "crosschannel-index-1"
_OPEN_FILES = 64  # shards that a process keeps open


class ShardImages:
    """An ImageSet of the image members of tar files; ``key.cls`` beside ``key.jpg`` is its label.

    A shard's index is read from ``SHARD.idx`` where that fits the shard, else made by scanning the tar once.
    """

    def __init__(self, paths: list[Path], classes: tuple[str, ...] = ()):
        self._paths = paths
        rows = [(shard, row) for shard, path in enumerate(paths) for row in _index(path)]
        self._shard = np.array([shard for shard, _ in rows], np.int32)
        self._offset = np.array([row[0] for _, row in rows], np.int64)
        self._size = np.array([row[1] for _, row in rows], np.int64)
        self.labels = np.array([row[2] for _, row in rows], np.int64)
        self.names = Names(f"{paths[shard].name}/{row[3]}" for shard, row in rows)
        self.classes = classes or tuple(str(i) for i in range(int(self.labels.max(initial=-1)) + 1))
        self._files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._offset)

    def read(self, index: int) -> bytes:
        shard = int(self._shard[index])
        key = (os.getpid(), shard)
        if key not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[key] = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._files[key], int(self._size[index]), int(self._offset[index]))


def _index(path: Path) -> list[tuple[int, int, int, str]]:
    """(offset, size, label, member name) of every image in a shard, in the order of the tar."""
    size = path.stat().st_size
    sidecar = path.with_name(path.name + ".idx")
    if sidecar.is_file():
        head, *lines = sidecar.read_text().splitlines()
        if head == f"{_INDEX_VERSION}\t{size}":
            fields = (line.split("\t", 3) for line in lines)
            return [(int(offset), int(length), int(label), name) for offset, length, label, name in fields]
    return scan(path)


def scan(path: Path) -> list[tuple[int, int, int, str]]:
    """Index a tar by reading its headers (and its labels); an incomplete last member is left out."""
    images, labels = [], {}
    total = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _members(tar):
                if not member.isfile() or member.offset_data + member.size > total:
                    continue
                key = _key(member.name)
                if member.name.lower().endswith(EXTENSIONS):
                    images.append((member.offset_data, member.size, key, member.name))
                elif member.name.endswith(".cls"):
                    labels[key] = int(tar.extractfile(member).read())
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not an uncompressed tar shard: {error}") from None
    return [(offset, size, labels.get(key, -1), name) for offset, size, key, name in images]


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members up to where the file is cut off."""
    while True:
        try:
            member = tar.next()
        except tarfile.ReadError:
            return
        if member is None:
            return
        yield member


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.split('.', 1)[0]}"


def expand(pattern: str) -> list[Path]:
    """Paths of a brace pattern such as ``train-{000000..000146}.tar`` (comma lists too)."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [Path(pattern)]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds:
        first, last = bounds.groups()
        parts: Iterable[str] = (str(i).zfill(len(first)) for i in range(int(first), int(last) + 1))
    else:
        parts = match[1].split(",")
    return [p for part in parts for p in expand(pattern[: match.start()] + part + pattern[match.end() :])]


def open_shards(pattern: str) -> tuple[ShardImages, ShardImages | None]:
    """Training and validation images of a brace pattern, or of a folder's ``train-*.tar`` and ``val-*.tar``."""
    if Path(pattern).is_dir():
        train, val = (sorted(Path(pattern).glob(f"{split}-*.tar")) for split in ("train", "val"))
        train = train or sorted(Path(pattern).glob("*.tar"))
    else:
        train, val = expand(pattern), []
    missing = [path for path in train if not path.is_file()]
    if missing:
        raise UserError(f"no shard {missing[0]}, the first of {len(missing)} missing ones named by {pattern!r}")
    names = train[0].parent / "classes.txt"
    classes = tuple(names.read_text().splitlines()) if names.is_file() else ()
    return ShardImages(train, classes), ShardImages(val, classes) if val else None


def write_shards(
    images: ImageSet,
    out: Path,
    split: str,
    size: int | None = None,
    shard_bytes: int = 256 << 20,
    progress=None,
) -> tuple[int, list[tuple[str, str]]]:
    """Write an ImageSet as ``OUT/SPLIT-NNNNNN.tar`` with indices, in a shuffled order.

    Args:
        images: what to write.
        out: an existing folder.
        split: the prefix of the file names.
        size: short side to reduce larger images to (JPEG, quality 95); None keeps every file as it is.
        shard_bytes: a shard is closed once it holds this many bytes.
        progress: called with 1 after every image.

    Returns:
        the number of shards and the broken images left out, as (name, reason).
    """
    broken: list[tuple[str, str]] = []
    shard, tar, path, written = 0, None, out, 0
    for number, index in enumerate(epoch_order(len(images), 0, 0)):
        name = images.names[int(index)]
        try:
            data, extension = _encoded(images.read(int(index)), name, size)
        except (BrokenImage, OSError) as error:
            broken.append((name, str(error)))
            continue
        finally:
            if progress:
                progress(1)
        if tar is None:
            path = out / f"{split}-{shard:06d}.tar"
            tar, written, shard = tarfile.open(path.with_suffix(".part"), "w:"), 0, shard + 1  # noqa: SIM115
        key = f"{number:08d}_{re.sub(r'[^A-Za-z0-9_-]', '_', Path(name).stem)[:80]}"
        _add(tar, key + extension, data)
        label = int(images.labels[index])
        if label >= 0:
            _add(tar, key + ".cls", str(label).encode())
        written += len(data)
        if written >= shard_bytes:
            _finish(tar, path)
            tar = None
    if tar is not None:
        _finish(tar, path)
    return shard, broken


def _encoded(data: bytes, name: str, size: int | None) -> tuple[bytes, str]:
    """The bytes to store, checked to decode, and their extension."""
    image = decode(data)
    height, width = image.shape[:2]
    if size is None or min(height, width) <= size:
        return data, Path(name).suffix.lower()
    scale = size / min(height, width)
    small = Image.fromarray(image).resize(
        (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue(), ".jpg"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _finish(tar: tarfile.TarFile, path: Path) -> None:
    part = path.with_suffix(".part")
    tar.close()
    lines = "".join("\t".join(map(str, row)) + "\n" for row in scan(part))
    path.with_name(path.name + ".idx").write_text(f"{_INDEX_VERSION}\t{part.stat().st_size}\n{lines}")
    part.rename(path)
