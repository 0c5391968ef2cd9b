"""Check that no image is both learned and scored."""

import math
import re
from collections import defaultdict
from hashlib import sha256
from typing import TYPE_CHECKING

from crosschannel.data import ImageSet
from crosschannel.errors import UserError

if TYPE_CHECKING:
    from transfer.protocol import Split

_VOC_NAME = re.compile(r"(?:VOC(\d{4})|SBD)/([^/]+)")
_REMOTE_SAMPLE = 64  # images to compare if each read waits for a network


def voc_name(name: str) -> str | None:
    """Return the name that an image of VOC or SBD has in all years: later ones call VOC2007's 000032 2007_000032.

    Args:
        name: name in an image set, such as VOC2012/2007_000032.

    Returns:
        the shared name; None for an image of another data set.
    """
    match = _VOC_NAME.fullmatch(name)
    if match is None:
        return None
    return f"2007_{match[2]}" if match[1] == "2007" else match[2]


def check_disjoint(split: "Split") -> None:
    """Raise a UserError if test images are also training images, unless the split allows it."""
    shared = [] if split.allow_overlap else shared_images(split.train, split.test)
    if not shared:
        return
    hint = "choose sets that share no image"
    if any(name.startswith("SBD/") for name in split.train.names):
        hint += "; 2011:seg11valid is VOC2011's val without SBD's training images"
    if split.source == "images from memory":
        hint += ", or pass transfer.protocol.Split(..., allow_overlap=True) to score training images on purpose"
    raise UserError(
        f"{len(shared)} of the {len(split.test)} test images of {split.source!r} are training images, such as "
        f"{shared[0]}: {hint}"
    )


def shared_images(train: ImageSet, test: ImageSet) -> list[str]:
    """Return the names of test images that are also training images.

    Images of VOC and SBD are the same if their names are equal. Names of other images mean little (``train/dog/1.jpg``
    and ``val/dog/1.jpg`` differ), so other images are the same if their file names and their bytes are equal.
    """
    keys = [_key(name) for name in test.names]
    candidates: dict[str, list[int]] = {key: [] for key in keys}
    for index, name in enumerate(train.names):
        if (key := _key(name)) in candidates:
            candidates[key].append(index)
    numbers = [number for number, key in enumerate(keys) if candidates[key]]
    if train.remote or test.remote:
        numbers = numbers[:: max(1, math.ceil(len(numbers) / _REMOTE_SAMPLE))]
    train_digests: dict[str, set[bytes]] = defaultdict(set)
    shared = []
    for number in numbers:
        name, key = test.names[number], keys[number]
        if voc_name(name) is None:
            if key not in train_digests:
                train_digests[key] = {_digest(train, index) for index in candidates[key]}
            if _digest(test, number) not in train_digests[key] - {b""}:
                continue
        shared.append(name)
    return shared


def _key(name: str) -> str:
    """Return the lookup key of an image name; a leading slash separates names of VOC and SBD from others."""
    shared = voc_name(name)
    return name.rpartition("/")[2] if shared is None else f"/{shared}"


def _digest(images: ImageSet, index: int) -> bytes:
    """Return the SHA-256 of an image's bytes; empty if it cannot be read."""
    try:
        return sha256(images.read(index)).digest()
    except OSError:
        return b""
