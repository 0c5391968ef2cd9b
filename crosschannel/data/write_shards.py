"""Write image sets to tar shards."""

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from crosschannel.data.decode import BrokenImage, decode
from crosschannel.data.images import ImageSet
from crosschannel.data.order import epoch_order
from crosschannel.data.shards import format_index, scan
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
    """Write an ImageSet in shuffled order to shards ``OUT/SPLIT-NNNNNN.tar``, each with its index.

    Args:
        images: images to write.
        out: output folder, which must exist.
        split: prefix of the file names.
        size: short side to which larger images are reduced (as JPEG, quality 95); None copies every file unchanged.
        shard_bytes: size at which a shard is closed, in bytes of image data.
        seed: seed of the shuffle.
        progress: called with 1 for every image.

    Returns:
        Paths of the shards, and (name, reason) of every broken image, which is skipped.
    """
    broken: list[tuple[str, str]] = []
    shards: list[Path] = []
    tar, bytes_written = None, 0
    for position, index in enumerate(epoch_order(len(images), seed, 0)):
        name = images.names[int(index)]
        progress(1)
        try:
            data, extension = _encode(images.read(int(index)), name, size)
        except (BrokenImage, OSError) as error:
            broken.append((name, str(error)))
            continue
        if tar is None:
            shards.append(out / f"{split}-{len(shards):06d}.tar")
            tar, bytes_written = tarfile.open(shards[-1], "w:"), 0  # noqa: SIM115
        key = f"{position:08d}_{re.sub(r'[^A-Za-z0-9_-]', '_', Path(name).stem)[:80]}"
        _add_member(tar, key + extension, data)
        label = int(images.labels[index])
        if label >= 0:
            _add_member(tar, key + ".cls", str(label).encode())
        bytes_written += len(data)
        if bytes_written >= shard_bytes:
            _close_shard(tar, shards[-1])
            tar = None
    if tar is not None:
        _close_shard(tar, shards[-1])
    return shards, broken


def _encode(data: bytes, name: str, size: int | None) -> tuple[bytes, str]:
    """Return the bytes to store and their extension.

    Raises:
        BrokenImage: the image cannot be decoded.
    """
    image = decode(data)
    height, width = image.shape[:2]
    if size is None or min(height, width) <= size:
        return data, Path(name).suffix.lower()
    scale = size / min(height, width)
    resized = Image.fromarray(image).resize(
        (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue(), ".jpg"


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _close_shard(tar: tarfile.TarFile, path: Path) -> None:
    tar.close()
    sync(path)
    write_text(path.with_name(path.name + ".idx"), format_index(scan(path), path.stat().st_size))
