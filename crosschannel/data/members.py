"""Members of tar shards: which of them are data, the image of each sample, and archives that are no shards yet."""

import re
from pathlib import Path
from typing import NamedTuple

from crosschannel.data.folder import SYSTEM_NAMES, is_hidden
from crosschannel.data.remote import is_remote
from crosschannel.errors import UserError

_INPUTS = ("input", "image", "img", "rgb", "photo")  # the image of a sample that has several, as in 0001.input.jpg
_ADDED = ("PaxHeader", ".ipynb_checkpoints")  # beginnings of folder names
# Compressed archives: ending, first bytes, and the program that unpacks them
_COMPRESSED = (
    (".gz", b"\x1f\x8b", "gunzip"),
    (".tgz", b"\x1f\x8b", "gunzip"),
    (".bz2", b"BZh", "bunzip2"),
    (".xz", b"\xfd7zXZ", "unxz"),
    (".zst", b"\x28\xb5\x2f\xfd", "unzstd"),
    (".zip", b"PK\x03\x04", "unzip"),
)


class Member(NamedTuple):
    """An image in a tar: where its bytes are, and its name."""

    offset: int
    size: int
    name: str


def is_data(name: str) -> bool:
    """Whether a member may be data: ._x and __MACOSX/x, which archivers and systems add, are not."""
    *folders, base = name.split("/")
    added = any(part.casefold() in SYSTEM_NAMES or part.startswith(_ADDED) for part in folders)
    return not added and not is_hidden(base)


def images_of_samples(shard: Path, samples: dict[str, list[Member]]) -> list[Member]:
    """One image of each sample that has several: ``KEY.jpg`` rather than ``KEY.seg.png``, or ``KEY.input.jpg``.

    Members whose names have dots between other things than words (``2021.05.06.jpg``) are images in their own right,
    and so are members of one name.

    Args:
        shard: where they are.
        samples: the image members by key.

    Raises:
        UserError: nothing says which image of a sample is meant, or one has only what is no image of other samples.
    """
    images, passed_over = [], set()
    for key, members in samples.items():
        words = {member.name: part for member in members if _is_word(part := _part(member.name)) or not part}
        meant = [name for name, part in words.items() if not part] or [
            n for n, part in words.items() if part in _INPUTS
        ]
        if len(words) > 1 and len(meant) != 1:
            raise UserError(
                f"{shard}: the sample {key} has several images ({', '.join(sorted(words))}); "
                f"call the one to read {key}.jpg or {key}.input.jpg"
            )
        if len(words) > 1:
            passed_over |= {part for name, part in words.items() if name not in meant}
        images += [m for m in members if m.name not in words or len(words) == 1 or m.name in meant]
    alone = next((image.name for image in images if _part(image.name) in passed_over), None)
    if alone:
        raise UserError(f"{shard}: the sample of {alone} has no image of the kind that other samples have")
    return images


def _is_word(part: str) -> bool:
    return re.fullmatch(r"[a-z][\w-]*(\.[a-z][\w-]*)*", part) is not None


def _part(name: str) -> str:
    """What stands between the key of a member and its ending: "seg" of 0001.seg.png."""
    return name.rpartition("/")[2].partition(".")[2].rpartition(".")[0].lower()


def unpacking(name: str) -> str:
    """What to do about a compressed archive of that name; empty for other files."""
    program = next((program for ending, _, program in _COMPRESSED if name.lower().endswith(ending)), "")
    what = "download it and unpack it: " if is_remote(name) else "unpack it: "
    return f"{what}{program} {name.rpartition('/')[2] if is_remote(name) else name}" if program else ""


def check_uncompressed(path: Path) -> None:
    """Refuse a compressed archive by its first bytes.

    Raises:
        UserError: it is one, with the command that unpacks it.
    """
    with path.open("rb") as file:
        head = file.read(8)
    for ending, magic, program in _COMPRESSED:
        if head.startswith(magic):
            remedy = f"unpack it: mv {path} {path}{ending} && {program} {path}{ending}"
            raise UserError(f"{path} is compressed, whatever its name; {remedy}")
