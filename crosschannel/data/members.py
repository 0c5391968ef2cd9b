"""Members of tar shards: the ones that are data, the input image of each sample, and compressed archives."""

import re
from pathlib import Path
from typing import NamedTuple

from crosschannel.data.folder import SYSTEM_NAMES, is_hidden
from crosschannel.data.remote import is_remote
from crosschannel.errors import UserError

_INPUTS = ("input", "image", "img", "rgb", "photo")  # input image of a sample with several, as in 0001.input.jpg
_SYSTEM_PREFIXES = ("PaxHeader", ".ipynb_checkpoints")  # of folder names
# Compressed archives: extension, magic bytes and unpacking program
_COMPRESSED = (
    (".gz", b"\x1f\x8b", "gunzip"),
    (".tgz", b"\x1f\x8b", "gunzip"),
    (".bz2", b"BZh", "bunzip2"),
    (".xz", b"\xfd7zXZ", "unxz"),
    (".zst", b"\x28\xb5\x2f\xfd", "unzstd"),
    (".zip", b"PK\x03\x04", "unzip"),
)


class Member(NamedTuple):
    """An image in a tar: offset and size of its bytes, and its name."""

    offset: int
    size: int
    name: str


def is_data(name: str) -> bool:
    """Whether a member may be data, unlike the ._x and __MACOSX/x that archivers and systems add."""
    *folders, base = name.split("/")
    is_system = any(part.casefold() in SYSTEM_NAMES or part.startswith(_SYSTEM_PREFIXES) for part in folders)
    return not is_system and not is_hidden(base)


def images_of_samples(shard: Path, samples: dict[str, list[Member]]) -> list[Member]:
    """Choose the input image of each sample: ``KEY.jpg`` rather than ``KEY.seg.png``, or ``KEY.input.jpg``.

    Members with dots that do not separate words (``2021.05.06.jpg``) are independent images, and so are members with
    the same name.

    Args:
        shard: path of the tar, for messages.
        samples: image members by key.

    Raises:
        UserError: the input image of a sample is ambiguous, or the only image of a sample is of a kind that other
            samples do not use as input.
    """
    images, skipped = [], set()
    for key, members in samples.items():
        parts = {member.name: part for member in members if _is_word(part := _part(member.name)) or not part}
        inputs = [name for name, part in parts.items() if not part] or [
            n for n, part in parts.items() if part in _INPUTS
        ]
        if len(parts) > 1 and len(inputs) != 1:
            raise UserError(
                f"{shard}: the sample {key} has several images ({', '.join(sorted(parts))}); "
                f"call the one to read {key}.jpg or {key}.input.jpg"
            )
        if len(parts) > 1:
            skipped |= {part for name, part in parts.items() if name not in inputs}
        images += [m for m in members if m.name not in parts or len(parts) == 1 or m.name in inputs]
    stray = next((image.name for image in images if _part(image.name) in skipped), None)
    if stray:
        raise UserError(f"{shard}: the sample of {stray} has no image of the kind that other samples have")
    return images


def _is_word(part: str) -> bool:
    return re.fullmatch(r"[a-z][\w-]*(\.[a-z][\w-]*)*", part) is not None


def _part(name: str) -> str:
    """Text between the key and the extension of a member: "seg" in 0001.seg.png."""
    return name.rpartition("/")[2].partition(".")[2].rpartition(".")[0].lower()


def unpacking(name: str) -> str:
    """Advice on unpacking a compressed archive, by its name; empty for other files."""
    program = next((program for ending, _, program in _COMPRESSED if name.lower().endswith(ending)), "")
    advice = "download it and unpack it: " if is_remote(name) else "unpack it: "
    return f"{advice}{program} {name.rpartition('/')[2] if is_remote(name) else name}" if program else ""


def check_uncompressed(path: Path) -> None:
    """Refuse a compressed archive by its first bytes.

    Raises:
        UserError: the file is compressed; the message has the command that unpacks it.
    """
    with path.open("rb") as file:
        head = file.read(8)
    for ending, magic, program in _COMPRESSED:
        if head.startswith(magic):
            remedy = f"unpack it: mv {path} {path}{ending} && {program} {path}{ending}"
            raise UserError(f"{path} is compressed despite its name; {remedy}")
