"""ImageSet: encoded images by index, wherever they are stored."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256
from typing import Any, Protocol

import numpy as np


class Names(Sequence[str]):
    """A read-only list of strings in one buffer: a million file names cost their bytes, not a million objects,
    and forked workers share them."""

    def __init__(self, names: Iterable[str]):
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._blob = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        return self._blob[start : int(self._ends[index])].decode("utf-8", "surrogateescape")

    def hashes(self) -> np.ndarray:
        """(len,) uint64, a hash of each name alone."""
        encoded = (name.encode("utf-8", "surrogateescape") for name in self)
        return np.array(
            [int.from_bytes(blake2b(name, digest_size=8).digest(), "little") for name in encoded], np.uint64
        )

    def fingerprint(self) -> str:
        """16 hex digits that change with any name or the order."""
        return sha256(self._ends.tobytes() + self._blob).hexdigest()[:16]


class ImageSet(Protocol):
    """Encoded images with labels: any object with these attributes and methods. Reading is thread- and fork-safe.

    Attributes:
        names: what each image is called in logs and results, unique.
        labels: (len,) int64, -1 where unknown; of images with several classes a row each, as their protocol has it.
        classes: class names by label; empty where there are none.
        remote: reading waits for a network; such a set has ``read_many(indices)`` besides.
    """

    remote: bool
    names: Names
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image."""
        ...

    def annotation(self, index: int) -> Any:
        """What is known of one image: its label, or what the set's views need (masks, boxes)."""
        ...

    def content_key(self) -> str:
        """A digest that changes with the images, as far as can be told without reading them: names, places, sizes
        and times of change."""
        ...


class MemoryImages:
    """An ImageSet of encoded images held in memory."""

    remote = False

    def __init__(self, names: Sequence[str], labels: Sequence[int], blobs: Sequence[bytes], classes=()):
        self.names, self.labels, self.classes = Names(names), np.asarray(labels, np.int64), tuple(classes)
        self._blobs = list(blobs)

    def __len__(self) -> int:
        return len(self._blobs)

    def read(self, index: int) -> bytes:
        return self._blobs[index]

    def annotation(self, index: int) -> Any:
        return self.labels[index]

    def content_key(self) -> str:
        return sha256(b"".join(sha256(blob).digest() for blob in self._blobs)).hexdigest()


class Annotated:
    """Another set, whose annotations are what :meth:`annotation` of a subclass says."""

    def __init__(self, images: ImageSet):
        self.names, self.labels, self.classes, self.remote = images.names, images.labels, images.classes, images.remote
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> bytes:
        return self._images.read(index)

    def read_many(self, indices: list[int]) -> list[bytes]:
        return self._images.read_many(indices)

    def annotation(self, index: int) -> Any:
        return self._images.annotation(index)

    def content_key(self) -> str:
        return self._images.content_key()


class Subset:
    """Some images of another set, by index."""

    def __init__(self, images: ImageSet, indices: np.ndarray):
        self.names = Names(images.names[int(i)] for i in indices)
        self.labels, self.classes = images.labels[indices], images.classes
        self._images, self._indices, self.remote = images, indices, images.remote

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> bytes:
        return self._images.read(int(self._indices[index]))

    def annotation(self, index: int) -> Any:
        return self._images.annotation(int(self._indices[index]))

    def read_many(self, indices: list[int]) -> list[bytes]:
        return self._images.read_many([int(self._indices[index]) for index in indices])

    def content_key(self) -> str:
        return sha256(self._images.content_key().encode() + self._indices.astype(np.int64).tobytes()).hexdigest()
