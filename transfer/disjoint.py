"""Check that training and test images are disjoint."""

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
_REMOTE_SAMPLE = 64  # maximum number of images to compare if they are read from remote storage, which is slow


def voc_name(name: str) -> str | None:
    """Return the name of a VOC or SBD image that is common to all years.

    Image 000032 of VOC2007 is 2007_000032 in later years.

    Args:
        name: name in an image set, such as VOC2012/2007_000032.

    Returns:
        the common name, such as 2007_000032; None for images of other data sets.
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
    hint = "choose disjoint sets"
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

    VOC and SBD images are identified by their common name. In other data sets, different images may have the same file
    name (``train/dog/1.jpg`` and ``val/dog/1.jpg``), so their content must be equal, too.
    """
    keys = [_key(name) for name in test.names]
    candidates: dict[str, list[int]] = {key: [] for key in keys}
    for index, name in enumerate(train.names):
        if (key := _key(name)) in candidates:
            candidates[key].append(index)
    test_indices = [index for index, key in enumerate(keys) if candidates[key]]
    if train.remote or test.remote:
        test_indices = test_indices[:: max(1, math.ceil(len(test_indices) / _REMOTE_SAMPLE))]
    train_digests: dict[str, set[bytes]] = defaultdict(set)
    shared = []
    for test_index in test_indices:
        name, key = test.names[test_index], keys[test_index]
        if voc_name(name) is None:
            if key not in train_digests:
                train_digests[key] = {_digest(train, index) for index in candidates[key]}
            if _digest(test, test_index) not in train_digests[key] - {b""}:
                continue
        shared.append(name)
    return shared


def _key(name: str) -> str:
    """Return the lookup key of an image name; keys of VOC and SBD images begin with a slash, other keys do not."""
    common_name = voc_name(name)
    return name.rpartition("/")[2] if common_name is None else f"/{common_name}"


def _digest(images: ImageSet, index: int) -> bytes:
    """Return the SHA-256 of an image's bytes; empty if it cannot be read."""
    try:
        return sha256(images.read(index)).digest()
    except OSError:
        return b""
