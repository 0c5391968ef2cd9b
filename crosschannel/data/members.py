"""Choice of the input images in a tar shard, and detection of compressed archives."""

import re
from pathlib import Path
from typing import NamedTuple

from crosschannel.data.folder import SYSTEM_NAMES, is_hidden
from crosschannel.data.remote import is_remote
from crosschannel.errors import UserError

_INPUT_ROLES = ("input", "image", "img", "rgb", "photo")  # names of the input image, as in 0001.input.jpg
_SYSTEM_PREFIXES = ("PaxHeader", ".ipynb_checkpoints")  # prefixes of folders that archivers and notebooks create
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
    """An image in a tar file: the offset and size of its data in bytes, and its name."""

    offset: int
    size: int
    name: str


def is_data(name: str) -> bool:
    """Whether a member may be data, rather than a file of an archiver or operating system (._x, __MACOSX/x)."""
    *folders, base = name.split("/")
    is_system = any(name.casefold() in SYSTEM_NAMES or name.startswith(_SYSTEM_PREFIXES) for name in folders)
    return not is_system and not is_hidden(base)


def select_input_images(shard: Path, samples: dict[str, list[Member]]) -> list[Member]:
    """Choose the input image of each sample: ``KEY.jpg`` rather than ``KEY.seg.png``, or ``KEY.input.jpg``.

    Members whose dots do not separate words (``2021.05.06.jpg``) and members with the same name count as separate
    images.

    Args:
        shard: path of the tar file, for error messages.
        samples: image members by sample key.

    Raises:
        UserError: the input image of a sample is ambiguous, or missing although the sample has another image.
    """
    images, other_roles = [], set()
    for key, members in samples.items():
        roles = {member.name: role for member in members if _is_word(role := _role(member.name)) or not role}
        inputs = [name for name, role in roles.items() if not role] or [
            name for name, role in roles.items() if role in _INPUT_ROLES
        ]
        if len(roles) > 1 and len(inputs) != 1:
            raise UserError(
                f"{shard}: the sample {key} has several images ({', '.join(sorted(roles))}); "
                f"rename the input image to {key}.jpg or {key}.input.jpg"
            )
        if len(roles) > 1:
            other_roles |= {role for name, role in roles.items() if name not in inputs}
        images += [m for m in members if m.name not in roles or len(roles) == 1 or m.name in inputs]
    unpaired_name = next((image.name for image in images if _role(image.name) in other_roles), None)
    if unpaired_name:
        raise UserError(f"{shard}: the sample of {unpaired_name} lacks the input image that other samples have")
    return images


def _is_word(text: str) -> bool:
    return re.fullmatch(r"[a-z][\w-]*(\.[a-z][\w-]*)*", text) is not None


def _role(name: str) -> str:
    """Return the text between the key and the extension of a member: "seg" in 0001.seg.png."""
    return name.rpartition("/")[2].partition(".")[2].rpartition(".")[0].lower()


def unpack_hint(name: str) -> str:
    """Return the command that unpacks a compressed archive, chosen by its extension; empty for other files."""
    program = next((program for suffix, _, program in _COMPRESSED if name.lower().endswith(suffix)), "")
    advice = "download it and unpack it: " if is_remote(name) else "unpack it: "
    return f"{advice}{program} {name.rpartition('/')[2] if is_remote(name) else name}" if program else ""


def check_uncompressed(path: Path) -> None:
    """Check that a file does not start with the magic bytes of a compressed archive.

    Raises:
        UserError: the file is compressed; the message includes the command that unpacks it.
    """
    with path.open("rb") as file:
        first_bytes = file.read(8)
    for suffix, magic, program in _COMPRESSED:
        if first_bytes.startswith(magic):
            remedy = f"unpack it: mv {path} {path}{suffix} && {program} {path}{suffix}"
            raise UserError(f"{path} is compressed despite its name; {remedy}")
