"""ImageSet, the interface to encoded images by index, independent of their storage."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b, sha256
from typing import Any

import numpy as np

from crosschannel.data.record import Record


class Names(Sequence[str]):
    """A read-only list of strings in one buffer.

    It needs little more memory than the bytes of the names, and forked workers share the buffer.
    """

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
        """Return a hash of each name, (len,) uint64."""
        encoded = (name.encode("utf-8", "surrogateescape") for name in self)
        return np.array(
            [int.from_bytes(blake2b(name, digest_size=8).digest(), "little") for name in encoded], np.uint64
        )

    def fingerprint(self) -> str:
        """Return 16 hex digits that change if a name or the order changes."""
        return sha256(self._ends.tobytes() + self._blob).hexdigest()[:16]


class ImageSet:
    """Base class of image sets: encoded images and their labels, by index. Reading is thread- and fork-safe.

    Subclasses define the attributes below, :meth:`read` and :meth:`content_key`; the other methods have defaults.

    Attributes:
        names: unique image names, for logs and results.
        labels: (len,) int64 class indices, -1 if unknown; for multi-label images one row per image, in the format of
            the protocol.
        classes: class names in label order; empty if the images have no classes.
        remote: whether images are read over a network; remote sets override :meth:`files_of`.
    """

    names: Names
    labels: np.ndarray
    classes: tuple[str, ...] = ()
    remote: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image."""
        raise NotImplementedError

    def files(self, index: int) -> Mapping[str, bytes]:
        """Return all encoded files of one item, by name."""
        return {"image": self.read(index)}

    def label(self, index: int) -> int | np.ndarray:
        """Return the label of one image, or its row of ``labels``."""
        return self.labels[index]

    def fields(self, index: int) -> Mapping[str, Any]:
        """Return the annotations other than the label, such as ``objects``, ``proposals`` or a ``mask``."""
        return {}

    def record(self, index: int) -> Record:
        """Return one item as the input of a view."""
        return Record(self.files(index), self.label(index), self.fields(index))

    def files_of(self, indices: Sequence[int]) -> list[Mapping[str, bytes]]:
        """Return all encoded files of several items; remote sets override this to read them concurrently."""
        return [self.files(index) for index in indices]

    def records(self, indices: Sequence[int]) -> list[Record]:
        """Return the records of several items."""
        files = self.files_of(indices)
        return [Record(item, self.label(i), self.fields(i)) for i, item in zip(indices, files, strict=True)]

    def content_key(self) -> str:
        """Return a digest that changes with the images.

        To avoid reading every image, it may be computed from names, locations, sizes and modification times.
        """
        raise NotImplementedError


class MemoryImages(ImageSet):
    """An ImageSet of encoded images held in memory."""

    def __init__(self, names: Sequence[str], labels: Sequence[int], blobs: Sequence[bytes], classes=()):
        self.names, self.labels, self.classes = Names(names), np.asarray(labels, np.int64), tuple(classes)
        self._blobs = list(blobs)

    def read(self, index: int) -> bytes:
        return self._blobs[index]

    def content_key(self) -> str:
        return sha256(b"".join(sha256(blob).digest() for blob in self._blobs)).hexdigest()


def name_fingerprints(train: ImageSet, val: ImageSet) -> dict[str, str]:
    """Return fingerprints of the image names, which are checked when a run resumes."""
    return {"train": train.names.fingerprint(), "val": val.names.fingerprint()}


class AnnotatedImages(ImageSet):
    """Base class for sets that add fields to another set. To change its files, override ``files``."""

    def __init__(self, images: ImageSet):
        self.names, self.labels, self.classes, self.remote = images.names, images.labels, images.classes, images.remote
        self._images = images

    def read(self, index: int) -> bytes:
        return self._images.read(index)

    def files(self, index: int) -> Mapping[str, bytes]:
        return self._images.files(index)

    def files_of(self, indices: Sequence[int]) -> list[Mapping[str, bytes]]:
        return self._images.files_of(indices) if self.remote else super().files_of(indices)

    def label(self, index: int) -> int | np.ndarray:
        return self._images.label(index)

    def fields(self, index: int) -> Mapping[str, Any]:
        return self._images.fields(index)

    def content_key(self) -> str:
        return self._images.content_key()


class Subset(ImageSet):
    """A subset of another image set, by index."""

    def __init__(self, images: ImageSet, indices: np.ndarray):
        self.names = Names(images.names[int(i)] for i in indices)
        self.labels, self.classes = images.labels[indices], images.classes
        self._images, self._indices, self.remote = images, indices, images.remote

    def read(self, index: int) -> bytes:
        return self._images.read(int(self._indices[index]))

    def files(self, index: int) -> Mapping[str, bytes]:
        return self._images.files(int(self._indices[index]))

    def files_of(self, indices: Sequence[int]) -> list[Mapping[str, bytes]]:
        return self._images.files_of([int(self._indices[index]) for index in indices])

    def label(self, index: int) -> int | np.ndarray:
        return self._images.label(int(self._indices[index]))

    def fields(self, index: int) -> Mapping[str, Any]:
        return self._images.fields(int(self._indices[index]))

    def content_key(self) -> str:
        return sha256(self._images.content_key().encode() + self._indices.astype(np.int64).tobytes()).hexdigest()
