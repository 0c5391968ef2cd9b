"""Packing images into tar shards."""

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from crosschannel.data.decode import BrokenImage, decode
from crosschannel.data.images import ImageSet
from crosschannel.data.order import epoch_order
from crosschannel.data.shards import index_text, scan
from crosschannel.files import sync, write_text


def write_shards(
    images: ImageSet,
    out: Path,
    split: str,
    size: int | None = None,
    shard_bytes: int = 256 << 20,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Write an ImageSet as ``OUT/SPLIT-NNNNNN.tar``, each with its index, in a shuffled order.

    Args:
        images: what to write.
        out: an existing folder.
        split: the prefix of the file names.
        size: short side to reduce larger images to (JPEG, quality 95); None keeps every file as it is.
        shard_bytes: a shard is closed once it holds this many bytes.
        seed: of the order.
        progress: called with 1 after every image.

    Returns:
        the shards and the broken images left out, as (name, reason).
    """
    broken: list[tuple[str, str]] = []
    shards: list[Path] = []
    tar, written = None, 0
    for number, index in enumerate(epoch_order(len(images), seed, 0)):
        name = images.names[int(index)]
        progress(1)
        try:
            data, extension = _encoded(images.read(int(index)), name, size)
        except (BrokenImage, OSError) as error:
            broken.append((name, str(error)))
            continue
        if tar is None:
            shards.append(out / f"{split}-{len(shards):06d}.tar")
            tar, written = tarfile.open(shards[-1], "w:"), 0  # noqa: SIM115
        key = f"{number:08d}_{re.sub(r'[^A-Za-z0-9_-]', '_', Path(name).stem)[:80]}"
        _add(tar, key + extension, data)
        label = int(images.labels[index])
        if label >= 0:
            _add(tar, key + ".cls", str(label).encode())
        written += len(data)
        if written >= shard_bytes:
            _finish(tar, shards[-1])
            tar = None
    if tar is not None:
        _finish(tar, shards[-1])
    return shards, broken


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
    tar.close()
    sync(path)
    write_text(path.with_name(path.name + ".idx"), index_text(scan(path), path.stat().st_size))
